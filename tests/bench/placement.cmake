add_executable(bench_placement bench/bench_placement.c)
target_link_libraries(bench_placement PRIVATE tsr_flags tsr_parallel m)
add_test(NAME bench.placement COMMAND bench_placement 8 16 3)
set_tests_properties(bench.placement PROPERTIES LABELS bench TIMEOUT 60)
