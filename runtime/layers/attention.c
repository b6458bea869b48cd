#include "runtime/layers.h"

#include <math.h>

typedef struct attention_layer {
    tsr_layer base; /* first */
    tsr_linear qkv, o;
    tsr_linear q, kv; /* the two parts of qkv, when keys and values go to a cache */
    int norm_param, q_param, k_param, o_param;
    int heads, kv_heads, head_dim;
} attention_layer;

/* Byte offsets. T tokens, D hidden_size, Q and KV the widths of all heads of a kind. */
typedef struct saved_parts {
    size_t x;    /* [T,D] dtype: the normed input */
    size_t rstd; /* [T] f32 */
    size_t qkv;  /* [T,Q+2KV] dtype, rotated; with a cache [T,Q] */
    size_t out;  /* [T,Q] dtype: before the o projection */
    size_t lse;  /* [B,heads,S] f32 */
    size_t bytes;
} saved_parts;

/* Backward only. */
typedef struct work_parts {
    size_t dy;   /* [T,D] dtype: gradient of the output */
    size_t dout; /* [T,Q] dtype */
    size_t dqkv; /* [T,Q+2KV] dtype */
    size_t dx;   /* [T,D] f32: gradient of x */
    size_t bytes;
} work_parts;

static int64_t qkv_width(const tsr_model_config *c)
{
    return (c->num_attention_heads + 2 * c->num_key_value_heads) * c->head_dim;
}

static saved_parts saved_layout(const tsr_model_config *c, tsr_dtype dtype, int64_t tokens)
{
    const size_t element = tsr_dtype_bytes(dtype);
    saved_parts at = {0};

    at.x = tsr_place(&at.bytes, tokens * c->hidden_size, element);
    at.rstd = tsr_place(&at.bytes, tokens, sizeof(float));
    at.qkv = tsr_place(&at.bytes, tokens * qkv_width(c), element);
    at.out = tsr_place(&at.bytes, tokens * c->num_attention_heads * c->head_dim, element);
    at.lse = tsr_place(&at.bytes, tokens * c->num_attention_heads, sizeof(float));
    return at;
}

static work_parts work_layout(const tsr_model_config *c, tsr_dtype dtype, int64_t tokens)
{
    const size_t element = tsr_dtype_bytes(dtype);
    work_parts at = {0};

    at.dy = tsr_place(&at.bytes, tokens * c->hidden_size, element);
    at.dout = tsr_place(&at.bytes, tokens * c->num_attention_heads * c->head_dim, element);
    at.dqkv = tsr_place(&at.bytes, tokens * qkv_width(c), element);
    at.dx = tsr_place(&at.bytes, tokens * c->hidden_size, sizeof(float));
    return at;
}

tsr_layer_bytes tsr_attention_layer_bytes(const tsr_layer_spec *spec)
{
    const int64_t tokens = spec->max_batch * spec->seq;

    return (tsr_layer_bytes){
        .saved = saved_layout(spec->config, spec->dtype, tokens).bytes,
        .work = spec->train ? work_layout(spec->config, spec->dtype, tokens).bytes : 0};
}

static tsr_rmsnorm_args norm_args(const attention_layer *self, const tsr_pass *pass,
                                  const float *h_in, const saved_parts *at, void *saved)
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

static tsr_status rotate(const attention_layer *self, const tsr_pass *pass, void *rows,
                         int64_t row_stride, int heads, bool inverse)
{
    const tsr_rope_args args = {.x = rows,
                                .cosine = pass->rope->cosine,
                                .sine = pass->rope->sine,
                                .tokens = tsr_pass_tokens(pass),
                                .seq_len = pass->seq,
                                .first_position = pass->first_position,
                                .row_stride = row_stride,
                                .heads = heads,
                                .head_dim = self->head_dim,
                                .inverse = inverse,
                                .dtype = pass->dtype};

    return tsr_op_rope(pass->device, &args, pass->stream);
}

