# The model's description. Paths are relative to runtime/.
target_sources(tsr_runtime PRIVATE
  model/config.c
  model/costs.c
  model/param_table.c
  model/share.c
  model/weights.c)
