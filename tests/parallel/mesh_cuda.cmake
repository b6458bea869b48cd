# The mesh on the emulated GPU, over a fake NCCL. The modules before the archives that have what they
# leave undefined.
if(TARGET tessera_nccl_emulated)
  tsr_add_mpi_test(parallel.mesh_cuda SOURCES parallel/test_mesh_cuda.c
    LIBS tessera_nccl_emulated tessera_cuda_emulated tsr_parallel tsr_collectives tsr_runtime
    RANKS 1 2 3 4)
  set_target_properties(test_parallel_mesh_cuda PROPERTIES ENABLE_EXPORTS ON)
  foreach(np 1 2 3 4)
    set_tests_properties(parallel.mesh_cuda.np${np} PROPERTIES LABELS "mpi;emulated")
  endforeach()
endif()
