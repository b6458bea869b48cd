# Operators of the cuda device on the emulated GPU, against cpu:plain.
foreach(topic device ends layers route vectors)
  tsr_add_unit_test(cuda.${topic} SOURCES cuda/test_${topic}.c
    LIBS tessera_cuda_emulated tsr_runtime)
  target_include_directories(test_cuda_${topic} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  set_tests_properties(cuda.${topic} PROPERTIES LABELS "unit;emulated")
endforeach()
include(cuda/gemm.cmake OPTIONAL)
include(cuda/attention.cmake OPTIONAL)
include(cuda/comm.cmake OPTIONAL)
include(cuda/wheels.cmake)
