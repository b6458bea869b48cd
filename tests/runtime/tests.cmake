foreach(topic attention device ends gemm memory norm permute rng rope route status swiglu vectors)
  tsr_add_unit_test(runtime.${topic} SOURCES runtime/test_${topic}.c LIBS tsr_runtime)
endforeach()

# The same where oneDNN knows no bf16: operands are widened to f32.
add_test(NAME runtime.gemm.widened COMMAND test_runtime_gemm)
set_tests_properties(runtime.gemm.widened PROPERTIES LABELS unit TIMEOUT 60
  ENVIRONMENT DNNL_MAX_CPU_ISA=AVX2)
