#include "runtime/layers.h"

struct tsr_head {
    const tsr_model_config *config; /* borrowed */
    tsr_linear projection;
    int norm_param, projection_param;
    int64_t tile; /* tokens of one pass */
};

/* Byte offsets in work. N tokens of a tile, D hidden_size, V vocab_size. */
typedef struct work_parts {
    size_t x;       /* [N,D] dtype: the normed input */
    size_t rstd;    /* [N] f32 */
    size_t logits;  /* [N,V] f32 */
    size_t dlogits; /* [N,V] dtype; the logits themselves in f32 */
    size_t dx;      /* [N,D] f32: gradient of x */
    size_t bytes;
} work_parts;

/* About 4 MiB of logits stay in the cache; but each tile reads and writes the whole gradient of the
 * projection, which fewer than 128 tokens would not be worth. */
static int64_t tile_tokens(const tsr_layer_spec *spec)
{
    const int64_t tokens = spec->max_batch * spec->seq;
    const int64_t cached = ((int64_t)1 << 20) / spec->config->vocab_size / 16 * 16;
    const int64_t tile = cached > 128 ? cached : 128;

    return tile < tokens ? tile : tokens;
}

static work_parts work_layout(const tsr_model_config *config, tsr_dtype dtype, int64_t tile,
                              bool train)
{
    work_parts at = {0};

    at.x = tsr_place(&at.bytes, tile * config->hidden_size, tsr_dtype_bytes(dtype));
    at.rstd = tsr_place(&at.bytes, tile, sizeof(float));
    at.logits = tsr_place(&at.bytes, tile * config->vocab_size, sizeof(float));
    at.dlogits = at.logits;
    if (train) {
        if (dtype != TSR_F32) {
            at.dlogits = tsr_place(&at.bytes, tile * config->vocab_size, tsr_dtype_bytes(dtype));
        }
        at.dx = tsr_place(&at.bytes, tile * config->hidden_size, sizeof(float));
    }
    return at;
}

size_t tsr_head_work_bytes(const tsr_layer_spec *spec)
{
    return work_layout(spec->config, spec->dtype, tile_tokens(spec), spec->train).bytes;
}

/* A micro-batch is cut into full tiles and a rest: both sizes of every batch. */
static tsr_status reserve(const tsr_head *head, const tsr_layer_spec *spec)
{
    TSR_TRY(tsr_linear_reserve_tokens(&head->projection, spec->device, head->tile, spec->train));
    for (int64_t batch = 1; batch <= spec->max_batch; ++batch) {
        const int64_t rest = batch * spec->seq % head->tile;

        if (rest > 0) {
            TSR_TRY(tsr_linear_reserve_tokens(&head->projection, spec->device, rest, spec->train));
        }
    }
    return TSR_OK;
}

tsr_status tsr_head_create(const tsr_layer_spec *spec, tsr_head **out)
{
    const tsr_model_config *config = spec->config;
    const char *projection =
        config->tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
    const tsr_head head = {.config = config,
                           .projection = {.in = config->hidden_size,
                                          .out = config->vocab_size,
                                          .dtype = spec->dtype,
                                          .y_dtype = TSR_F32,
                                          .dx_dtype = TSR_F32},
                           .norm_param = tsr_param_find(spec->table, "model.norm.weight"),
                           .projection_param = tsr_param_find(spec->table, projection),
                           .tile = tile_tokens(spec)};
    void *block = NULL;

    TSR_TRY(reserve(&head, spec));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof head, &block));
    *out = block;
    **out = head;
    return TSR_OK;
}

void tsr_head_destroy(tsr_head **head_p)
{
    tsr_mem_free(*head_p);
    *head_p = NULL;
}

static tsr_rmsnorm_args norm_args(const tsr_head *head, const tsr_pass *pass, const float *h,
                                  int64_t rows, const work_parts *at, void *work)
{
    return (tsr_rmsnorm_args){.x = h,
                              .weight = tsr_weights_value(pass->weights, head->norm_param),
                              .y = tsr_place_at(work, at->x),
                              .rstd = tsr_place_at(work, at->rstd),
                              .rows = rows,
                              .width = head->config->hidden_size,
                              .eps = (float)head->config->rms_norm_eps,
                              .dtype = pass->dtype};
}

