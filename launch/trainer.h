/* Everything one rank needs to take training steps, wired together; and the step itself.
 *
 * Knows nothing of files: samples come from a function, state goes out as a view. Used by
 * `train` and `bench step`. */
#ifndef TSR_LAUNCH_TRAINER_H
#define TSR_LAUNCH_TRAINER_H

#include "launch/settings.h"
#include "launch/world.h"

/** Give sample `index` of the run: seq_len + 1 tokens. */
typedef tsr_status trainer_source(void *context, int64_t index, int32_t *tokens_out);

/** How a layer's tokens were spread over the ranks of its experts, replicas taken together. */
typedef struct layer_balance {
    double before;     /* largest over mean load of ranks, were each expert computed by its owner */
    double after;      /* as it was computed */
    double copies;     /* of experts beyond their owners, a micro-batch and expert group */
    double bytes;      /* moved for copies in an expert group, weights and gradients */
    double exposed_ms; /* a rank waited for copies */
} layer_balance;

enum { TRAINER_ARRAYS = 3 };

/** Bytes that the largest rank takes, by part. */
typedef struct trainer_plan {
    size_t weights, gradients, optimizer;
    size_t activations; /* and scratch, also that of operators where a device is known */
    size_t staging;     /* host memory for a checkpoint */
    size_t model;       /* all but staging */
    size_t total;
} trainer_plan;

typedef struct trainer {
    const settings *s;
    world *w;
    tsr_device *device;
    tsr_stream *stream;
    tsr_dtype dtype;
    tsr_param_table table; /* the whole model's: what checkpoints hold */
    int32_t *owner;        /* [L,E] expert rank that holds each expert */
    tsr_param_table local; /* of what this rank holds */
    tsr_weights weights;
    tsr_mesh mesh;
    tsr_comm *comm; /* of the mesh: all ranks, along the planes */
    tsr_stage *stage;
    tsr_optimizer *optimizer;
    int64_t share_begin, share_end; /* own sequences of a global batch */
    int64_t micro_batch;
    int32_t *tokens; /* [micro_batch, seq_len + 1] */
    double *totals;  /* what a step sums over ranks */
    int64_t totals_count;
    double *owner_load;     /* [ep] scratch */
    layer_balance *balance; /* [L] of the last step, NULL where experts are not spread */
    float *router_bias;     /* [L,E] host copy, NULL without experts */
    tsr_state_array arrays[TRAINER_ARRAYS]; /* what a checkpoint holds of placement */
    int array_count;
    int64_t bytes_before[TSR_TRAFFICS][TSR_LINKS];
    double peak_flops; /* measured GEMM rate of all ranks together, per second */
    double flops_per_token;
    double *room, *met;   /* [L] memory for token copies as planned, as needed: see parallel.h */
    size_t scratch_bytes; /* of operators, when all had been taken */
    trainer_plan plan;    /* by the loads seen last */
    bool has_settled;     /* a window of steps has passed since the start, or since owners moved */
    int64_t steps_here;   /* since this start */
    int64_t step, tokens_seen, data_position; /* progress; part of a checkpoint */
} trainer;

/** Plan without allocating, for loads that experts.room covers. */
TSR_NODISCARD tsr_status trainer_estimate(const settings *s, const tsr_mesh *mesh,
                                          trainer_plan *plan_out);

/** Make the mesh that the run file asks for, if the model fits it. Collective. Errors: as
 *  tsr_mesh_create(), on rank 0; the others report TSR_ERR_PEER. */
TSR_NODISCARD tsr_status trainer_open_mesh(const settings *s, const world *w, tsr_mesh *mesh_out);

/** Open the device and take all memory. Weights are not set yet. Collective. */
TSR_NODISCARD tsr_status trainer_create(trainer *t, const settings *s, world *w);
void trainer_destroy(trainer *t);

/** Measure the matrix-product rate of all ranks at once, for `share of peak`. Collective. */
TSR_NODISCARD tsr_status trainer_measure_peak(trainer *t);

/** The state as a checkpoint sees it. config_text is borrowed. */
TSR_NODISCARD tsr_status trainer_view(trainer *t, const char *config_text,
                                      tsr_state_view *view_out);
/** Take over what was loaded through such a view. Collective. */
TSR_NODISCARD tsr_status trainer_restore(trainer *t, const tsr_state_view *view);

/** What this rank adds to a step's one exchange besides its sums. */
typedef struct step_flags {
    bool wants_stop;
    tsr_ckpt_phase checkpoint;
} step_flags;

/** Parts of a step's time, in order. */
typedef enum step_part {
    STEP_FORWARD_BACKWARD = 0,
    STEP_REDUCE, /* gradients to their owners, and their norm */
    STEP_TOTALS, /* the one exchange: it waits for the slowest rank */
    STEP_UPDATE, /* optimizer, and new weights to all */
    STEP_PARTS
} step_part;

/** Word of metrics.jsonl. */
const char *step_part_name(step_part part);

/** Equal on all ranks but `ms` and `part_ms`. */
typedef struct step_result {
    double loss, aux_loss, grad_norm, lr, ms, tokens_per_s, gemm_share;
    double part_ms[STEP_PARTS];
    double expert_max_over_mean; /* of the worst layer; 0 without experts */
    int worst_layer;
    const layer_balance *balance; /* [L] of layers with experts; NULL where these are not spread.
                                     Borrowed from the trainer */
    int64_t first_layer, layers;
    int64_t resharded;                     /* experts that have other owners now: slices changed */
    int64_t tokens;                        /* of this step */
    int64_t tokens_seen;                   /* of the run so far */
    double bytes[TSR_TRAFFICS][TSR_LINKS]; /* sent by all ranks since the step before */
    double mem_bytes;                      /* peak resident and device memory of the largest rank */
    double
        held_bytes; /* for the model and its work, of the largest rank, by this process's count */
    double planned_bytes; /* for the same before this step */
    bool has_outgrown;    /* its loads needed more than was planned */
    bool is_planned_anew; /* trainer's plan is for the loads of the last steps now */
    int stop_wanted, checkpoint_written, checkpoint_failed; /* ranks */
} step_result;

/**
 * One optimizer step: micro-batches, reduction, clipping, update, router bias; new owners of
 * experts
 * where that is due and pays.
 *
 * Collective. Errors: those of the source, agreed on; TSR_ERR_RANGE when loss or gradient is not
 * finite (the update is not made); transport errors.
 */
TSR_NODISCARD tsr_status trainer_step(trainer *t, trainer_source *source, void *context,
                                      const step_flags *flags, step_result *result_out);

/** [L,E] tokens that went to each expert in the last step, of all ranks; NULL without experts.
 *  Borrowed. */
const double *trainer_counts(const trainer *t);

/** Mean loss over a reader's first windows: max_tokens / seq_len of them, at least one (0: all).
 *  Collective. */
TSR_NODISCARD tsr_status trainer_validate(trainer *t, const tsr_data *data, int64_t max_tokens,
                                          double *loss_out, int64_t *tokens_out);

#endif
