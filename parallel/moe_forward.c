#include "parallel/moe_impl.h"

#include <string.h>

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
                           .groups = (int)config->n_group,
                           .kept_groups = (int)config->topk_group,
                           (tsr_gate_kind)config->scoring_func,
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

/* Gate and choice; the figures start on their way to the host. */
static tsr_status route(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                        void *saved, const moe_work *in, void *work)
{
    const int64_t tokens = tsr_pass_tokens(pass);
    const moe_figures figures = moe_figures_layout(self->experts, pass->batch);
    void *block = tsr_place_at(saved, at->figures);
    const tsr_route_args args = moe_route_args(self, pass, at, saved);
    const float *x = NULL;

    TSR_TRY(moe_gate_input(self, pass, at, saved, in, work, &x));
    TSR_TRY(tsr_linear_forward(&self->gate, pass, tokens, x,
                               tsr_weights_value(pass->weights, self->gate_param),
                               tsr_place_at(saved, at->logits)));
    if (self->gate_bias != NULL) {
        TSR_TRY(tsr_op_add_f32(pass->device, self->gate_bias, tsr_place_at(saved, at->logits),
                               tokens * self->experts, pass->stream));
    }
    TSR_TRY(tsr_op_route_forward(pass->device, &args, pass->stream));
    if (args.z != NULL) {
        TSR_TRY(tsr_op_sum_squares(pass->device, args.z, tokens,
                                   tsr_place_at(block, figures.z_squares), pass->stream));
    }
    return tsr_device_copy(pass->device, self->figures, block, figures.bytes,
                           TSR_COPY_DEVICE_TO_HOST, pass->stream);
}

/* Order of the token copies where all experts are here. */
static tsr_status sort(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                       void *saved)
{
    const int64_t tokens = tsr_pass_tokens(pass);
    const tsr_sort_args args = {.index = tsr_place_at(saved, at->index),
                                .weight = tsr_place_at(saved, at->weight),
                                .tokens = tokens,
                                .experts = self->experts,
                                .top_k = self->top_k,
                                .max_rows = moe_max_rows(self->base.config, tokens),
                                .offsets = tsr_place_at(saved, at->offsets),
                                .row_of = tsr_place_at(saved, at->row_of),
                                .token_of = tsr_place_at(saved, at->token_of),
                                .row_weight = tsr_place_at(saved, at->row_weight)};

    return tsr_op_sort_by_expert(pass->device, &args, pass->stream);
}

/* r->copies = expert outputs of r->x. */
static tsr_status run_experts(const moe_layer *self, const tsr_pass *pass, const moe_rows *r)
{
    const tsr_swiglu_args swiglu = moe_swiglu_args(self, pass, r);

    if (moe_all_places(self) == 0) {
        return TSR_OK;
    }
    TSR_TRY(moe_permute(self, pass, r, r->x, false, r->copies));
    TSR_TRY(moe_grouped(self, pass, r, &self->gate_up, TSR_GROUPED_FORWARD, r->copies, r->gate_up));
    TSR_TRY(tsr_op_swiglu_forward(pass->device, &swiglu, pass->stream));
    return moe_grouped(self, pass, r, &self->down, TSR_GROUPED_FORWARD, r->h, r->copies);
}

/* h_out = h_in + what experts on several ranks make of the normed input x. */
static tsr_status forward_spread(moe_layer *self, const tsr_pass *pass, const void *x,
                                 const float *h_in, float *h_out)
{
    const int chunks = moe_chunks(self);
    moe_rows r = {0};

    TSR_TRY(moe_spread_bring(self, pass, 0, x));
    for (int chunk = 0; chunk < chunks; ++chunk) {
        TSR_TRY(moe_spread_bring(self, pass, chunk + 1, x));
        TSR_TRY(moe_spread_rows(self, pass, chunk, &r));
        TSR_TRY(moe_chunk_wait(self, pass, chunk, false));
        TSR_TRY(run_experts(self, pass, &r));
        TSR_TRY(moe_spread_combine(self, pass, &r, h_in, h_out));
    }
    for (int chunk = 0; chunk < chunks; ++chunk) {
        TSR_TRY(moe_chunk_wait(self, pass, chunk, true));
    }
    return TSR_OK;
}

tsr_status moe_forward(tsr_layer *layer, const tsr_pass *pass, const float *h_in, void *saved,
                       void *work, float *h_out)
{
    moe_layer *self = (moe_layer *)layer;
    const bool is_spread = self->spread != NULL;
    const int64_t tokens = tsr_pass_tokens(pass);
    const moe_saved at =
        moe_saved_layout(layer->config, pass->dtype, pass->batch, pass->seq, is_spread);
    const moe_work in = moe_work_layout(layer->config, pass->dtype, tokens, false, is_spread);
    const tsr_rmsnorm_args norm = moe_norm_args(self, pass, h_in, &at, saved);
    const moe_rows r = moe_rows_here(self, pass, &at, saved, &in, work);

    if (tokens > 0) {
        TSR_TRY(tsr_op_rmsnorm_forward(pass->device, &norm, pass->stream));
        TSR_TRY(route(self, pass, &at, saved, &in, work));
    } else {
        memset(self->figures, 0, moe_figures_layout(self->experts, 0).bytes);
    }
    if (is_spread) {
        TSR_TRY(moe_spread_plan(self, pass, &at, saved));
        TSR_TRY(forward_spread(self, pass, norm.y, h_in, h_out));
    } else {
        TSR_TRY(sort(self, pass, &at, saved));
        TSR_TRY(run_experts(self, pass, &r));
        TSR_TRY(moe_unpermute(self, pass, &r, h_in, h_out));
    }
    if (!self->has_shared || tokens == 0) {
        return TSR_OK;
    }
    return tsr_feed_forward_forward(&self->shared, pass, norm.y,
                                    tsr_place_at(saved, at.shared_gate_up),
                                    tsr_place_at(work, in.shared_h), h_out);
}
