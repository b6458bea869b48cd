# Attention on the emulated GPU; the test speaks to the fake of cuDNN as well.
tsr_add_unit_test(cuda.attention SOURCES cuda/test_cuda_attention.c
  LIBS tessera_cuda_emulated tsr_runtime)
target_include_directories(test_cuda_attention SYSTEM PRIVATE
  ${CUDAToolkit_INCLUDE_DIRS} ${TSR_CUDNN_INCLUDE})
set_tests_properties(cuda.attention PROPERTIES LABELS "unit;emulated")

# The real cuDNN on the same graphs; it needs no GPU to say whether it would take them. Not under the
# sanitizers, which report what it leaves behind.
if(TSR_CUDNN_LIBRARY AND NOT CMAKE_C_FLAGS_DEBUG MATCHES "sanitize")
  tsr_add_unit_test(cuda.cudnn_plans SOURCES cuda/test_cudnn_plans.c
    LIBS tsr_runtime ${TSR_CUDNN_LIBRARY} ${CMAKE_DL_LIBS})
  target_sources(test_cuda_cudnn_plans PRIVATE ${CMAKE_SOURCE_DIR}/runtime/cuda/attention_graph.c)
  target_include_directories(test_cuda_cudnn_plans SYSTEM PRIVATE
    ${CUDAToolkit_INCLUDE_DIRS} ${TSR_CUDNN_INCLUDE})
  target_compile_definitions(test_cuda_cudnn_plans PRIVATE
    TSR_CUDA_STUB="${CUDAToolkit_LIBRARY_DIR}/stubs/libcuda.so")
endif()
