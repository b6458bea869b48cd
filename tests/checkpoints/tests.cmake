add_library(tsr_state_fixture STATIC checkpoints/state_fixture.c)
target_link_libraries(tsr_state_fixture PUBLIC tsr_checkpoints)

tsr_add_unit_test(checkpoints.save_load
  SOURCES checkpoints/test_save_load.c
  LIBS tsr_state_fixture)
foreach(topic damage disk)
  tsr_add_unit_test(checkpoints.${topic}
    SOURCES checkpoints/test_${topic}.c
    LIBS tsr_state_fixture)
endforeach()

tsr_add_unit_test(checkpoints.kill
  SOURCES checkpoints/test_kill.c
  LIBS tsr_state_fixture
  ARGS a_new_step)
foreach(topic a_new_step_that_drops_the_old the_same_step_again)
  add_test(NAME checkpoints.kill.${topic} COMMAND test_checkpoints_kill ${topic})
  set_tests_properties(checkpoints.kill.${topic} PROPERTIES LABELS unit TIMEOUT 60)
endforeach()

tsr_add_unit_test(checkpoints.hostile
  SOURCES checkpoints/test_hostile.c
  LIBS tsr_state_fixture tsr_dep_hdf5 tsr_dep_xxhash MPI::MPI_C)

tsr_add_mpi_test(checkpoints.layouts
  SOURCES checkpoints/test_layouts.c
  LIBS tsr_state_fixture
  RANKS 1 2 3 4)

tsr_add_mpi_test(checkpoints.meshes
  SOURCES checkpoints/test_meshes.c
  LIBS tsr_state_fixture tsr_optim_fixture
  RANKS 1 2 3 4)

add_executable(write_checkpoint checkpoints/write_checkpoint.c)
target_link_libraries(write_checkpoint PRIVATE tsr_flags tsr_state_fixture MPI::MPI_C m)
# Debian's own Python: the one that python3-h5py installs for
add_test(NAME checkpoints.h5py COMMAND /usr/bin/python3
  ${CMAKE_CURRENT_SOURCE_DIR}/checkpoints/test_h5py.py $<TARGET_FILE:write_checkpoint>
  ${MPIEXEC_EXECUTABLE} ${MPIEXEC_PREFLAGS} ${MPIEXEC_NUMPROC_FLAG})
set_tests_properties(checkpoints.h5py PROPERTIES LABELS mpi TIMEOUT 60 PROCESSORS 3
  SKIP_RETURN_CODE 77 ENVIRONMENT "${TSR_MPI_ENVIRONMENT}")
