tsr_add_unit_test(data.config SOURCES data/test_config.c LIBS tsr_runtime)