/* q, k and v side by side in the rows of qkv; keys as long as queries. */
static tsr_attention_args attention_args(const attention_layer *self, int64_t batch, int64_t seq,
                                         tsr_dtype dtype, const void *qkv)
{
    const size_t element = tsr_dtype_bytes(dtype);
    const int64_t q_width = self->q.out, width = self->qkv.out;
    const char *q = qkv;

    return (tsr_attention_args){
        .q = q,
        .k = qkv == NULL ? NULL : q + (size_t)q_width * element,
        .v = qkv == NULL ? NULL : q + (size_t)(q_width + self->kv.out / 2) * element,
        .batch = batch,
        .q_len = seq,
        .kv_len = seq,
        .q_stride = width,
        .kv_stride = width,
        .out_stride = q_width,
        .q_batch_stride = seq * width,
        .kv_batch_stride = seq * width,
        .out_batch_stride = seq * q_width,
        .heads = self->heads,
        .kv_heads = self->kv_heads,
        .head_dim = self->head_dim,
        .scale = 1.0f / sqrtf((float)self->head_dim),
        .dtype = dtype};
}

static tsr_status attend(const attention_layer *self, const tsr_pass *pass, const saved_parts *at,
                         void *saved)
{
    void *qkv = tsr_place_at(saved, at->qkv);
    tsr_attention_args args = attention_args(self, pass->batch, pass->seq, pass->dtype, qkv);

    args.out = tsr_place_at(saved, at->out);
    args.lse = tsr_place_at(saved, at->lse);
    TSR_TRY(tsr_linear_forward(&self->qkv, pass, tsr_pass_tokens(pass), tsr_place_at(saved, at->x),
                               tsr_weights_value(pass->weights, self->q_param), qkv));
    TSR_TRY(rotate(self, pass, qkv, self->qkv.out, self->heads + self->kv_heads, false));
    return tsr_op_attention_forward(pass->device, &args, pass->stream);
}

/* New keys and values are projected straight into their rows of the cache. */
static tsr_status attend_with_cache(const attention_layer *self, const tsr_pass *pass,
                                    const saved_parts *at, void *saved)
{
    const tsr_kv_cache *cache = pass->cache;
    const int64_t tokens = tsr_pass_tokens(pass), kv_width = self->kv.out;
    const size_t row_bytes = (size_t)kv_width * tsr_dtype_bytes(pass->dtype);
    char *keys =
        (char *)cache->keys_values + (size_t)(self->base.index * cache->max_len) * row_bytes;
    void *fresh = keys + (size_t)cache->length * row_bytes;
    void *q = tsr_place_at(saved, at->qkv), *x = tsr_place_at(saved, at->x);
    tsr_attention_args args = attention_args(self, 1, tokens, pass->dtype, NULL);

    TSR_CHECK(pass->batch == 1 && cache->length + tokens <= cache->max_len, TSR_ERR_ARG,
              "%lld sequences, %lld + %lld positions: the cache holds one of %lld",
              (long long)pass->batch, (long long)cache->length, (long long)tokens,
              (long long)cache->max_len);
    args.q = q;
    args.k = keys;
    args.v = keys + row_bytes / 2;
    args.out = tsr_place_at(saved, at->out);
    args.kv_len = cache->length + tokens;
    args.q_stride = self->q.out;
    args.q_batch_stride = tokens * self->q.out;
    args.kv_stride = kv_width;
    args.kv_batch_stride = args.kv_len * kv_width;
    TSR_TRY(tsr_linear_forward(&self->q, pass, tokens, x,
                               tsr_weights_value(pass->weights, self->q_param), q));
    TSR_TRY(tsr_linear_forward(&self->kv, pass, tokens, x,
                               tsr_weights_value(pass->weights, self->k_param), fresh));
    TSR_TRY(rotate(self, pass, q, self->q.out, self->heads, false));
    TSR_TRY(rotate(self, pass, fresh, kv_width, self->kv_heads, false));
    /* Lengths are not known before: here the device may still grow its scratch. */
    TSR_TRY(tsr_op_attention_reserve(pass->device, &args));
    return tsr_op_attention_forward(pass->device, &args, pass->stream);
}

