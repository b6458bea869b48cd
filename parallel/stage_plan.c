#include "parallel/stage_impl.h"

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

tsr_layer_spec stage_layer_spec(const tsr_stage_options *options, int layer)
{
    return (tsr_layer_spec){.config = options->config,
                            .table = options->table,
                            .device = options->device,
                            .dtype = options->dtype,
                            .index = layer,
                            .max_batch = options->micro_batch,
                            .seq = options->seq_len,
                            .train = options->train};
}

static tsr_layer_bytes sublayer_bytes(const tsr_stage_options *options, int64_t sublayer)
{
    const tsr_layer_spec spec = stage_layer_spec(options, (int)(sublayer / 2));

    if (sublayer % 2 == 0) {
        return tsr_attention_layer_bytes(&spec);
    }
    return tsr_model_layer_is_dense(options->config, spec.index)
               ? tsr_dense_layer_bytes(&spec)
               : tsr_moe_layer_bytes(&spec, options->expert_ranks > 1);
}

/* Where each sublayer saves: all apart, one block's two parts apart, or all in one place. The whole
 * always has room for the largest part, so that evaluation can use its start. */
static size_t place_saved(const tsr_stage_options *options, size_t *saved_at)
{
    const int64_t sublayers = 2 * options->config->num_hidden_layers;
    size_t largest[2] = {0, 0}, all = 0;

    for (int64_t i = 0; i < sublayers; ++i) {
        const size_t bytes = sublayer_bytes(options, i).saved;

        largest[i % 2] = larger(largest[i % 2], bytes);
        all += bytes;
    }
    size_t next = 0;
    for (int64_t i = 0; saved_at != NULL && i < sublayers; ++i) {
        if (!options->train) {
            saved_at[i] = 0;
        } else if (options->recompute == TSR_RECOMPUTE_BLOCK) {
            saved_at[i] = i % 2 == 0 ? 0 : largest[0];
        } else {
            saved_at[i] = next;
            next += sublayer_bytes(options, i).saved;
        }
    }
    if (!options->train) {
        return larger(largest[0], largest[1]);
    }
    return options->recompute == TSR_RECOMPUTE_BLOCK ? largest[0] + largest[1] : all;
}

static int64_t hidden_buffers(const tsr_stage_options *options)
{
    const int64_t layers = options->config->num_hidden_layers;

    if (!options->train) {
        return 2;
    }
    return options->recompute == TSR_RECOMPUTE_BLOCK ? layers + 2 : 2 * layers + 1;
}

void stage_plan_make(const tsr_stage_options *options, stage_plan *plan_out, size_t *saved_at)
{
    const int64_t tokens = options->micro_batch * options->seq_len;
    const int64_t width = options->config->hidden_size;
    const tsr_layer_spec head = stage_layer_spec(options, -1);
    size_t work = tsr_head_work_bytes(&head), one = 0;
    stage_plan plan = {0};

    for (int64_t i = 0; i < 2 * options->config->num_hidden_layers; ++i) {
        work = larger(work, sublayer_bytes(options, i).work);
    }
    (void)tsr_place(&one, tokens * width, sizeof(float));
    plan.hidden_bytes = one;
    plan.hidden = tsr_place(&plan.activation_bytes, hidden_buffers(options), one);
    plan.saved = tsr_place(&plan.activation_bytes, 1, place_saved(options, saved_at));
    plan.work = tsr_place(&plan.workspace_bytes, 1, work);
    plan.dh = tsr_place(&plan.workspace_bytes, options->train ? 1 : 0, one);
    plan.tokens = tsr_place(&plan.workspace_bytes, tokens, sizeof(int32_t));
    plan.targets = tsr_place(&plan.workspace_bytes, tokens, sizeof(int32_t));
    plan.token_loss = tsr_place(&plan.workspace_bytes, tokens, sizeof(float));
    plan.loss = tsr_place(&plan.workspace_bytes, 1, sizeof(double));
    plan.logits = tsr_place(&plan.workspace_bytes, options->config->vocab_size, sizeof(float));
    *plan_out = plan;
}

float *stage_hidden(const tsr_stage *stage, stage_use use, int64_t i)
{
    const int64_t layers = stage->options.config->num_hidden_layers;
    int64_t buffer = i;

    if (use == STAGE_CACHED) {
        buffer = 0;
    } else if (use == STAGE_DISCARD) {
        buffer = i % 2;
    } else if (stage->options.recompute == TSR_RECOMPUTE_BLOCK) {
        buffer = i % 2 == 0 ? i / 2 : layers + 1; /* inside a block only one lives at a time */
    }
    return tsr_place_at(stage->activations,
                        stage->plan.hidden + (size_t)buffer * stage->plan.hidden_bytes);
}

void *stage_saved(const tsr_stage *stage, stage_use use, int64_t i)
{
    return tsr_place_at(stage->activations,
                        stage->plan.saved + (use == STAGE_KEEP ? stage->saved_at[i] : 0));
}
