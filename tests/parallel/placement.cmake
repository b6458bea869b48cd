# Placement: plans of every policy, loads, and what the cost model says of them.
tsr_add_unit_test(parallel.placement SOURCES parallel/test_placement.c LIBS tsr_parallel)
