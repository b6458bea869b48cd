typedef int tsr_optim_placeholder;
