# Layers. Paths are relative to runtime/.
target_sources(tsr_runtime PRIVATE
  layers/attention.c
  layers/dense.c
  layers/embedding.c
  layers/feed_forward.c
  layers/head.c
  layers/layer.c
  layers/linear.c
  layers/rope_table.c)
