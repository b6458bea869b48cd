# How the libraries of a module are found in the folders of Python wheels: a chain of three, none of
# which the loader would find by itself.
function(tsr_add_wheel_library target folder name needs)
  add_library(${target} SHARED cuda/wheel_library.c)
  target_compile_definitions(${target} PRIVATE TSR_WHEEL_NAME=${name})
  set_target_properties(${target} PROPERTIES SKIP_BUILD_RPATH ON
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/${folder})
  if(needs)
    target_compile_definitions(${target} PRIVATE TSR_WHEEL_NEEDS=${needs})
    target_link_libraries(${target} PRIVATE ${needs})
  endif()
endfunction()

set(wheels site-packages/nvidia)
tsr_add_wheel_library(tsr_wheel_runtime ${wheels}/cu13/lib tsr_wheel_runtime "")
tsr_add_wheel_library(tsr_wheel_products ${wheels}/cublas/lib tsr_wheel_products tsr_wheel_runtime)
tsr_add_wheel_library(tsr_wheel_module . tsr_wheel_module tsr_wheel_products)
tsr_add_unit_test(cuda.wheels SOURCES cuda/test_wheels.c LIBS tsr_runtime
  ARGS ${CMAKE_CURRENT_BINARY_DIR}/site-packages)
set_tests_properties(cuda.wheels PROPERTIES LABELS "unit;emulated")
add_dependencies(test_cuda_wheels tsr_wheel_module)
