/* Benchmarks of the program: each returns an exit code; see tessera bench --help. */
#ifndef TSR_LAUNCH_BENCH_H
#define TSR_LAUNCH_BENCH_H

#include "launch/cli.h"
#include "launch/world.h"

/** Steps of the run file's model on random tokens. */
TSR_NODISCARD tsr_status bench_step(const cli_values *values, world *w);

/** Hot operators of the device against their plain twins, then timed. */
TSR_NODISCARD tsr_status bench_ops(const cli_values *values, world *w);

/** Collectives, dispatch and copies of experts between these ranks. */
TSR_NODISCARD tsr_status bench_comm(const cli_values *values, world *w);

/** Policies of expert placement under uneven loads: on these ranks, or by the cost model. */
TSR_NODISCARD tsr_status bench_imbalance(const cli_values *values, world *w);
TSR_NODISCARD tsr_status bench_imbalance_real(const cli_values *values, world *w);

/** A trainer_source: random tokens; context is the settings. */
TSR_NODISCARD tsr_status bench_random_sample(void *context, int64_t index, int32_t *tokens_out);

/** Median of count values; sorts them. */
double bench_median(double *values, int count);

#endif
