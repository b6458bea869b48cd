tsr_add_unit_test(collectives.worker
  SOURCES collectives/test_worker.c
  LIBS tsr_collectives Threads::Threads)
tsr_add_mpi_test(collectives.sparse
  SOURCES collectives/test_sparse.c
  RANKS 1 2 3 4 5 8)
if(COMMAND tsr_add_nccl_test)
  tsr_add_nccl_test(collectives.sparse_nccl "mpi;emulated" collectives/test_sparse_nccl.c)
endif()

add_executable(test_collectives_sparse_lost collectives/sparse_lost.c)
target_link_libraries(test_collectives_sparse_lost PRIVATE tsr_flags tsr_collectives MPI::MPI_C)
add_test(NAME collectives.sparse_lost.np3 COMMAND ${CMAKE_COMMAND} -DSCENE=lost
  "-DCOMMAND=${MPIEXEC_EXECUTABLE};${MPIEXEC_NUMPROC_FLAG};3;${MPIEXEC_PREFLAGS};$<TARGET_FILE:test_collectives_sparse_lost>"
  -P ${CMAKE_CURRENT_LIST_DIR}/stuck.cmake)
set_tests_properties(collectives.sparse_lost.np3 PROPERTIES LABELS mpi TIMEOUT 60 PROCESSORS 3
  ENVIRONMENT "${TSR_MPI_ENVIRONMENT}")
