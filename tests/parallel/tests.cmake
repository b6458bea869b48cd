tsr_add_unit_test(parallel.golden SOURCES golden/test_golden.c LIBS tsr_test_rig tsr_parallel
  ARGS ${CMAKE_CURRENT_SOURCE_DIR}/golden)
tsr_add_unit_test(parallel.moe_layer SOURCES parallel/test_moe_layer.c
  LIBS tsr_test_rig tsr_parallel)
tsr_add_mpi_test(parallel.mesh SOURCES parallel/test_mesh.c LIBS tsr_parallel tsr_test_memory
  RANKS 1 2 3 4 6)
tsr_add_unit_test(parallel.stage SOURCES parallel/test_stage.c LIBS tsr_test_rig tsr_parallel)
tsr_add_unit_test(parallel.generate SOURCES parallel/test_generate.c
  LIBS tsr_test_rig tsr_parallel)
include(parallel/placement.cmake)
include(parallel/mesh_cuda.cmake)
tsr_add_mpi_test(parallel.moe_ranks SOURCES parallel/test_moe_ranks.c
  LIBS tsr_test_rig tsr_parallel RANKS 1 2 3 4 6)
