include(collectives/sparse.cmake OPTIONAL)
tsr_add_mpi_test(collectives.exchange
  SOURCES collectives/test_exchange.c
  RANKS 1 2 3 4)
tsr_add_mpi_test(collectives.comm
  SOURCES collectives/test_comm.c
  RANKS 1 2 3 4)

add_executable(test_collectives_stuck collectives/stuck.c)
target_link_libraries(test_collectives_stuck PRIVATE tsr_flags tsr_collectives MPI::MPI_C)
foreach(scene stopped late mismatch part chain apart)
  add_test(NAME collectives.stuck.${scene}.np3 COMMAND ${CMAKE_COMMAND} -DSCENE=${scene}
    "-DCOMMAND=${MPIEXEC_EXECUTABLE};${MPIEXEC_NUMPROC_FLAG};3;${MPIEXEC_PREFLAGS};$<TARGET_FILE:test_collectives_stuck>"
    -P ${CMAKE_CURRENT_LIST_DIR}/stuck.cmake)
  set_tests_properties(collectives.stuck.${scene}.np3 PROPERTIES LABELS mpi TIMEOUT 60 PROCESSORS 3
    ENVIRONMENT "${TSR_MPI_ENVIRONMENT}")
endforeach()
tsr_add_mpi_test(collectives.dispatch
  SOURCES collectives/test_dispatch.c
  RANKS 1 2 3 4 6)
tsr_add_mpi_test(collectives.planes
  SOURCES collectives/test_planes.c
  RANKS 1 2 3 4 6)
tsr_add_mpi_test(collectives.split
  SOURCES collectives/test_split.c
  LIBS Threads::Threads tsr_test_memory
  RANKS 1 2 3 4)
