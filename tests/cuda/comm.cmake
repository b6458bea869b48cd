# Collectives on the emulated GPU, over a fake NCCL, and that fake itself. The modules before the
# archives that have what they leave undefined.
if(TARGET tessera_nccl_emulated)
  function(tsr_add_nccl_test name source)
    tsr_add_mpi_test(${name} SOURCES ${source}
      LIBS tessera_nccl_emulated tessera_cuda_emulated tsr_optim tsr_collectives tsr_runtime
      RANKS 1 2 3 4)
    string(REPLACE "." "_" target "test_${name}")
    target_include_directories(${target} SYSTEM PRIVATE
      ${CUDAToolkit_INCLUDE_DIRS} ${TSR_NCCL_INCLUDE})
    set_target_properties(${target} PROPERTIES ENABLE_EXPORTS ON)
    foreach(np 1 2 3 4)
      set_tests_properties(${name}.np${np} PROPERTIES LABELS "mpi;emulated")
    endforeach()
  endfunction()
  tsr_add_nccl_test(emulation.nccl emulation/test_fake_nccl.c)
  tsr_add_nccl_test(cuda.comm cuda/test_cuda_comm.c)
  tsr_add_nccl_test(cuda.optimizer cuda/test_cuda_optimizer.c)
endif()
