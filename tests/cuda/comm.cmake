# Collectives on the emulated GPU, over a fake NCCL. The modules before the archives that have what
# they leave undefined.
if(TARGET tessera_nccl_emulated)
  foreach(topic comm optimizer)
    tsr_add_mpi_test(cuda.${topic} SOURCES cuda/test_cuda_${topic}.c
      LIBS tessera_nccl_emulated tessera_cuda_emulated tsr_optim tsr_collectives tsr_runtime
      RANKS 1 2 3 4)
    target_include_directories(test_cuda_${topic} SYSTEM PRIVATE
      ${CUDAToolkit_INCLUDE_DIRS} ${TSR_NCCL_INCLUDE})
    set_target_properties(test_cuda_${topic} PROPERTIES ENABLE_EXPORTS ON)
    foreach(np 1 2 3 4)
      set_tests_properties(cuda.${topic}.np${np} PROPERTIES LABELS "mpi;emulated")
    endforeach()
  endforeach()
endif()
