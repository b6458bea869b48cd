# The GPU modules: which of them are built, and with what. Sets TSR_CUDA_MODULE (nvcc makes it, GPUs
# run it) and TSR_CUDA_EMULATED (g++ makes it from the same sources, tests run it on the CPU; it needs
# the toolkit's headers only).

set(TSR_CUDA AUTO CACHE STRING
  "GPU modules: ON (the toolkit must be there), OFF, or AUTO: along with the tests where a toolkit is found, so that a build with TSR_TESTS=OFF never waits for nvcc")
set_property(CACHE TSR_CUDA PROPERTY STRINGS AUTO ON OFF)

set(TSR_CUDA_MODULE OFF)
set(TSR_CUDA_EMULATED OFF)
if(NOT TSR_CUDA OR (TSR_CUDA STREQUAL AUTO AND NOT TSR_TESTS))
  tsr_note("left out   CUDA: TSR_CUDA=${TSR_CUDA}, TSR_TESTS=${TSR_TESTS}")
  return()
endif()

find_package(CUDAToolkit QUIET)
if(CUDAToolkit_FOUND)
  find_path(TSR_CUDNN_INCLUDE cudnn_backend.h HINTS ${CUDAToolkit_INCLUDE_DIRS} PATH_SUFFIXES include)
  find_library(TSR_CUDNN_LIBRARY cudnn HINTS ${CUDAToolkit_LIBRARY_DIR})
endif()
if(NOT CUDAToolkit_FOUND OR NOT TSR_CUDNN_INCLUDE)
  if(NOT TSR_CUDA STREQUAL AUTO)
    message(FATAL_ERROR "TSR_CUDA=ON: the CUDA toolkit with cuDNN's headers was not found; set CUDAToolkit_ROOT")
  endif()
  tsr_note("not found  CUDA toolkit with cuDNN: no GPU modules, no emulated tests")
  return()
endif()

if(NOT TSR_CUDA STREQUAL AUTO OR
   (CMAKE_BUILD_TYPE STREQUAL Release AND TSR_CUDNN_LIBRARY AND TARGET CUDA::cublasLt))
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 100-real)
  if(NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
  endif()
  enable_language(CXX)
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 17)
  set(TSR_CUDA_MODULE ON)
  tsr_note("found      CUDA ${CUDAToolkit_VERSION}: libtessera_cuda.so for sm_80, sm_90a, sm_100")
endif()
if(TSR_TESTS AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  enable_language(CXX)
  set(CMAKE_CXX_STANDARD 17)
  set(CMAKE_CXX_EXTENSIONS OFF)
  set(TSR_CUDA_EMULATED ON)
  tsr_note("found      CUDA ${CUDAToolkit_VERSION} headers: libtessera_cuda_emulated.so for the tests")
endif()
