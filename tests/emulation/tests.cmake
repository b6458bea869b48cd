# The emulator's own tests. Kernels of tests are compiled as those of the module are; a source file's
# language is a matter of the folder, and this file is included by the one above.
set_source_files_properties(emulation/planted.cu PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
add_library(tsr_planted STATIC emulation/planted.cu)
target_compile_definitions(tsr_planted PRIVATE TSR_EMULATED)
target_include_directories(tsr_planted SYSTEM PUBLIC ${CUDAToolkit_INCLUDE_DIRS})
# planted faults are for the emulator to find: no sanitizer of the preset may come first
target_compile_options(tsr_planted PRIVATE -Wall -Wextra -Wshadow -O2 -fno-sanitize=undefined
  -fsanitize=alignment -fsanitize-undefined-trap-on-error)
target_link_libraries(tsr_planted PRIVATE tsr_flags tessera_cuda_emulated)

# the module before the archive that has what it leaves undefined
tsr_add_unit_test(emulation.faults SOURCES emulation/test_faults.c
  LIBS tsr_planted tessera_cuda_emulated tsr_runtime)
set_tests_properties(emulation.faults PROPERTIES LABELS "unit;emulated")
