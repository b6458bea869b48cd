tsr_add_unit_test(parallel.golden SOURCES golden/test_golden.c LIBS tsr_test_rig tsr_parallel
  ARGS ${CMAKE_CURRENT_SOURCE_DIR}/golden)
