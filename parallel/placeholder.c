typedef int tsr_parallel_placeholder;
