/* Rotary position embedding: element i of a head turns with element i + head_dim / 2. */
#include "runtime/cpu/plain/plain.h"

static void rotate_head(const tsr_rope_args *args, int64_t base, const float *cosine,
                        const float *sine)
{
    const int64_t half = args->head_dim / 2;

    for (int64_t i = 0; i < half; ++i) {
        const double c = (double)cosine[i];
        const double s = args->inverse ? -(double)sine[i] : (double)sine[i];
        const double first = tsr_plain_get(args->dtype, args->x, base + i);
        const double second = tsr_plain_get(args->dtype, args->x, base + half + i);

        tsr_plain_set(args->dtype, args->x, base + i, (float)(first * c - second * s));
        tsr_plain_set(args->dtype, args->x, base + half + i, (float)(second * c + first * s));
    }
}

tsr_status tsr_plain_rope(tsr_device *device, const tsr_rope_args *args, tsr_stream *stream)
{
    const int64_t half = args->head_dim / 2;

    (void)device;
    (void)stream;
    for (int64_t token = 0; token < args->tokens; ++token) {
        const int64_t position = args->first_position + token % args->seq_len;

        for (int64_t head = 0; head < args->heads; ++head) {
            rotate_head(args, token * args->row_stride + head * args->head_dim,
                        args->cosine + position * half, args->sine + position * half);
        }
    }
    return TSR_OK;
}
