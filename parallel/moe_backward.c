#include "parallel/moe_impl.h"

/* Gradient of the gate's logits, from the weights' and the auxiliary losses'. */
static tsr_status route_backward(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                                 void *saved, const moe_work *in, void *work)
{
    const tsr_model_config *config = self->base.config;
    const float per_layer = pass->sequence_scale / (float)tsr_model_moe_layers(config);
    float *dweight = tsr_place_at(work, in->dweight);
    tsr_route_args args = moe_route_args(self, pass, at, saved);

    args.dweight = dweight;
    args.aux_factor = (float)config->router_aux_loss_coef * per_layer;
    args.z_factor = (float)config->router_z_loss_coef * per_layer / (float)pass->seq;
    args.dlogits = tsr_place_at(work, in->dlogits);
    TSR_TRY(tsr_op_gather_f32(pass->device, tsr_place_at(work, in->drow_weight),
                              tsr_place_at(saved, at->row_of), args.tokens * self->top_k, dweight,
                              pass->stream));
    return tsr_op_route_backward(pass->device, &args, pass->stream);
}

static tsr_status shared_backward_input(const moe_layer *self, const tsr_pass *pass,
                                        const moe_saved *at, void *saved, const moe_work *in,
                                        void *work, const float *dh)
{
    void *dy = tsr_place_at(work, in->shared_dy);

    TSR_TRY(tsr_op_convert(pass->device, dh, TSR_F32, dy, pass->dtype,
                           tsr_pass_tokens(pass) * self->base.config->hidden_size, pass->stream));
    return tsr_feed_forward_backward_input(
        &self->shared, pass, dy, tsr_place_at(saved, at->shared_gate_up),
        tsr_place_at(work, in->shared_h), tsr_place_at(work, in->shared_dh),
        tsr_place_at(work, in->dx));
}

tsr_status moe_backward_input(tsr_layer *layer, const tsr_pass *pass, const float *h_in,
                              void *saved, void *work, float *dh)
{
    const moe_layer *self = (const moe_layer *)layer;
    const int64_t tokens = tsr_pass_tokens(pass);
    const moe_saved at = moe_saved_layout(layer->config, pass->dtype, pass->batch, pass->seq);
    const moe_work in = moe_work_layout(layer->config, pass->dtype, tokens, true);
    const int64_t *offsets = tsr_place_at(saved, at.offsets);
    void *dy = tsr_place_at(work, in.dy), *rows = tsr_place_at(work, in.rows);
    float *dx = tsr_place_at(work, in.dx);
    tsr_rmsnorm_args norm = moe_norm_args(self, pass, h_in, &at, saved);
    tsr_swiglu_args swiglu = moe_swiglu_args(self, pass, &at, saved, tsr_place_at(work, in.h));

    swiglu.dh = tsr_place_at(work, in.dh);
    swiglu.dgate_up = tsr_place_at(saved, at.gate_up);
    swiglu.drow_weight = tsr_place_at(work, in.drow_weight);
    norm.dy = dx;
    norm.dx = dh;
    TSR_TRY(moe_permute(self, pass, &at, saved, dh, true, dy));
    TSR_TRY(moe_grouped(self, pass, &self->down, TSR_GROUPED_DGRAD, offsets,
                        tsr_place_at(work, in.dh), dy));
    TSR_TRY(tsr_op_swiglu_backward(pass->device, &swiglu, pass->stream));
    TSR_TRY(route_backward(self, pass, &at, saved, &in, work));
    /* dx starts with the gate's part, the others are added: none needs a pass of its own. */
    TSR_TRY(tsr_linear_backward_input(&self->gate, pass, tokens, tsr_place_at(work, in.dlogits),
                                      tsr_weights_value(pass->weights, self->gate_param), dx));
    if (self->has_shared) {
        TSR_TRY(shared_backward_input(self, pass, &at, saved, &in, work, dh));
    }
    TSR_TRY(
        moe_grouped(self, pass, &self->gate_up, TSR_GROUPED_DGRAD, offsets, rows, swiglu.dgate_up));
    TSR_TRY(moe_unpermute(self, pass, &at, saved, rows, dx, dx));
    return tsr_op_rmsnorm_backward_input(pass->device, &norm, pass->stream);
}

tsr_status moe_backward_weight(tsr_layer *layer, const tsr_pass *pass, const float *h_in,
                               void *saved, void *work)
{
    const moe_layer *self = (const moe_layer *)layer;
    const int64_t tokens = tsr_pass_tokens(pass);
    const moe_saved at = moe_saved_layout(layer->config, pass->dtype, pass->batch, pass->seq);
    const moe_work in = moe_work_layout(layer->config, pass->dtype, tokens, true);
    const int64_t *offsets = tsr_place_at(saved, at.offsets);
    void *rows = tsr_place_at(work, in.rows);
    tsr_rmsnorm_args norm = moe_norm_args(self, pass, h_in, &at, saved);
    const float *x = NULL;

    TSR_TRY(moe_grouped(self, pass, &self->down, TSR_GROUPED_WGRAD, offsets,
                        tsr_place_at(work, in.h), tsr_place_at(work, in.dy)));
    /* Copying the rows again is cheaper than keeping K copies of every token until now. */
    TSR_TRY(moe_permute(self, pass, &at, saved, norm.y, false, rows));
    TSR_TRY(moe_grouped(self, pass, &self->gate_up, TSR_GROUPED_WGRAD, offsets, rows,
                        tsr_place_at(saved, at.gate_up)));
    if (self->has_shared) {
        TSR_TRY(tsr_feed_forward_backward_weight(
            &self->shared, pass, norm.y, tsr_place_at(work, in.shared_dy),
            tsr_place_at(saved, at.shared_gate_up), tsr_place_at(work, in.shared_h)));
    }
    TSR_TRY(moe_gate_input(self, pass, &at, saved, &in, work, &x));
    TSR_TRY(tsr_linear_backward_weight(&self->gate, pass, tokens, tsr_place_at(work, in.dlogits), x,
                                       pass->accumulate,
                                       tsr_weights_gradient(pass->weights, self->gate_param)));
    norm.dy = tsr_place_at(work, in.dx);
    norm.dweight = tsr_weights_gradient(pass->weights, self->norm_param);
    norm.accumulate = pass->accumulate;
    return tsr_op_rmsnorm_backward_weight(pass->device, &norm, pass->stream);
}
