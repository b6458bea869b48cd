foreach(topic arguments attention device ends gemm memory norm own_gemm permute rng rope route status swiglu vectors)
  tsr_add_unit_test(runtime.${topic} SOURCES runtime/test_${topic}.c LIBS tsr_runtime)
  # Waiting threads sleep: on busy cores spinning makes these tests six times slower.
  set_tests_properties(runtime.${topic} PROPERTIES ENVIRONMENT OMP_WAIT_POLICY=passive)
endforeach()

# The same where oneDNN knows no bf16: operands are widened to f32.
add_test(NAME runtime.gemm.widened COMMAND test_runtime_gemm)
set_tests_properties(runtime.gemm.widened PROPERTIES LABELS unit TIMEOUT 60
  ENVIRONMENT "DNNL_MAX_CPU_ISA=AVX2;OMP_WAIT_POLICY=passive")

# The vector helpers, compiled as the kernels are: once per instruction set.
function(tsr_add_vec_test isa)
  tsr_add_unit_test(runtime.vec_${isa} SOURCES runtime/test_vec.c LIBS tsr_runtime)
  target_compile_options(test_runtime_vec_${isa} PRIVATE -O3 -fno-math-errno -fno-trapping-math
    -ffp-contract=fast ${ARGN})
endfunction()
tsr_add_vec_test(generic)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma)
  tsr_add_vec_test(avx2 -mavx2 -mfma)
  tsr_add_vec_test(avx512 ${avx512})
  tsr_add_vec_test(avx512bf16 ${avx512} -mavx512bf16)
endif()
tsr_add_unit_test(runtime.trace SOURCES ${CMAKE_CURRENT_LIST_DIR}/test_trace.c LIBS tsr_runtime Threads::Threads)
