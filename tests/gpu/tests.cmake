# What pack.sh carries to a machine with a GPU: the operator tests of the emulated GPU, linked so that
# they open a real one, and products and attention on random shapes.
foreach(topic ends layers route vectors random)
  if(topic STREQUAL random)
    add_executable(gpu_random gpu/test_random.c gpu/real_device.c)
  else()
    add_executable(gpu_${topic} cuda/test_${topic}.c gpu/real_device.c)
  endif()
  # The module that they open uses all of the runtime's functions.
  target_link_libraries(gpu_${topic} PRIVATE
    tsr_flags $<LINK_LIBRARY:WHOLE_ARCHIVE,tsr_runtime> tsr_dep_cmocka m)
  target_link_options(gpu_${topic} PRIVATE LINKER:--wrap=tsr_device_open)
  target_include_directories(gpu_${topic} SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
endforeach()

# The scripts themselves, without a GPU; what they pack is a release.
if(CMAKE_BUILD_TYPE STREQUAL Release)
  add_test(NAME gpu.run_emulated
    COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/gpu/test_run.sh ${CMAKE_BINARY_DIR})
  set_tests_properties(gpu.run_emulated PROPERTIES LABELS emulated TIMEOUT 300 PROCESSORS 2)
  add_test(NAME gpu.pack_check
    COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/gpu/pack.sh --build ${CMAKE_BINARY_DIR} --check)
  set_tests_properties(gpu.pack_check PROPERTIES LABELS long TIMEOUT 300 PROCESSORS 2 SKIP_RETURN_CODE 77)
endif()
