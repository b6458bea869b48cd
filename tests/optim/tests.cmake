tsr_add_unit_test(optim.schedule
  SOURCES optim/test_schedule.c
  LIBS tsr_optim)
tsr_add_mpi_test(optim.optimizer
  SOURCES optim/test_optimizer.c
  LIBS tsr_optim
  RANKS 1 2 3 4)
