#include "parallel/moe_impl.h"

tsr_rmsnorm_args moe_norm_args(const moe_layer *self, const tsr_pass *pass, const float *h_in,
                               const moe_saved *at, void *saved)
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

tsr_route_args moe_route_args(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                              void *saved)
{
    const tsr_model_config *config = self->base.config;
    const moe_figures figures = moe_figures_layout(self->experts, pass->batch);
    void *block = tsr_place_at(saved, at->figures);
    tsr_route_args args = {.logits = tsr_place_at(saved, at->logits),
                           .tokens = tsr_pass_tokens(pass),
                           .seq_len = pass->seq,
                           .experts = self->experts,
                           .top_k = self->top_k,
                           .gate = (tsr_gate_kind)config->scoring_func,
                           .aux = (tsr_aux_kind)config->router_aux_loss,
                           .renormalize = config->norm_topk_prob,
                           .scale = (float)config->routed_scaling_factor,
                           .scores = tsr_place_at(saved, at->scores),
                           .index = tsr_place_at(saved, at->index),
                           .weight = tsr_place_at(saved, at->weight),
                           .counts = tsr_place_at(block, figures.counts),
                           .balance = tsr_place_at(block, figures.balance),
                           .score_means = tsr_place_at(block, figures.score_means)};

    if (config->router_bias_update_rate > 0.0) {
        args.bias = pass->weights->router_bias + (int64_t)self->base.index * self->experts;
    }
    if (config->router_z_loss_coef > 0.0) {
        args.z = tsr_place_at(saved, at->z);
    }
    return args;
}

tsr_swiglu_args moe_swiglu_args(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                                void *saved, void *h)
{
    return (tsr_swiglu_args){.gate_up = tsr_place_at(saved, at->gate_up),
                             .row_weight = tsr_place_at(saved, at->row_weight),
                             .h = h,
                             .rows = moe_max_rows(self->base.config, tsr_pass_tokens(pass)),
                             .width = self->down.k,
                             .dtype = pass->dtype};
}

tsr_status moe_permute(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                       void *saved, const void *x, bool from_f32, void *rows)
{
    const tsr_permute_args args = {.tokens = x,
                                   .rows = rows,
                                   .token_of = tsr_place_at(saved, at->token_of),
                                   .offsets = tsr_place_at(saved, at->offsets),
                                   .experts = self->experts,
                                   .width = self->base.config->hidden_size,
                                   .from_f32 = from_f32,
                                   .dtype = pass->dtype};

    return tsr_op_permute(pass->device, &args, pass->stream);
}

tsr_status moe_unpermute(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                         void *saved, const void *rows, const float *base, float *out)
{
    const tsr_unpermute_args args = {.rows = rows,
                                     .row_of = tsr_place_at(saved, at->row_of),
                                     .base = base,
                                     .out = out,
                                     .tokens = tsr_pass_tokens(pass),
                                     .width = self->base.config->hidden_size,
                                     .top_k = self->top_k,
                                     .dtype = pass->dtype};

    return tsr_op_unpermute(pass->device, &args, pass->stream);
}

tsr_status moe_grouped(const moe_layer *self, const tsr_pass *pass, const moe_matrix *matrix,
                       tsr_grouped_pass which, const int64_t *offsets, void *x, void *y)
{
    const bool is_gradient = which == TSR_GROUPED_WGRAD;
    const tsr_grouped_gemm_args args = {
        .pass = which,
        .x = x,
        .y = y,
        .w = is_gradient ? tsr_weights_gradient(pass->weights, matrix->param)
                         : tsr_weights_value(pass->weights, matrix->param),
        .offsets = offsets,
        .max_rows = moe_max_rows(self->base.config, tsr_pass_tokens(pass)),
        .n = matrix->n,
        .k = matrix->k,
        .experts = self->experts,
        .accumulate = is_gradient && pass->accumulate,
        .dtype = pass->dtype};

    return tsr_op_grouped_gemm(pass->device, &args, pass->stream);
}

