tsr_add_mpi_test(collectives.exchange
  SOURCES collectives/test_exchange.c
  RANKS 1 2 3 4)
tsr_add_mpi_test(collectives.comm
  SOURCES collectives/test_comm.c
  RANKS 1 2 3 4)
