# Benchmarks, run by hand; CTest runs each once at toy size so that none rots.
include(bench/checkpoint.cmake)
include(bench/comm.cmake)
include(bench/placement.cmake)
include(bench/program.cmake)
include(bench/sparse.cmake)
