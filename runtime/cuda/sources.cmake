# What both CUDA modules are made of. Paths are relative to runtime/cuda/.
set(TSR_CUDA_SOURCES device.c) # C
set(TSR_CUDA_KERNELS)          # CUDA C++, which g++ compiles for the emulated module
set(TSR_CUDA_GPU_ONLY)         # tensor cores and inline PTX: nvcc only

# The fakes that stand in for the libraries in the emulated module. Relative to tests/emulation/.
set(TSR_CUDA_FAKES cuemu.cpp fake_cudart.c fake_memory.c fake_stream.c)

# Each part adds its own files.
include(${CMAKE_CURRENT_LIST_DIR}/kernels/sources.cmake OPTIONAL)
include(${CMAKE_CURRENT_LIST_DIR}/gemm.cmake OPTIONAL)
include(${CMAKE_CURRENT_LIST_DIR}/attention.cmake OPTIONAL)
