# Attention on the emulated GPU; the test speaks to the fake of cuDNN as well.
tsr_add_unit_test(cuda.attention SOURCES cuda/test_cuda_attention.c
  LIBS tessera_cuda_emulated tsr_runtime)
target_include_directories(test_cuda_attention SYSTEM PRIVATE
  ${CUDAToolkit_INCLUDE_DIRS} ${TSR_CUDNN_INCLUDE})
set_tests_properties(cuda.attention PROPERTIES LABELS emulated)
