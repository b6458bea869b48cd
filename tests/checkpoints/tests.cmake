add_library(tsr_state_fixture STATIC checkpoints/state_fixture.c)
target_link_libraries(tsr_state_fixture PUBLIC tsr_checkpoints)

tsr_add_unit_test(checkpoints.save_load
  SOURCES checkpoints/test_save_load.c
  LIBS tsr_state_fixture)
foreach(topic damage kill disk)
  tsr_add_unit_test(checkpoints.${topic}
    SOURCES checkpoints/test_${topic}.c
    LIBS tsr_state_fixture)
endforeach()
