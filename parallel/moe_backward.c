#include "parallel/moe_impl.h"

/* Gradient of the gate's logits, from the weights' (in work) and the auxiliary losses'. */
static tsr_status route_backward(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                                 void *saved, const moe_work *in, void *work)
{
    const tsr_model_config *config = self->base.config;
    const float per_layer = pass->sequence_scale / (float)tsr_model_moe_layers(config);
    tsr_route_args args = moe_route_args(self, pass, at, saved);

    args.dweight = tsr_place_at(work, in->dweight);
    args.aux_factor = (float)config->router_aux_loss_coef * per_layer;
    args.z_factor = (float)config->router_z_loss_coef * per_layer / (float)pass->seq;
    args.dlogits = tsr_place_at(work, in->dlogits);
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

/* r->dy -> r->drow_weight and, over the gate's and up's outputs, their gradients. */
static tsr_status down_backward(const moe_layer *self, const tsr_pass *pass, const moe_rows *r)
{
    tsr_swiglu_args swiglu = moe_swiglu_args(self, pass, r);

    swiglu.dh = r->dh;
    swiglu.dgate_up = r->gate_up;
    swiglu.drow_weight = r->drow_weight;
    TSR_TRY(moe_grouped(self, pass, r, &self->down, TSR_GROUPED_DGRAD, r->dh, r->dy));
    return tsr_op_swiglu_backward(pass->device, &swiglu, pass->stream);
}

/* dx [T,D] = the gate's and the shared experts' part of the normed input's gradient: it starts with
 * the gate's, the others are added, so that none needs a pass of its own. */
static tsr_status input_of_gate_and_shared(const moe_layer *self, const tsr_pass *pass,
                                           const moe_saved *at, void *saved, const moe_work *in,
                                           void *work, const float *dh)
{
    if (tsr_pass_tokens(pass) == 0) {
        return TSR_OK;
    }
    TSR_TRY(route_backward(self, pass, at, saved, in, work));
    TSR_TRY(tsr_linear_backward_input(
        &self->gate, pass, tsr_pass_tokens(pass), tsr_place_at(work, in->dlogits),
        tsr_weights_value(pass->weights, self->gate_param), tsr_place_at(work, in->dx)));
    return self->has_shared ? shared_backward_input(self, pass, at, saved, in, work, dh) : TSR_OK;
}

/* dweight [T,K] and, in the chunks' rows, what the gate's and up's gradients are, from dh. */
static tsr_status down_backward_spread(moe_layer *self, const tsr_pass *pass, const float *dh,
                                       float *dweight)
{
    moe_rows r = {0};

    if (self->spread->copies != NULL) {
        TSR_TRY(moe_copies_ready(self));
    }
    TSR_TRY(moe_spread_bring_gradients(self, pass, 0, dh));
    for (int chunk = 0; chunk < moe_chunks(self); ++chunk) {
        TSR_TRY(moe_spread_bring_gradients(self, pass, chunk + 1, dh));
        TSR_TRY(moe_spread_rows(self, pass, chunk, &r));
        TSR_TRY(moe_chunk_wait(self, pass, chunk, false));
        TSR_TRY(moe_permute(self, pass, &r, r.unit, false, r.dy));
        TSR_TRY(down_backward(self, pass, &r));
    }
    return moe_spread_weights(self, pass, dweight);
}

/* dx [T,D] += the experts' part of the normed input's gradient. */
static tsr_status input_of_spread(moe_layer *self, const tsr_pass *pass, float *dx)
{
    moe_rows r = {0};

    for (int chunk = 0; chunk < moe_chunks(self); ++chunk) {
        TSR_TRY(moe_spread_rows(self, pass, chunk, &r));
        TSR_TRY(
            moe_grouped(self, pass, &r, &self->gate_up, TSR_GROUPED_DGRAD, r.copies, r.gate_up));
        TSR_TRY(moe_spread_combine(self, pass, &r, dx, dx));
    }
    for (int chunk = 0; chunk < moe_chunks(self); ++chunk) {
        TSR_TRY(moe_chunk_wait(self, pass, chunk, true));
    }
    return TSR_OK;
}

/* The same two where all experts are here. */
static tsr_status down_backward_here(const moe_layer *self, const tsr_pass *pass, const moe_rows *r,
                                     const float *dh, float *dweight)
{
    TSR_TRY(moe_permute(self, pass, r, dh, true, r->dy));
    TSR_TRY(down_backward(self, pass, r));
    return tsr_op_gather_f32(pass->device, r->drow_weight, r->row_of,
                             tsr_pass_tokens(pass) * self->top_k, dweight, pass->stream);
}

static tsr_status input_here(const moe_layer *self, const tsr_pass *pass, const moe_rows *r,
                             float *dx)
{
    TSR_TRY(moe_grouped(self, pass, r, &self->gate_up, TSR_GROUPED_DGRAD, r->copies, r->gate_up));
    return moe_unpermute(self, pass, r, dx, dx);
}

tsr_status moe_backward_input(tsr_layer *layer, const tsr_pass *pass, const float *h_in,
                              void *saved, void *work, float *dh)
{
    moe_layer *self = (moe_layer *)layer;
    const bool is_spread = self->spread != NULL;
    const int64_t tokens = tsr_pass_tokens(pass);
    const moe_saved at =
        moe_saved_layout(layer->config, pass->dtype, pass->batch, pass->seq, is_spread);
    const moe_work in = moe_work_layout(layer->config, pass->dtype, tokens, true, is_spread);
    float *dx = tsr_place_at(work, in.dx), *dweight = tsr_place_at(work, in.dweight);
    tsr_rmsnorm_args norm = moe_norm_args(self, pass, h_in, &at, saved);
    const moe_rows r = moe_rows_here(self, pass, &at, saved, &in, work);

    TSR_TRY(is_spread ? down_backward_spread(self, pass, dh, dweight)
                      : down_backward_here(self, pass, &r, dh, dweight));
    TSR_TRY(input_of_gate_and_shared(self, pass, &at, saved, &in, work, dh));
    TSR_TRY(is_spread ? input_of_spread(self, pass, dx) : input_here(self, pass, &r, dx));
    norm.dy = dx;
    norm.dx = dh;
    return tokens == 0 ? TSR_OK : tsr_op_rmsnorm_backward_input(pass->device, &norm, pass->stream);
}

static tsr_status gate_and_norm_backward_weight(const moe_layer *self, const tsr_pass *pass,
                                                const float *h_in, const moe_saved *at, void *saved,
                                                const moe_work *in, void *work)
{
    tsr_rmsnorm_args norm = moe_norm_args(self, pass, h_in, at, saved);
    const float *x = NULL;

    if (self->has_shared) {
        TSR_TRY(tsr_feed_forward_backward_weight(
            &self->shared, pass, norm.y, tsr_place_at(work, in->shared_dy),
            tsr_place_at(saved, at->shared_gate_up), tsr_place_at(work, in->shared_h)));
    }
    TSR_TRY(moe_gate_input(self, pass, at, saved, in, work, &x));
    TSR_TRY(tsr_linear_backward_weight(&self->gate, pass, tsr_pass_tokens(pass),
                                       tsr_place_at(work, in->dlogits), x, pass->accumulate,
                                       tsr_weights_gradient(pass->weights, self->gate_param)));
    norm.dy = tsr_place_at(work, in->dx);
    norm.dweight = tsr_weights_gradient(pass->weights, self->norm_param);
    norm.accumulate = pass->accumulate;
    return tsr_op_rmsnorm_backward_weight(pass->device, &norm, pass->stream);
}

static tsr_status experts_backward_weight(const moe_layer *self, const tsr_pass *pass,
                                          const moe_rows *r)
{
    TSR_TRY(moe_grouped(self, pass, r, &self->down, TSR_GROUPED_WGRAD, r->h, r->dy));
    /* Copying the rows again is cheaper than keeping K copies of every token until now. */
    TSR_TRY(moe_permute(self, pass, r, r->x, false, r->copies));
    return moe_grouped(self, pass, r, &self->gate_up, TSR_GROUPED_WGRAD, r->copies, r->gate_up);
}

tsr_status moe_backward_weight(tsr_layer *layer, const tsr_pass *pass, const float *h_in,
                               void *saved, void *work)
{
    moe_layer *self = (moe_layer *)layer;
    const bool is_spread = self->spread != NULL;
    const moe_saved at =
        moe_saved_layout(layer->config, pass->dtype, pass->batch, pass->seq, is_spread);
    const moe_work in =
        moe_work_layout(layer->config, pass->dtype, tsr_pass_tokens(pass), true, is_spread);
    moe_rows r = moe_rows_here(self, pass, &at, saved, &in, work);

    if (is_spread && self->spread->copies != NULL) {
        TSR_TRY(moe_copies_gradients_sent(self)); /* the layer's before: the slots are shared */
    }
    for (int chunk = 0; chunk < moe_chunks(self); ++chunk) {
        if (is_spread) {
            TSR_TRY(moe_spread_rows(self, pass, chunk, &r));
        }
        TSR_TRY(experts_backward_weight(self, pass, &r));
    }
    return tsr_pass_tokens(pass) == 0
               ? TSR_OK
               : gate_and_norm_backward_weight(self, pass, h_in, &at, saved, &in, work);
}
