/* A whole small model as a stage, for tests. */
#ifndef TSR_TESTS_STAGE_RIG_H
#define TSR_TESTS_STAGE_RIG_H

#include "parallel/parallel.h"
#include "tests/layers/rig.h"

enum {
    STAGE_SEQ = 11,
    STAGE_BATCH = 3,
    STAGE_TOKENS = STAGE_BATCH * STAGE_SEQ,
    STAGE_WINDOWS = STAGE_BATCH * (STAGE_SEQ + 1)
};

typedef struct stage_rig {
    rig base;
    tsr_stage *stage;
    int32_t tokens[STAGE_WINDOWS];
    double counts[4 * 8]; /* [L,E] of up to 4 layers and 8 experts */
    tsr_stage_sums sums;
} stage_rig;

/** Every option at once: dense layer, shared experts, sigmoid with bias, both auxiliary losses. */
static inline tsr_model_config stage_rig_config(void)
{
    tsr_model_config c = rig_config();

    c.num_hidden_layers = 3;
    c.first_k_dense_replace = 1;
    c.n_shared_experts = 1;
    c.scoring_func = TSR_GATE_SIGMOID;
    c.router_aux_loss_coef = 0.05;
    c.router_z_loss_coef = 0.01;
    c.router_bias_update_rate = 1e-3;
    return c;
}

static inline tsr_stage_options stage_rig_options(const rig *base, int64_t micro_batch)
{
    return (tsr_stage_options){.config = &base->config,
                               .table = &base->table,
                               .device = base->device,
                               .dtype = base->dtype,
                               .micro_batch = micro_batch,
                               .seq_len = STAGE_SEQ,
                               .train = true};
}

static inline tsr_status stage_rig_open(stage_rig *r, const char *device,
                                        const tsr_model_config *config, tsr_dtype dtype,
                                        int64_t micro_batch, tsr_recompute recompute)
{
    TSR_TRY(rig_open(&r->base, device, config, dtype));
    tsr_stage_options options = stage_rig_options(&r->base, micro_batch);

    options.recompute = recompute;
    rig_tokens(&r->base, 9, STAGE_WINDOWS, r->tokens);
    r->sums.counts = r->counts;
    return tsr_stage_create(&options, &r->base.weights, &r->stage);
}

static inline void stage_rig_close(stage_rig *r)
{
    tsr_stage_destroy(&r->stage);
    rig_close(&r->base);
}

/** Sequences [first, first + batch) of the three. */
static inline tsr_status stage_rig_train(stage_rig *r, int64_t first, int64_t batch,
                                         bool accumulate)
{
    return tsr_stage_train(r->stage, r->tokens + first * (STAGE_SEQ + 1), batch, accumulate,
                           1.0f / STAGE_TOKENS, 1.0f / STAGE_BATCH, &r->sums);
}

#endif
