# Interfaces and planes: what is computed, what is chosen on this machine, and real runs over several
# hosts in network namespaces (root only).
tsr_add_unit_test(parallel.topology SOURCES parallel/test_topology.c LIBS tsr_parallel)
tsr_add_unit_test(launch.network SOURCES rig/test_network.c LIBS tsr_launch)

add_executable(rig_dispatch rig/rig_dispatch.c)
target_link_libraries(rig_dispatch PRIVATE tsr_flags tsr_launch tsr_dep_jansson)

# tsr_add_rig_test(<name> <script> <labels> <timeout> [tests of the script...])
function(tsr_add_rig_test name script labels timeout)
  add_test(NAME rig.${name} COMMAND ${Python3_EXECUTABLE}
    ${CMAKE_CURRENT_SOURCE_DIR}/rig/${script} ${ARGN})
  set_tests_properties(rig.${name} PROPERTIES LABELS "${labels}" TIMEOUT ${timeout} RUN_SERIAL TRUE
    SKIP_RETURN_CODE 77 ENVIRONMENT "${TSR_MPI_ENVIRONMENT};TESSERA=$<TARGET_FILE:tessera>;RIG_DISPATCH=$<TARGET_FILE:rig_dispatch>;MPIRUN=${MPIEXEC_EXECUTABLE}")
endfunction()

tsr_add_rig_test(jobs test_jobs.py "program" 120)
tsr_add_rig_test(training test_rig.py "rig;program" 600)
tsr_add_rig_test(timings test_rig.py "rig;long" 600 two_stage_is_timed_against_flat)
