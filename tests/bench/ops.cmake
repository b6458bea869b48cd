execute_process(COMMAND git describe --always --dirty WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
  OUTPUT_VARIABLE bench_revision OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
add_executable(bench_ops
  bench/bench_ops.c
  bench/op_cases_gemm.c
  bench/op_cases_layers.c
  bench/op_cases_route.c
  bench/op_cases_vectors.c)
target_link_libraries(bench_ops PRIVATE tsr_flags tsr_runtime m)
target_compile_definitions(bench_ops PRIVATE TSR_REVISION="${bench_revision}"
  TSR_BUILD_TYPE="${CMAKE_BUILD_TYPE}")
add_test(NAME bench.ops COMMAND bench_ops --toy --threads 2)
set_tests_properties(bench.ops PROPERTIES LABELS bench TIMEOUT 60)
