# libtessera_nccl_emulated.so: the sources of libtessera_nccl.so over a fake NCCL, which goes between
# the processes of an MPI world. Needs NCCL's header.
find_path(TSR_NCCL_INCLUDE nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
if(TSR_NCCL_INCLUDE)
  set(nccl ${CMAKE_SOURCE_DIR}/collectives/nccl)
  add_library(tessera_nccl_emulated SHARED
    ${nccl}/comm_nccl.c ${nccl}/exchange.c ${nccl}/wait.c fake_nccl.c fake_nccl_run.c)
  set_target_properties(tessera_nccl_emulated PROPERTIES
    POSITION_INDEPENDENT_CODE ON LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
  target_include_directories(tessera_nccl_emulated SYSTEM PRIVATE
    ${CUDAToolkit_INCLUDE_DIRS} ${TSR_NCCL_INCLUDE})
  target_link_libraries(tessera_nccl_emulated PRIVATE tsr_flags tessera_cuda_emulated MPI::MPI_C)
endif()
