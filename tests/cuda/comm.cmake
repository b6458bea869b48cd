# Collectives on the emulated GPU, over a fake NCCL, and that fake itself. The modules before the
# archives that have what they leave undefined. Where communicators end on purpose, what is dead
# leaks on purpose: sanitizers do not look for leaks there.
if(TARGET tessera_nccl_emulated)
  function(tsr_add_nccl_test name labels)
    tsr_add_mpi_test(${name} SOURCES ${ARGN}
      LIBS tessera_nccl_emulated tessera_cuda_emulated tsr_optim tsr_collectives tsr_runtime
      RANKS 1 2 3 4)
    string(REPLACE "." "_" target "test_${name}")
    target_include_directories(${target} SYSTEM PRIVATE
      ${CUDAToolkit_INCLUDE_DIRS} ${TSR_NCCL_INCLUDE})
    set_target_properties(${target} PROPERTIES ENABLE_EXPORTS ON)
    foreach(np 1 2 3 4)
      set_tests_properties(${name}.np${np} PROPERTIES LABELS "${labels}")
    endforeach()
  endfunction()
  tsr_add_nccl_test(emulation.nccl "mpi;emulated" emulation/test_fake_nccl.c)
  tsr_add_nccl_test(cuda.comm "mpi;emulated" cuda/test_cuda_comm.c cuda/comm_fixture.c)
  tsr_add_nccl_test(cuda.exchange "mpi;emulated" cuda/test_cuda_exchange.c cuda/comm_fixture.c)
  tsr_add_nccl_test(cuda.comm_faults "mpi;emulated" cuda/test_cuda_comm_faults.c cuda/comm_fixture.c)
  tsr_add_nccl_test(cuda.optimizer "mpi;emulated" cuda/test_cuda_optimizer.c optim/optim_fixture.c)
  foreach(np 1 2 3 4)
    foreach(name emulation.nccl cuda.comm_faults)
      set_property(TEST ${name}.np${np} APPEND PROPERTY ENVIRONMENT ASAN_OPTIONS=detect_leaks=0)
    endforeach()
  endforeach()
endif()
