target_sources(tsr_runtime PRIVATE
  config/nearest.c
  config/print.c
  config/read.c
  config/value.c)
