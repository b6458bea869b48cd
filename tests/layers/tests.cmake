add_library(tsr_test_rig STATIC layers/layer_rig.c layers/rig.c)
target_link_libraries(tsr_test_rig PUBLIC tsr_runtime m)

tsr_add_unit_test(layers.param_table SOURCES layers/test_param_table.c LIBS tsr_test_rig)
tsr_add_unit_test(layers.layers SOURCES layers/test_layers.c LIBS tsr_test_rig)
