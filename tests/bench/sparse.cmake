add_executable(bench_sparse bench/bench_sparse.c)
target_link_libraries(bench_sparse PRIVATE tsr_flags tsr_collectives MPI::MPI_C)
add_test(NAME bench.sparse COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} 4
  ${MPIEXEC_PREFLAGS} $<TARGET_FILE:bench_sparse> 64 6 4 3 2)
set_tests_properties(bench.sparse PROPERTIES LABELS bench TIMEOUT 60 PROCESSORS 4
  ENVIRONMENT "${TSR_MPI_ENVIRONMENT}")
