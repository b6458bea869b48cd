tsr_add_unit_test(optim.schedule
  SOURCES optim/test_schedule.c
  LIBS tsr_optim)
add_library(tsr_optim_fixture STATIC optim/optim_fixture.c)
target_link_libraries(tsr_optim_fixture PUBLIC tsr_optim PRIVATE m)
tsr_add_mpi_test(optim.optimizer
  SOURCES optim/test_optimizer.c
  LIBS tsr_optim_fixture
  RANKS 1 2 3 4)
