/* What the experts of a layer do with the token copies that are here. */
#include "parallel/moe_impl.h"

moe_rows moe_rows_here(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                       void *saved, const moe_work *in, void *work)
{
    const int64_t tokens = tsr_pass_tokens(pass);

    return (moe_rows){.units = tokens,
                      .rows = moe_max_rows(self->base.config, tokens),
                      .x = tsr_place_at(saved, at->x),
                      .offsets = tsr_place_at(saved, at->offsets),
                      .token_of = tsr_place_at(saved, at->token_of),
                      .row_of = tsr_place_at(saved, at->row_of),
                      .row_weight = tsr_place_at(saved, at->row_weight),
                      .gate_up = tsr_place_at(saved, at->gate_up),
                      .copies = tsr_place_at(work, in->rows),
                      .h = tsr_place_at(work, in->h),
                      .dy = tsr_place_at(work, in->dy),
                      .dh = tsr_place_at(work, in->dh),
                      .drow_weight = tsr_place_at(work, in->drow_weight)};
}

tsr_swiglu_args moe_swiglu_args(const moe_layer *self, const tsr_pass *pass, const moe_rows *r)
{
    return (tsr_swiglu_args){.gate_up = r->gate_up,
                             .row_weight = r->row_weight,
                             .h = r->h,
                             .rows = r->rows,
                             .width = self->down.k,
                             .dtype = pass->dtype};
}

tsr_status moe_permute(const moe_layer *self, const tsr_pass *pass, const moe_rows *r,
                       const void *units, bool from_f32, void *to)
{
    const tsr_permute_args args = {.tokens = units,
                                   .rows = to,
                                   .token_of = r->token_of,
                                   .offsets = r->offsets,
                                   .experts = moe_all_places(self),
                                   .width = self->base.config->hidden_size,
                                   .from_f32 = from_f32,
                                   .dtype = pass->dtype};

    return r->rows == 0 ? TSR_OK : tsr_op_permute(pass->device, &args, pass->stream);
}

tsr_status moe_unpermute(const moe_layer *self, const tsr_pass *pass, const moe_rows *r,
                         const float *base, float *out)
{
    const tsr_unpermute_args args = {.rows = r->copies,
                                     .row_of = r->row_of,
                                     .base = base,
                                     .out = out,
                                     .tokens = r->units,
                                     .width = self->base.config->hidden_size,
                                     .top_k = self->top_k,
                                     .dtype = pass->dtype};

    return tsr_op_unpermute(pass->device, &args, pass->stream);
}

int moe_all_places(const moe_layer *self)
{
    const moe_copies *copies = self->spread != NULL ? self->spread->copies : NULL;

    return self->places + (copies != NULL ? copies->slots : 0);
}

/* The experts that are this rank's own, or the copies in its slots. */
static tsr_status run_grouped(const moe_layer *self, const tsr_pass *pass, const moe_rows *r,
                              const moe_matrix *matrix, tsr_grouped_pass which, void *x, void *y,
                              bool of_copies)
{
    const bool is_gradient = which == TSR_GROUPED_WGRAD;
    tsr_grouped_gemm_args args = {.pass = which,
                                  .x = x,
                                  .y = y,
                                  .offsets = r->offsets,
                                  .max_rows = r->rows,
                                  .n = matrix->n,
                                  .k = matrix->k,
                                  .experts = self->places,
                                  .accumulate = is_gradient && (pass->accumulate || r->chunk > 0),
                                  .dtype = pass->dtype};

    if (of_copies) {
        args.w = is_gradient ? moe_copies_gradients(self, matrix)
                             : moe_copies_weights(self, pass, matrix);
        args.offsets += self->places;
        args.experts = self->spread->copies->slots;
        args.accumulate = is_gradient && r->chunk > 0;
    } else {
        args.w = is_gradient ? tsr_weights_gradient(pass->weights, matrix->param)
                             : tsr_weights_value(pass->weights, matrix->param);
    }
    return tsr_op_grouped_gemm(pass->device, &args, pass->stream);
}

tsr_status moe_grouped(const moe_layer *self, const tsr_pass *pass, const moe_rows *r,
                       const moe_matrix *matrix, tsr_grouped_pass which, void *x, void *y)
{
    TSR_TRY(run_grouped(self, pass, r, matrix, which, x, y, false));
    return moe_all_places(self) == self->places
               ? TSR_OK
               : run_grouped(self, pass, r, matrix, which, x, y, true);
}
