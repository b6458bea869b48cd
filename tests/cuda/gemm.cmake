# Matrix products on the emulated GPU; the test speaks to the fake of cuBLASLt as well.
tsr_add_unit_test(cuda.gemm SOURCES cuda/test_cuda_gemm.c
  LIBS tessera_cuda_emulated tsr_runtime)
target_include_directories(test_cuda_gemm SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
set_tests_properties(cuda.gemm PROPERTIES LABELS emulated)
