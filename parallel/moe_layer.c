#include "parallel/moe_impl.h"

int64_t moe_max_rows(const tsr_model_config *config, int64_t tokens)
{
    return tsr_padded_rows(tokens * config->num_experts_per_tok +
                           config->num_experts * (TSR_ROW_ALIGN - 1));
}

moe_figures moe_figures_layout(int64_t experts, int64_t batch)
{
    const size_t per_sequence = (size_t)(batch * experts) * sizeof(float);
    moe_figures at = {.z_squares = (size_t)experts * sizeof(int64_t)};

    at.balance = at.z_squares + sizeof(double);
    at.score_means = at.balance + per_sequence;
    at.bytes = at.score_means + per_sequence;
    return at;
}

moe_saved moe_saved_layout(const tsr_model_config *config, tsr_dtype dtype, int64_t batch,
                           int64_t seq, bool is_spread)
{
    const size_t element = tsr_dtype_bytes(dtype);
    const int64_t t = batch * seq, e = config->num_experts;
    const int64_t r = is_spread ? 0 : moe_max_rows(config, t);
    const int64_t f = config->moe_intermediate_size, k = config->num_experts_per_tok;
    moe_saved at = {0};

    at.x = tsr_place(&at.bytes, t * config->hidden_size, element);
    at.rstd = tsr_place(&at.bytes, t, sizeof(float));
    at.logits = tsr_place(&at.bytes, t * e, sizeof(float));
    at.scores = tsr_place(&at.bytes, t * e, sizeof(float));
    at.index = tsr_place(&at.bytes, t * k, sizeof(int32_t));
    at.weight = tsr_place(&at.bytes, t * k, sizeof(float));
    at.z = tsr_place(&at.bytes, t, sizeof(float));
    at.figures = tsr_place(&at.bytes, (int64_t)moe_figures_layout(e, batch).bytes, 1);
    at.offsets = tsr_place(&at.bytes, e + 1, sizeof(int64_t));
    at.row_of = tsr_place(&at.bytes, t * k, sizeof(int32_t));
    at.token_of = tsr_place(&at.bytes, r, sizeof(int32_t));
    at.row_weight = tsr_place(&at.bytes, r, sizeof(float));
    at.gate_up = tsr_place(&at.bytes, r * 2 * f, element);
    at.shared_gate_up = tsr_place(&at.bytes, t * 2 * f * config->n_shared_experts, element);
    return at;
}

moe_work moe_work_layout(const tsr_model_config *config, tsr_dtype dtype, int64_t tokens,
                         bool train, bool is_spread)
{
    const size_t element = tsr_dtype_bytes(dtype);
    const int64_t t = tokens, r = is_spread ? 0 : moe_max_rows(config, t);
    const int64_t d = config->hidden_size;
    const int64_t f = config->moe_intermediate_size, shared = f * config->n_shared_experts;
    moe_work at = {0};

    if (dtype != TSR_F32) {
        at.x = tsr_place(&at.bytes, t * d, sizeof(float));
    }
    at.rows = tsr_place(&at.bytes, r * d, element);
    at.h = tsr_place(&at.bytes, r * f, element);
    at.shared_h = tsr_place(&at.bytes, t * shared, element);
    if (train) {
        at.dy = tsr_place(&at.bytes, r * d, element);
        at.dh = tsr_place(&at.bytes, r * f, element);
        at.drow_weight = tsr_place(&at.bytes, r, sizeof(float));
        at.dweight = tsr_place(&at.bytes, t * config->num_experts_per_tok, sizeof(float));
        at.dlogits = tsr_place(&at.bytes, t * config->num_experts, sizeof(float));
        at.dx = tsr_place(&at.bytes, t * d, sizeof(float));
        if (shared > 0) {
            at.shared_dy = tsr_place(&at.bytes, t * d, element);
            at.shared_dh = tsr_place(&at.bytes, t * shared, element);
        }
    }
    return at;
}

