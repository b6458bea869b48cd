tsr_add_unit_test(data.config SOURCES data/test_config.c LIBS tsr_runtime)
tsr_add_unit_test(data.reader SOURCES data/test_reader.c LIBS tsr_runtime)
tsr_add_unit_test(data.index SOURCES data/test_index.c LIBS tsr_runtime)

find_package(Python3 COMPONENTS Interpreter REQUIRED)
add_test(NAME data.corpus COMMAND Python3::Interpreter ${CMAKE_CURRENT_SOURCE_DIR}/data/test_corpus.py)
set_tests_properties(data.corpus PROPERTIES LABELS unit TIMEOUT 60)
