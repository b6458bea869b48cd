target_sources(tsr_collectives PRIVATE
  worker.c
  sparse/holding.c
  sparse/plan.c
  sparse/rounds.c
  sparse/sparse.c
  sparse/tree.c)
