#include "parallel/moe_impl.h"
#include "parallel/stage_impl.h"

static tsr_status create_layers(tsr_stage *stage)
{
    const tsr_stage_options *options = &stage->options;

    for (int layer = 0; layer < options->config->num_hidden_layers; ++layer) {
        const tsr_layer_spec spec = stage_layer_spec(options, layer);
        tsr_layer **pair = stage->layers + (ptrdiff_t)2 * layer;

        TSR_TRY(tsr_attention_layer_create(&spec, &pair[0]));
        TSR_TRY(tsr_model_layer_is_dense(options->config, layer)
                    ? tsr_dense_layer_create(&spec, &pair[1])
                    : tsr_moe_layer_create(&spec, stage->spread, &pair[1]));
    }
    const tsr_layer_spec head = stage_layer_spec(options, -1);
    return tsr_head_create(&head, &stage->head);
}

static tsr_status create_memory(tsr_stage *stage)
{
    const tsr_stage_options *options = &stage->options;
    const size_t token_bytes = (size_t)(options->micro_batch * options->seq_len) * sizeof(int32_t);
    void *block = NULL;

    TSR_TRY(tsr_device_alloc(options->device, TSR_MEM_ACTIVATIONS, stage->plan.activation_bytes,
                             &stage->activations));
    TSR_TRY(tsr_device_alloc(options->device, TSR_MEM_WORKSPACE, stage->plan.workspace_bytes,
                             &stage->workspace));
    TSR_TRY(
        tsr_rope_table_create(options->device, options->config, options->seq_len, &stage->rope));
    TSR_TRY(tsr_device_alloc_staging(options->device, TSR_MEM_OTHER,
                                     sizeof(double) + 2 * token_bytes, &block));
    stage->loss = block;
    stage->tokens = tsr_place_at(block, sizeof(double));
    stage->targets = tsr_place_at(block, sizeof(double) + token_bytes);
    return TSR_OK;
}

static tsr_status check_options(const tsr_stage_options *options)
{
    TSR_CHECK(options->micro_batch > 0 && options->seq_len > 0, TSR_ERR_ARG,
              "micro_batch = %lld, seq_len = %lld, both must be positive",
              (long long)options->micro_batch, (long long)options->seq_len);
    TSR_CHECK(options->micro_batch <= INT32_MAX / options->seq_len, TSR_ERR_ARG,
              "micro_batch = %lld times seq_len = %lld, at most %d tokens",
              (long long)options->micro_batch, (long long)options->seq_len, INT32_MAX);
    return TSR_OK;
}

tsr_status tsr_stage_create(const tsr_stage_options *options, const tsr_weights *weights,
                            tsr_stage **out)
{
    const int64_t sublayers = 2 * options->config->num_hidden_layers;
    tsr_stage *stage = NULL;
    tsr_status st = TSR_OK;
    void *block = NULL;

    TSR_TRY(check_options(options));
    TSR_CHECK(!options->train || weights->gradient[TSR_GROUP_DENSE] != NULL, TSR_ERR_ARG,
              "a stage that trains needs weights with gradients");
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *stage, &block));
    stage = block;
    stage->options = *options;
    stage->weights = weights;
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, sublayers, sizeof(size_t), &block),
                 err_destroy);
    stage->saved_at = block;
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, sublayers, sizeof(tsr_layer *), &block),
                 err_destroy);
    stage->layers = block;
    stage_plan_make(options, &stage->plan, stage->saved_at);
    TSR_TRY_GOTO(tsr_stream_create(options->device, &stage->stream), err_destroy);
    TSR_TRY_GOTO(create_memory(stage), err_destroy);
    if (options->expert_ranks > 1) {
        TSR_TRY_GOTO(tsr_moe_spread_create(options, &stage->spread), err_destroy);
    }
    TSR_TRY_GOTO(create_layers(stage), err_destroy);
    TSR_TRY_GOTO(tsr_stage_make_room(stage), err_destroy);
    *out = stage;
    return TSR_OK;

err_destroy:
    tsr_stage_destroy(&stage);
    return st;
}

void tsr_stage_destroy(tsr_stage **stage_p)
{
    tsr_stage *stage = *stage_p;

    if (stage == NULL) {
        return;
    }
    for (int64_t i = 0; stage->layers != NULL && i < 2 * stage->options.config->num_hidden_layers;
         ++i) {
        tsr_layer_destroy(&stage->layers[i]);
    }
    tsr_moe_spread_destroy(&stage->spread);
    tsr_head_destroy(&stage->head);
    tsr_rope_table_destroy(stage->options.device, &stage->rope);
    tsr_device_free(stage->options.device, stage->activations);
    tsr_device_free(stage->options.device, stage->workspace);
    tsr_device_free_staging(stage->options.device, stage->loss);
    tsr_stream_destroy(&stage->stream);
    tsr_mem_free(stage->layers);
    tsr_mem_free(stage->saved_at);
    tsr_mem_free(stage);
    *stage_p = NULL;
}

tsr_status tsr_stage_bytes(const tsr_stage_options *options, size_t *bytes_out)
{
    stage_plan plan = {0};

    TSR_TRY(check_options(options));
    stage_plan_make(options, &plan, NULL);
    *bytes_out = plan.activation_bytes + plan.workspace_bytes +
                 tsr_rope_table_bytes(options->config, options->seq_len);
    if (options->expert_ranks > 1) {
        *bytes_out += moe_spread_bytes(options);
    }
    return TSR_OK;
}
