/* Rows of the embedding table. */
#include "runtime/cpu/plain/plain.h"

tsr_status tsr_plain_embedding_forward(tsr_device *device, const tsr_embedding_args *args,
                                       tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t t = 0; t < args->tokens; ++t) {
        for (int64_t col = 0; col < args->width; ++col) {
            args->x[t * args->width + col] = tsr_plain_get(
                args->dtype, args->table, (int64_t)args->token[t] * args->width + col);
        }
    }
    return TSR_OK;
}

tsr_status tsr_plain_embedding_backward(tsr_device *device, const tsr_embedding_args *args,
                                        tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t i = 0; i < args->vocab * args->width && !args->accumulate; ++i) {
        args->dtable[i] = 0.0f;
    }
    for (int64_t t = 0; t < args->tokens; ++t) {
        for (int64_t col = 0; col < args->width; ++col) {
            args->dtable[args->token[t] * args->width + col] += args->dx[t * args->width + col];
        }
    }
    return TSR_OK;
}
