tsr_add_unit_test(data.config SOURCES data/test_config.c LIBS tsr_runtime)
tsr_add_unit_test(data.reader SOURCES data/test_reader.c LIBS tsr_runtime)
tsr_add_unit_test(data.index SOURCES data/test_index.c LIBS tsr_runtime)
