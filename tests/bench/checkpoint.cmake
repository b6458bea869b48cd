add_executable(bench_checkpoint bench/bench_checkpoint.c)
target_link_libraries(bench_checkpoint PRIVATE tsr_flags tsr_state_fixture MPI::MPI_C m)
add_test(NAME bench.checkpoint COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} 2
  ${MPIEXEC_PREFLAGS} $<TARGET_FILE:bench_checkpoint> /tmp 1 3)
set_tests_properties(bench.checkpoint PROPERTIES LABELS bench TIMEOUT 60 PROCESSORS 2
  ENVIRONMENT "${TSR_MPI_ENVIRONMENT}")
