target_sources(tsr_runtime PRIVATE
  data/data.c
  data/file.c
  data/index.c
  data/options.c)
