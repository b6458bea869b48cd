# End-to-end tests of the program, in Python's standard library only.
find_package(Python3 REQUIRED COMPONENTS Interpreter)

function(tsr_add_program_test topic label timeout)
  add_test(NAME launch.${topic} COMMAND ${Python3_EXECUTABLE}
    ${CMAKE_CURRENT_SOURCE_DIR}/launch/test_${topic}.py)
  set_tests_properties(launch.${topic} PROPERTIES LABELS "${label}" TIMEOUT ${timeout} PROCESSORS 2
    SKIP_RETURN_CODE 77 ENVIRONMENT "${TSR_MPI_ENVIRONMENT};TESSERA=$<TARGET_FILE:tessera>;MPIRUN=${MPIEXEC_EXECUTABLE}")
endfunction()

tsr_add_program_test(cli program 180)
tsr_add_program_test(equivalence program 300)
tsr_add_program_test(meshes program 300)
tsr_add_program_test(bad_input program 300)
tsr_add_program_test(faults program 300)
tsr_add_program_test(cuda emulated 300)
tsr_add_program_test(report program 60)
tsr_add_program_test(expert_parallel program 300)
tsr_add_program_test(chunks program 300)
tsr_add_program_test(imbalance program 200)
tsr_add_program_test(placement program 300)
tsr_add_program_test(reshard program 300)
tsr_add_program_test(bench_comm program 120)
tsr_add_mpi_test(launch.threads
  SOURCES launch/test_threads.c
  LIBS tsr_launch
  RANKS 2)
tsr_add_mpi_test(launch.reshard_planes
  SOURCES launch/test_reshard_planes.c
  LIBS tsr_launch
  RANKS 4 6)
tsr_add_mpi_test(launch.memory
  SOURCES launch/test_memory.c
  LIBS tsr_launch
  RANKS 4)
