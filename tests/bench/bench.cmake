# Benchmarks, run by hand; CTest runs each once at toy size so that none rots.
include(bench/checkpoint.cmake OPTIONAL)
include(bench/comm.cmake OPTIONAL)
include(bench/ops.cmake OPTIONAL)