tsr_layer_bytes tsr_moe_layer_bytes(const tsr_layer_spec *spec, bool is_spread)
{
    const int64_t tokens = spec->max_batch * spec->seq;

    return (tsr_layer_bytes){
        .saved = moe_saved_layout(spec->config, spec->dtype, spec->max_batch, spec->seq, is_spread)
                     .bytes,
        .work = moe_work_layout(spec->config, spec->dtype, tokens, spec->train, is_spread).bytes};
}

tsr_status tsr_moe_layer_stats(tsr_layer *layer, const tsr_pass *pass, tsr_moe_stats *stats_out)
{
    moe_layer *self = (moe_layer *)layer;
    const moe_figures at = moe_figures_layout(self->experts, pass->batch);
    const float *balance = tsr_place_at(self->figures, at.balance);
    const float *means = tsr_place_at(self->figures, at.score_means);
    const double *z_squares = tsr_place_at(self->figures, at.z_squares);
    double sum = 0.0;

    TSR_TRY(tsr_stream_wait(pass->stream));
    for (int64_t i = 0; i < pass->batch * self->experts; ++i) {
        sum += (double)balance[i] * (double)means[i];
    }
    *stats_out = (tsr_moe_stats){
        .balance_loss = sum * (double)self->experts,
        .z_loss = layer->config->router_z_loss_coef > 0.0 ? *z_squares : 0.0,
        .counts = tsr_place_at(self->figures, at.counts),
    };
    if (self->spread != NULL) {
        for (int chunk = 0; chunk < moe_chunks(self); ++chunk) {
            stats_out->computed += tsr_dispatch_plan_view(self->plans[chunk]).lanes;
        }
        stats_out->copies = self->copies;
        stats_out->exposed_ms = 1e-6 * (double)self->exposed_ns;
        stats_out->copy_bytes = self->moved_bytes;
        self->exposed_ns = 0;
        self->moved_bytes = 0;
    } else {
        stats_out->computed = tsr_pass_tokens(pass) * self->top_k;
    }
    return TSR_OK;
}

/* After an error a call may be under way still: it reads a layer's plan. */
static void end_copies(moe_copies *c)
{
    tsr_sparse_call *const calls[] = {&c->fetch, &c->reduce};

    for (size_t i = 0; i < sizeof calls / sizeof *calls; ++i) {
        if (tsr_sparse_wait(calls[i]) != TSR_OK) {
            tsr_log(TSR_LOG_DEBUG, "copies of experts: %s", tsr_error_message());
        }
    }
}

static void moe_destroy(tsr_layer *layer)
{
    moe_layer *self = (moe_layer *)layer;

    if (self->spread != NULL) {
        moe_beside_end(self->spread->beside);
    }
    if (self->spread != NULL && self->spread->copies != NULL) {
        end_copies(self->spread->copies);
    }
    moe_spread_close(self);
    tsr_device_free_staging(self->device, self->figures);
    tsr_mem_free(self);
}

static const tsr_layer_ops moe_ops = {
    .name = "moe",
    .forward = moe_forward,
    .backward_input = moe_backward_input,
    .backward_weight = moe_backward_weight,
    .destroy = moe_destroy,
};

static moe_layer describe(const tsr_layer_spec *spec, bool is_spread)
{
    const tsr_model_config *c = spec->config;
    const tsr_param_table *table = spec->table;
    const tsr_layer_bytes bytes = tsr_moe_layer_bytes(spec, is_spread);
    const int64_t d = c->hidden_size, f = c->moe_intermediate_size;
    moe_layer self = {
        .base = tsr_layer_base(spec, &moe_ops, bytes),
        .device = spec->device,
        .gate = {.in = d, .out = c->num_experts}, /* f32 throughout */
        .gate_up = {2 * f, d,
                    tsr_param_find_in_layer(table, spec->index, "mlp.experts.gate_up_proj")},
        .down = {d, f, tsr_param_find_in_layer(table, spec->index, "mlp.experts.down_proj")},
        .has_shared = c->n_shared_experts > 0,
        .norm_param =
            tsr_param_find_in_layer(table, spec->index, "post_attention_layernorm.weight"),
        .gate_param = tsr_param_find_in_layer(table, spec->index, "mlp.gate.weight"),
        .experts = (int)c->num_experts, /* the option table bounds these */
        .top_k = (int)c->num_experts_per_tok,
    };

    self.places = (int)table->params[self.gate_up.param].shape[0];
    if (self.has_shared) {
        self.shared =
            tsr_feed_forward_of(spec, "mlp.shared_experts.", c->n_shared_experts * f, true);
    }
    return self;
}

