#include "runtime/layers.h"

typedef struct dense_layer {
    tsr_layer base; /* first */
    tsr_feed_forward ff;
    int norm_param;
} dense_layer;

/* Byte offsets. T tokens, D hidden_size, F intermediate_size. */
typedef struct saved_parts {
    size_t x;       /* [T,D] dtype: the normed input */
    size_t rstd;    /* [T] f32 */
    size_t gate_up; /* [T,2F] dtype; its gradient after backward_input */
    size_t bytes;
} saved_parts;

typedef struct work_parts {
    size_t h;  /* [T,F] dtype */
    size_t dy; /* [T,D] dtype: gradient of the output */
    size_t dh; /* [T,F] dtype */
    size_t dx; /* [T,D] f32: gradient of x */
    size_t bytes;
} work_parts;

static saved_parts saved_layout(const tsr_model_config *config, tsr_dtype dtype, int64_t tokens)
{
    const size_t element = tsr_dtype_bytes(dtype);
    saved_parts at = {0};

    at.x = tsr_place(&at.bytes, tokens * config->hidden_size, element);
    at.rstd = tsr_place(&at.bytes, tokens, sizeof(float));
    at.gate_up = tsr_place(&at.bytes, tokens * 2 * config->intermediate_size, element);
    return at;
}

static work_parts work_layout(const tsr_model_config *config, tsr_dtype dtype, int64_t tokens,
                              bool train)
{
    const size_t element = tsr_dtype_bytes(dtype);
    work_parts at = {0};

    at.h = tsr_place(&at.bytes, tokens * config->intermediate_size, element);
    if (train) {
        at.dy = tsr_place(&at.bytes, tokens * config->hidden_size, element);
        at.dh = tsr_place(&at.bytes, tokens * config->intermediate_size, element);
        at.dx = tsr_place(&at.bytes, tokens * config->hidden_size, sizeof(float));
    }
    return at;
}

tsr_layer_bytes tsr_dense_layer_bytes(const tsr_layer_spec *spec)
{
    const int64_t tokens = spec->max_batch * spec->seq;

    return (tsr_layer_bytes){.saved = saved_layout(spec->config, spec->dtype, tokens).bytes,
                             .work =
                                 work_layout(spec->config, spec->dtype, tokens, spec->train).bytes};
}

static tsr_rmsnorm_args norm_args(const dense_layer *self, const tsr_pass *pass, const float *h_in,
                                  const saved_parts *at, void *saved)
{
    return (tsr_rmsnorm_args){.x = h_in,
                              .weight = tsr_weights_value(pass->weights, self->norm_param),
                              .y = tsr_place_at(saved, at->x),
                              .rstd = tsr_place_at(saved, at->rstd),
                              .rows = tsr_pass_tokens(pass),
                              .width = self->base.config->hidden_size,
                              .eps = (float)self->base.config->rms_norm_eps,
                              .dtype = pass->dtype};
}

static tsr_status dense_forward(tsr_layer *layer, const tsr_pass *pass, const float *h_in,
                                void *saved, void *work, float *h_out)
{
    const dense_layer *self = (const dense_layer *)layer;
    const int64_t tokens = tsr_pass_tokens(pass);
    const saved_parts at = saved_layout(layer->config, pass->dtype, tokens);
    const work_parts in = work_layout(layer->config, pass->dtype, tokens, false);
    const tsr_rmsnorm_args norm = norm_args(self, pass, h_in, &at, saved);

    TSR_TRY(tsr_op_rmsnorm_forward(pass->device, &norm, pass->stream));
    if (h_out != h_in) {
        TSR_TRY(tsr_device_copy(pass->device, h_out, h_in,
                                (size_t)(tokens * layer->config->hidden_size) * sizeof(float),
                                TSR_COPY_ON_DEVICE, pass->stream));
    }
    return tsr_feed_forward_forward(&self->ff, pass, norm.y, tsr_place_at(saved, at.gate_up),
                                    tsr_place_at(work, in.h), h_out);
}

static tsr_status dense_backward_input(tsr_layer *layer, const tsr_pass *pass, const float *h_in,
                                       void *saved, void *work, float *dh)
{
    const dense_layer *self = (const dense_layer *)layer;
    const int64_t tokens = tsr_pass_tokens(pass);
    const saved_parts at = saved_layout(layer->config, pass->dtype, tokens);
    const work_parts in = work_layout(layer->config, pass->dtype, tokens, true);
    tsr_rmsnorm_args norm = norm_args(self, pass, h_in, &at, saved);
    void *dy = tsr_place_at(work, in.dy);

    TSR_TRY(tsr_op_convert(pass->device, dh, TSR_F32, dy, pass->dtype,
                           tokens * layer->config->hidden_size, pass->stream));
    TSR_TRY(tsr_feed_forward_backward_input(&self->ff, pass, dy, tsr_place_at(saved, at.gate_up),
                                            tsr_place_at(work, in.h), tsr_place_at(work, in.dh),
                                            tsr_place_at(work, in.dx)));
    norm.dy = tsr_place_at(work, in.dx);
    norm.dx = dh;
    return tsr_op_rmsnorm_backward_input(pass->device, &norm, pass->stream);
}

static tsr_status dense_backward_weight(tsr_layer *layer, const tsr_pass *pass, const float *h_in,
                                        void *saved, void *work)
{
    const dense_layer *self = (const dense_layer *)layer;
    const int64_t tokens = tsr_pass_tokens(pass);
    const saved_parts at = saved_layout(layer->config, pass->dtype, tokens);
    const work_parts in = work_layout(layer->config, pass->dtype, tokens, true);
    tsr_rmsnorm_args norm = norm_args(self, pass, h_in, &at, saved);

    TSR_TRY(tsr_feed_forward_backward_weight(&self->ff, pass, norm.y, tsr_place_at(work, in.dy),
                                             tsr_place_at(saved, at.gate_up),
                                             tsr_place_at(work, in.h)));
    norm.dy = tsr_place_at(work, in.dx);
    norm.dweight = tsr_weights_gradient(pass->weights, self->norm_param);
    norm.accumulate = pass->accumulate;
    return tsr_op_rmsnorm_backward_weight(pass->device, &norm, pass->stream);
}

static const tsr_layer_ops dense_ops = {
    .name = "dense",
    .forward = dense_forward,
    .backward_input = dense_backward_input,
    .backward_weight = dense_backward_weight,
};

tsr_status tsr_dense_layer_create(const tsr_layer_spec *spec, tsr_layer **out)
{
    const tsr_layer_bytes bytes = tsr_dense_layer_bytes(spec);
    const tsr_feed_forward ff =
        tsr_feed_forward_of(spec, "mlp.", spec->config->intermediate_size, false);
    void *block = NULL;

    TSR_TRY(tsr_feed_forward_reserve(&ff, spec));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof(dense_layer), &block));
    dense_layer *self = block;

    *self = (dense_layer){
        .base = tsr_layer_base(spec, &dense_ops, bytes),
        .ff = ff,
        .norm_param =
            tsr_param_find_in_layer(spec->table, spec->index, "post_attention_layernorm.weight"),
    };
    *out = &self->base;
    return TSR_OK;
}
