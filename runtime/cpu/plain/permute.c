/* Token copies in expert order, and their sums back in token order. */
#include "runtime/cpu/plain/plain.h"

tsr_status tsr_plain_permute(tsr_device *device, const tsr_permute_args *args, tsr_stream *stream)
{
    const tsr_dtype from = args->from_f32 ? TSR_F32 : args->dtype;

    (void)device;
    (void)stream;
    for (int64_t row = 0; row < args->offsets[args->experts]; ++row) {
        const int64_t token = args->token_of[row];

        for (int64_t col = 0; col < args->width; ++col) {
            tsr_plain_set(
                args->dtype, args->rows, row * args->width + col,
                (float)(token < 0 ? 0.0
                                  : tsr_plain_get(from, args->tokens, token * args->width + col)));
        }
    }
    return TSR_OK;
}

tsr_status tsr_plain_unpermute(tsr_device *device, const tsr_unpermute_args *args,
                               tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t token = 0; token < args->tokens; ++token) {
        for (int64_t col = 0; col < args->width; ++col) {
            const int64_t at = token * args->width + col;
            double sum = args->base != NULL ? (double)args->base[at] : 0.0;

            for (int64_t k = 0; k < args->top_k; ++k) {
                const int64_t row = args->row_of[token * args->top_k + k];

                if (row >= 0) {
                    sum += tsr_plain_get(args->dtype, args->rows, row * args->width + col);
                }
            }
            args->out[at] = (float)sum;
        }
    }
    return TSR_OK;
}