/* Rows that may come together here: with several ranks, all of theirs. */
static int64_t most_rows(const tsr_layer_spec *spec, const tsr_moe_spread *spread)
{
    const int64_t rows = moe_max_rows(spec->config, spec->max_batch * spec->seq);
    const int64_t all = rows * tsr_moe_spread_ranks(spread);

    return all < INT32_MAX / TSR_ROW_ALIGN ? all : INT32_MAX / TSR_ROW_ALIGN * TSR_ROW_ALIGN;
}

static tsr_status reserve_grouped(const moe_layer *self, const tsr_layer_spec *spec,
                                  const moe_matrix *matrix, int64_t rows)
{
    tsr_grouped_gemm_args args = {.pass = TSR_GROUPED_FORWARD,
                                  .max_rows = rows,
                                  .n = matrix->n,
                                  .k = matrix->k,
                                  .experts = moe_all_places(self),
                                  .dtype = spec->dtype};

    TSR_TRY(tsr_op_grouped_gemm_reserve(spec->device, &args));
    if (!spec->train) {
        return TSR_OK;
    }
    args.pass = TSR_GROUPED_DGRAD;
    TSR_TRY(tsr_op_grouped_gemm_reserve(spec->device, &args));
    args.pass = TSR_GROUPED_WGRAD;
    TSR_TRY(tsr_op_grouped_gemm_reserve(spec->device, &args));
    args.accumulate = true;
    return tsr_op_grouped_gemm_reserve(spec->device, &args);
}

tsr_status moe_layer_reserve(const moe_layer *self, const tsr_layer_spec *spec)
{
    const int64_t most = most_rows(spec, self->spread);

    TSR_TRY(reserve_grouped(self, spec, &self->gate_up, most));
    return reserve_grouped(self, spec, &self->down, most);
}

tsr_status tsr_moe_layer_create(const tsr_layer_spec *spec, tsr_moe_spread *spread, tsr_layer **out)
{
    moe_layer made = describe(spec, spread != NULL);
    const int64_t rows = moe_max_rows(spec->config, spec->max_batch * spec->seq);
    const size_t figures = moe_figures_layout(made.experts, spec->max_batch).bytes;
    tsr_status st = TSR_OK;
    void *block = NULL;

    TSR_CHECK(
        rows <= INT32_MAX, TSR_ERR_ARG,
        "%lld rows of token copies in a micro-batch, at most %d: make train.micro_batch smaller",
        (long long)rows, INT32_MAX);
    TSR_TRY(tsr_linear_reserve(&made.gate, spec->device, spec->max_batch, spec->seq, spec->train));
    made.spread = spread; /* for the number of places */
    TSR_TRY(moe_layer_reserve(&made, spec));
    if (made.has_shared) {
        TSR_TRY(tsr_feed_forward_reserve(&made.shared, spec));
    }
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof made, &block));
    moe_layer *self = block;
    *self = made;
    TSR_TRY_GOTO(tsr_device_alloc_staging(spec->device, TSR_MEM_OTHER, figures, &self->figures),
                 err_destroy);
    if (spread != NULL) {
        TSR_TRY_GOTO(moe_spread_open(self, spread), err_destroy);
    }
    *out = &self->base;
    return TSR_OK;

err_destroy:
    moe_destroy(&self->base);
    return st;
}
