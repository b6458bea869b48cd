foreach(topic attention norm permute rope route swiglu)
  tsr_add_unit_test(runtime.${topic} SOURCES runtime/test_${topic}.c LIBS tsr_runtime)
endforeach()