static tsr_status attention_forward(tsr_layer *layer, const tsr_pass *pass, const float *h_in,
                                    void *saved, void *work, float *h_out)
{
    const attention_layer *self = (const attention_layer *)layer;
    const int64_t tokens = tsr_pass_tokens(pass);
    const saved_parts at = saved_layout(layer->config, pass->dtype, tokens);
    const tsr_rmsnorm_args norm = norm_args(self, pass, h_in, &at, saved);

    (void)work;
    TSR_CHECK(pass->first_position + pass->seq <= pass->rope->positions, TSR_ERR_ARG,
              "position %lld, the table of rotations has %lld",
              (long long)(pass->first_position + pass->seq - 1), (long long)pass->rope->positions);
    TSR_TRY(tsr_op_rmsnorm_forward(pass->device, &norm, pass->stream));
    TSR_TRY(pass->cache == NULL ? attend(self, pass, &at, saved)
                                : attend_with_cache(self, pass, &at, saved));
    if (h_out != h_in) {
        TSR_TRY(tsr_device_copy(pass->device, h_out, h_in,
                                (size_t)(tokens * layer->config->hidden_size) * sizeof(float),
                                TSR_COPY_ON_DEVICE, pass->stream));
    }
    return tsr_linear_forward(&self->o, pass, tokens, tsr_place_at(saved, at.out),
                              tsr_weights_value(pass->weights, self->o_param), h_out);
}

static tsr_status attention_backward_input(tsr_layer *layer, const tsr_pass *pass,
                                           const float *h_in, void *saved, void *work, float *dh)
{
    const attention_layer *self = (const attention_layer *)layer;
    const int64_t tokens = tsr_pass_tokens(pass);
    const saved_parts at = saved_layout(layer->config, pass->dtype, tokens);
    const work_parts in = work_layout(layer->config, pass->dtype, tokens);
    const size_t element = tsr_dtype_bytes(pass->dtype);
    tsr_rmsnorm_args norm = norm_args(self, pass, h_in, &at, saved);
    tsr_attention_args args =
        attention_args(self, pass->batch, pass->seq, pass->dtype, tsr_place_at(saved, at.qkv));
    char *dqkv = tsr_place_at(work, in.dqkv);
    void *dy = tsr_place_at(work, in.dy);

    args.out = tsr_place_at(saved, at.out);
    args.lse = tsr_place_at(saved, at.lse);
    args.dout = tsr_place_at(work, in.dout);
    args.dq = dqkv;
    args.dk = dqkv + (size_t)self->q.out * element;
    args.dv = dqkv + (size_t)(self->q.out + self->kv.out / 2) * element;
    norm.dy = tsr_place_at(work, in.dx);
    norm.dx = dh;
    TSR_TRY(tsr_op_convert(pass->device, dh, TSR_F32, dy, pass->dtype,
                           tokens * layer->config->hidden_size, pass->stream));
    TSR_TRY(tsr_linear_backward_input(&self->o, pass, tokens, dy,
                                      tsr_weights_value(pass->weights, self->o_param),
                                      tsr_place_at(work, in.dout)));
    TSR_TRY(tsr_op_attention_backward(pass->device, &args, pass->stream));
    TSR_TRY(rotate(self, pass, dqkv, self->qkv.out, self->heads + self->kv_heads, true));
    TSR_TRY(tsr_linear_backward_input(&self->qkv, pass, tokens, dqkv,
                                      tsr_weights_value(pass->weights, self->q_param),
                                      tsr_place_at(work, in.dx)));
    return tsr_op_rmsnorm_backward_input(pass->device, &norm, pass->stream);
}

