/* optim: AdamW over sharded state, clipping, learning-rate schedules, router bias update.
 *
 * Each rank of a parameter's group owns a contiguous part of its flat buffer, cut between rows
 * (ZeRO stage 1: Rajbhandari et al. 2019, arXiv:1910.02054, 5.1, with gradients reduce-scattered).
 * Knows nothing of layers, files or how gradients came to be. */
#ifndef TSR_OPTIM_H
#define TSR_OPTIM_H

#include "collectives/collectives.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Course of the learning rate after the warm-up; places in the choices of optim.schedule. */
typedef enum tsr_schedule {
    TSR_SCHEDULE_COSINE = 0,
    TSR_SCHEDULE_WSD,
    TSR_SCHEDULE_CONSTANT
} tsr_schedule;

/** Values of section [optim]. */
typedef struct tsr_optim_config {
    int name; /* 0: adamw */
    double lr, min_lr;
    int64_t warmup_steps;
    int schedule;        /* tsr_schedule */
    int64_t decay_steps; /* wsd: length of the final decay; 0: a tenth of the steps */
    double beta1, beta2, eps, weight_decay, clip_norm; /* clip_norm 0: off */
    int moments;                                       /* tsr_dtype of m and v: f32, bf16 */
} tsr_optim_config;
tsr_option_table tsr_optim_options(tsr_optim_config *config);
void tsr_optim_config_check(const tsr_optim_config *config, int64_t steps,
                            tsr_config_errors *errors);

/**
 * Learning rate of step `step` (from 1) of `steps`: linear warm-up from 0, then cosine from lr to
 * min_lr at the last step, or constant with a linear decay to min_lr in the last decay_steps (wsd:
 * Hu et al. 2024, arXiv:2404.06395), or constant.
 */
double tsr_lr_at(const tsr_optim_config *config, int64_t step, int64_t steps);

typedef struct tsr_optimizer tsr_optimizer;

/**
 * Take this rank's share of master weights and moments. With f32 compute the master weights are the
 * working copy itself; else they are separate.
 *
 * groups[g]: the communicator whose ranks share group g (borrowed). Collective on each.
 * Owns:      the state; the weights stay the caller's and must outlive it.
 * Errors:    TSR_ERR_ARG if the weights have no gradients; TSR_ERR_NOMEM, TSR_ERR_PEER.
 */
TSR_NODISCARD tsr_status tsr_optimizer_create(const tsr_optim_config *config, tsr_weights *weights,
                                              tsr_comm *const groups[TSR_GROUPS],
                                              tsr_optimizer **out);
void tsr_optimizer_destroy(tsr_optimizer **optimizer_p);

/** Bytes an optimizer takes that has part[g] of parts[g] of each group; nothing is allocated. */
size_t tsr_optimizer_bytes(const tsr_optim_config *config, const tsr_param_table *table,
                           tsr_dtype compute, const int parts[TSR_GROUPS],
                           const int part[TSR_GROUPS]);

/** Set the own shards from the seed, refresh working copies everywhere. Collective. */
TSR_NODISCARD tsr_status tsr_optimizer_init(tsr_optimizer *optimizer, uint64_t seed,
                                            tsr_stream *stream);

/** Sum gradients over their groups; each rank keeps its shard. Collective. */
TSR_NODISCARD tsr_status tsr_optimizer_reduce(tsr_optimizer *optimizer, tsr_stream *stream);

/** Sum of squares of the own shards of the reduced gradients; the caller sums over all ranks, each
 *  element of the whole table being owned by one of them. Waits for the stream. */
TSR_NODISCARD tsr_status tsr_optimizer_grad_squares(tsr_optimizer *optimizer, tsr_stream *stream,
                                                    double *squares_out);

/**
 * One step with gradients scaled by min(1, clip_norm / grad_norm), then working copies to all.
 * step counts from 1 (bias correction). Collective; waits for the stream.
 * Errors: TSR_ERR_RANGE if grad_norm is not finite, on all ranks alike, the state untouched;
 *         TSR_ERR_ARG if step < 1; those of the device and the communicators.
 */
TSR_NODISCARD tsr_status tsr_optimizer_step(tsr_optimizer *optimizer, int64_t step, double lr,
                                            double grad_norm, tsr_stream *stream);

/** The own rows and their state, as host memory: for checkpoints. Rows are numbered as in the whole
 *  table, of which the weights' table may be a share. After writing into it (load), call
 *  tsr_optimizer_refresh(). Borrowed; valid until destroy; holds the last step's values. */
TSR_NODISCARD tsr_status tsr_optimizer_slices(tsr_optimizer *optimizer,
                                              const tsr_state_slice **slices_out, int *count_out);

/** Bring state written through the slices to the device and the working copies to all ranks.
 *  Collective. */
TSR_NODISCARD tsr_status tsr_optimizer_refresh(tsr_optimizer *optimizer, tsr_stream *stream);

/**
 * b_e += rate * sign(mean load - load_e), one MoE layer a row, from the step's global counts.
 * Shapes: bias, counts [layers, experts], host memory. Rows without any count are left alone.
 * Source: DeepSeek-AI 2024, arXiv:2412.19437, section 2.1.2.
 */
void tsr_router_bias_update(float *bias, const double *counts, int64_t layers, int64_t experts,
                            double rate);

#ifdef __cplusplus
}
#endif

#endif
