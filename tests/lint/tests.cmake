# Linters: quick ones with label lint, those that parse every file again with label lint-slow.
find_package(Python3 COMPONENTS Interpreter REQUIRED)
set(lint ${CMAKE_CURRENT_SOURCE_DIR}/lint)
list(TRANSFORM MPI_C_INCLUDE_DIRS PREPEND -isystem OUTPUT_VARIABLE mpi_flags)
list(TRANSFORM hdf5_INCLUDE_DIRS PREPEND -isystem OUTPUT_VARIABLE hdf5_flags)

add_test(NAME lint.rules COMMAND Python3::Interpreter ${lint}/rules.py ${CMAKE_SOURCE_DIR})
add_test(NAME lint.rules_find COMMAND Python3::Interpreter -B ${lint}/test_rules.py)
add_test(NAME lint.headers COMMAND ${lint}/headers.sh ${CMAKE_SOURCE_DIR} ${mpi_flags} ${hdf5_flags})
add_test(NAME lint.format COMMAND ${lint}/format.sh ${CMAKE_SOURCE_DIR})
set_tests_properties(lint.rules lint.rules_find lint.headers lint.format PROPERTIES
  LABELS lint TIMEOUT 120)

add_test(NAME lint.cppcheck COMMAND ${lint}/cppcheck.sh ${CMAKE_BINARY_DIR})
add_test(NAME lint.clang_tidy COMMAND ${lint}/clang_tidy.sh ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
set_tests_properties(lint.cppcheck lint.clang_tidy PROPERTIES
  LABELS lint-slow TIMEOUT 900 PROCESSORS 2)