tsr_status moe_gate_input(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                          void *saved, const moe_work *in, void *work, const float **x_out)
{
    void *x = tsr_place_at(saved, at->x);

    if (pass->dtype != TSR_F32) {
        TSR_TRY(tsr_op_convert(pass->device, x, pass->dtype, tsr_place_at(work, in->x), TSR_F32,
                               tsr_pass_tokens(pass) * self->base.config->hidden_size,
                               pass->stream));
        x = tsr_place_at(work, in->x);
    }
    *x_out = x;
    return TSR_OK;
}

/* Gate, choice and order of the token copies; the figures start on their way to the host. */
static tsr_status route(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                        void *saved, const moe_work *in, void *work)
{
    const int64_t tokens = tsr_pass_tokens(pass);
    const moe_figures figures = moe_figures_layout(self->experts, pass->batch);
    void *block = tsr_place_at(saved, at->figures);
    const tsr_route_args args = moe_route_args(self, pass, at, saved);
    const float *x = NULL;
    const tsr_sort_args sort = {.index = args.index,
                                .weight = args.weight,
                                .tokens = tokens,
                                .experts = self->experts,
                                .top_k = self->top_k,
                                .max_rows = moe_max_rows(self->base.config, tokens),
                                .offsets = tsr_place_at(saved, at->offsets),
                                .row_of = tsr_place_at(saved, at->row_of),
                                .token_of = tsr_place_at(saved, at->token_of),
                                .row_weight = tsr_place_at(saved, at->row_weight)};

    TSR_TRY(moe_gate_input(self, pass, at, saved, in, work, &x));
    TSR_TRY(tsr_linear_forward(&self->gate, pass, tokens, x,
                               tsr_weights_value(pass->weights, self->gate_param),
                               tsr_place_at(saved, at->logits)));
    TSR_TRY(tsr_op_route_forward(pass->device, &args, pass->stream));
    if (args.z != NULL) {
        TSR_TRY(tsr_op_sum_squares(pass->device, args.z, tokens,
                                   tsr_place_at(block, figures.z_squares), pass->stream));
    }
    TSR_TRY(tsr_device_copy(pass->device, self->figures, block, figures.bytes,
                            TSR_COPY_DEVICE_TO_HOST, pass->stream));
    return tsr_op_sort_by_expert(pass->device, &sort, pass->stream);
}

tsr_status moe_forward(tsr_layer *layer, const tsr_pass *pass, const float *h_in, void *saved,
                       void *work, float *h_out)
{
    const moe_layer *self = (const moe_layer *)layer;
    const moe_saved at = moe_saved_layout(layer->config, pass->dtype, pass->batch, pass->seq);
    const moe_work in = moe_work_layout(layer->config, pass->dtype, tsr_pass_tokens(pass), false);
    const tsr_rmsnorm_args norm = moe_norm_args(self, pass, h_in, &at, saved);
    void *rows = tsr_place_at(work, in.rows), *h = tsr_place_at(work, in.h);
    const tsr_swiglu_args swiglu = moe_swiglu_args(self, pass, &at, saved, h);
    const int64_t *offsets = tsr_place_at(saved, at.offsets);

    TSR_TRY(tsr_op_rmsnorm_forward(pass->device, &norm, pass->stream));
    TSR_TRY(route(self, pass, &at, saved, &in, work));
    TSR_TRY(moe_permute(self, pass, &at, saved, norm.y, false, rows));
    TSR_TRY(moe_grouped(self, pass, &self->gate_up, TSR_GROUPED_FORWARD, offsets, rows,
                        tsr_place_at(saved, at.gate_up)));
    TSR_TRY(tsr_op_swiglu_forward(pass->device, &swiglu, pass->stream));
    TSR_TRY(moe_grouped(self, pass, &self->down, TSR_GROUPED_FORWARD, offsets, h, rows));
    TSR_TRY(moe_unpermute(self, pass, &at, saved, rows, h_in, h_out));
    if (!self->has_shared) {
        return TSR_OK;
    }
    return tsr_feed_forward_forward(&self->shared, pass, norm.y,
                                    tsr_place_at(saved, at.shared_gate_up),
                                    tsr_place_at(work, in.shared_h), h_out);
}