static tsr_status tile_logits(tsr_head *head, const tsr_pass *pass, const float *h, int64_t rows,
                              const work_parts *at, void *work, float *logits)
{
    const tsr_rmsnorm_args norm = norm_args(head, pass, h, rows, at, work);

    TSR_TRY(tsr_op_rmsnorm_forward(pass->device, &norm, pass->stream));
    return tsr_linear_forward(&head->projection, pass, rows, norm.y,
                              tsr_weights_value(pass->weights, head->projection_param), logits);
}

/* Gradients of one tile from its dlogits; dh is overwritten. */
static tsr_status tile_backward(tsr_head *head, const tsr_pass *pass, const float *h, int64_t rows,
                                const work_parts *at, void *work, bool accumulate, float *dh)
{
    tsr_rmsnorm_args norm = norm_args(head, pass, h, rows, at, work);
    const void *dlogits = tsr_place_at(work, at->dlogits);
    float *dx = tsr_place_at(work, at->dx);

    TSR_TRY(tsr_linear_backward_input(&head->projection, pass, rows, dlogits,
                                      tsr_weights_value(pass->weights, head->projection_param),
                                      dx));
    TSR_TRY(
        tsr_linear_backward_weight(&head->projection, pass, rows, dlogits, norm.y, accumulate,
                                   tsr_weights_gradient(pass->weights, head->projection_param)));
    norm.dy = dx;
    norm.dx = dh;
    norm.dweight = tsr_weights_gradient(pass->weights, head->norm_param);
    norm.accumulate = accumulate;
    TSR_TRY(tsr_device_zero(pass->device, dh, (size_t)(rows * norm.width) * sizeof(float),
                            pass->stream));
    TSR_TRY(tsr_op_rmsnorm_backward_input(pass->device, &norm, pass->stream));
    return tsr_op_rmsnorm_backward_weight(pass->device, &norm, pass->stream);
}

tsr_status tsr_head_loss(tsr_head *head, const tsr_pass *pass, const float *h,
                         const int32_t *target, void *work, float *token_loss, float *dh)
{
    const int64_t tokens = tsr_pass_tokens(pass), width = head->config->hidden_size;
    const work_parts at = work_layout(head->config, pass->dtype, head->tile, dh != NULL);
    int64_t first = 0;

    do { /* once without tokens too: gradients may have to be overwritten */
        const int64_t rows = tokens - first < head->tile ? tokens - first : head->tile;
        float *logits = tsr_place_at(work, at.logits);
        const tsr_cross_entropy_args loss = {.logits = logits,
                                             .target = target + first,
                                             .loss = token_loss + first,
                                             .dlogits =
                                                 dh == NULL ? NULL : tsr_place_at(work, at.dlogits),
                                             .rows = rows,
                                             .vocab = head->config->vocab_size,
                                             .grad_scale = pass->loss_scale,
                                             .dtype = pass->dtype};

        TSR_TRY(tile_logits(head, pass, h + first * width, rows, &at, work, logits));
        TSR_TRY(tsr_op_cross_entropy(pass->device, &loss, pass->stream));
        if (dh != NULL) {
            TSR_TRY(tile_backward(head, pass, h + first * width, rows, &at, work,
                                  pass->accumulate || first > 0, dh + first * width));
        }
        first += head->tile;
    } while (first < tokens);
    return TSR_OK;
}

tsr_status tsr_head_logits(tsr_head *head, const tsr_pass *pass, const float *h, int64_t rows,
                           void *work, float *logits)
{
    const work_parts at = work_layout(head->config, pass->dtype, head->tile, false);

    for (int64_t first = 0; first < rows; first += head->tile) {
        const int64_t count = rows - first < head->tile ? rows - first : head->tile;

        TSR_TRY(tile_logits(head, pass, h + first * head->config->hidden_size, count, &at, work,
                            logits + first * head->config->vocab_size));
    }
    return TSR_OK;
}
