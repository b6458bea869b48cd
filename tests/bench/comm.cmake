add_executable(bench_comm bench/bench_comm.c)
target_link_libraries(bench_comm PRIVATE tsr_flags tsr_collectives MPI::MPI_C)
add_test(NAME bench.comm COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} 2 ${MPIEXEC_PREFLAGS}
  $<TARGET_FILE:bench_comm> 0.5 3)
set_tests_properties(bench.comm PROPERTIES LABELS bench TIMEOUT 60 PROCESSORS 2
  ENVIRONMENT "${TSR_MPI_ENVIRONMENT}")
