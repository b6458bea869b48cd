# Placement: plans of every policy, loads, and what the cost model says of them.
tsr_add_unit_test(parallel.placement SOURCES parallel/test_placement.c LIBS tsr_parallel)
tsr_add_unit_test(parallel.placement_rules SOURCES parallel/test_placement_rules.c
  LIBS tsr_parallel)
tsr_add_unit_test(parallel.placement_level SOURCES parallel/test_placement_level.c
  LIBS tsr_parallel)
tsr_add_unit_test(parallel.placement_loads SOURCES parallel/test_placement_loads.c
  LIBS tsr_parallel)
tsr_add_unit_test(parallel.placement_cost SOURCES parallel/test_placement_cost.c LIBS tsr_parallel)