static tsr_status attention_backward_weight(tsr_layer *layer, const tsr_pass *pass,
                                            const float *h_in, void *saved, void *work)
{
    const attention_layer *self = (const attention_layer *)layer;
    const int64_t tokens = tsr_pass_tokens(pass);
    const saved_parts at = saved_layout(layer->config, pass->dtype, tokens);
    const work_parts in = work_layout(layer->config, pass->dtype, tokens);
    tsr_rmsnorm_args norm = norm_args(self, pass, h_in, &at, saved);

    TSR_TRY(tsr_linear_backward_weight(&self->o, pass, tokens, tsr_place_at(work, in.dy),
                                       tsr_place_at(saved, at.out), pass->accumulate,
                                       tsr_weights_gradient(pass->weights, self->o_param)));
    TSR_TRY(tsr_linear_backward_weight(&self->qkv, pass, tokens, tsr_place_at(work, in.dqkv),
                                       norm.y, pass->accumulate,
                                       tsr_weights_gradient(pass->weights, self->q_param)));
    norm.dy = tsr_place_at(work, in.dx);
    norm.dweight = tsr_weights_gradient(pass->weights, self->norm_param);
    norm.accumulate = pass->accumulate;
    return tsr_op_rmsnorm_backward_weight(pass->device, &norm, pass->stream);
}

static const tsr_layer_ops attention_ops = {
    .name = "attention",
    .forward = attention_forward,
    .backward_input = attention_backward_input,
    .backward_weight = attention_backward_weight,
};

static attention_layer describe(const tsr_layer_spec *spec)
{
    const tsr_model_config *c = spec->config;
    const tsr_layer_bytes bytes = tsr_attention_layer_bytes(spec);
    const tsr_linear inward = {.in = c->hidden_size,
                               .out = qkv_width(c),
                               .dtype = spec->dtype,
                               .y_dtype = spec->dtype,
                               .dx_dtype = TSR_F32};
    attention_layer self = {
        .base = tsr_layer_base(spec, &attention_ops, bytes),
        .qkv = inward,
        .q = inward,
        .kv = inward,
        .o = {.in = c->num_attention_heads * c->head_dim,
              .out = c->hidden_size,
              .dtype = spec->dtype,
              .y_dtype = TSR_F32,
              .y_adds = true,
              .dx_dtype = spec->dtype},
        .norm_param = tsr_param_find_in_layer(spec->table, spec->index, "input_layernorm.weight"),
        .q_param = tsr_param_find_in_layer(spec->table, spec->index, "self_attn.q_proj.weight"),
        .k_param = tsr_param_find_in_layer(spec->table, spec->index, "self_attn.k_proj.weight"),
        .o_param = tsr_param_find_in_layer(spec->table, spec->index, "self_attn.o_proj.weight"),
        .heads = (int)c->num_attention_heads, /* the option table bounds these */
        .kv_heads = (int)c->num_key_value_heads,
        .head_dim = (int)c->head_dim,
    };

    self.q.out = c->num_attention_heads * c->head_dim;
    self.kv.out = 2 * c->num_key_value_heads * c->head_dim;
    return self;
}

tsr_status tsr_attention_layer_create(const tsr_layer_spec *spec, tsr_layer **out)
{
    const attention_layer self = describe(spec);
    const tsr_attention_args args =
        attention_args(&self, spec->max_batch, spec->seq, spec->dtype, NULL);
    void *block = NULL;

    TSR_TRY(tsr_linear_reserve(&self.qkv, spec->device, spec->max_batch, spec->seq, spec->train));
    TSR_TRY(tsr_linear_reserve(&self.o, spec->device, spec->max_batch, spec->seq, spec->train));
    TSR_TRY(tsr_op_attention_reserve(spec->device, &args));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof self, &block));
    *(attention_layer *)block = self;
    *out = block;
    return TSR_OK;
}
