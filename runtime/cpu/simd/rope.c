/* Rotary position embedding; tokens are shared out among threads. */
#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

/* Rotate count <= VEC_N pairs (at + i, at + half + i). */
VEC_INLINE void rotate(void *x, tsr_dtype dtype, int64_t at, int64_t half, const float *cosine,
                       const float *sine, float sign, int64_t count)
{
    if (count == VEC_N) {
        const vec first = vec_load_as(dtype, x, at), second = vec_load_as(dtype, x, at + half);
        const vec c = vec_load(cosine), s = vec_load(sine) * sign;

        vec_store_as(dtype, x, at, first * c - second * s);
        vec_store_as(dtype, x, at + half, second * c + first * s);
    } else {
        const vec first = vec_load_as_part(dtype, x, at, count);
        const vec second = vec_load_as_part(dtype, x, at + half, count);
        const vec c = vec_load_part(cosine, count), s = vec_load_part(sine, count) * sign;

        vec_store_as_part(dtype, x, at, first * c - second * s, count);
        vec_store_as_part(dtype, x, at + half, second * c + first * s, count);
    }
}

VEC_INLINE void rotate_token(const tsr_rope_args *args, int64_t token, tsr_dtype dtype)
{
    const int64_t half = args->head_dim / 2;
    const int64_t position = args->first_position + token % args->seq_len;
    const float *cosine = args->cosine + position * half, *sine = args->sine + position * half;
    const float sign = args->inverse ? -1.0f : 1.0f;

    for (int64_t head = 0; head < args->heads; ++head) {
        const int64_t at = token * args->row_stride + head * args->head_dim;
        int64_t i = 0;

        for (; i + VEC_N <= half; i += VEC_N) {
            rotate(args->x, dtype, at + i, half, cosine + i, sine + i, sign, VEC_N);
        }
        if (i < half) {
            rotate(args->x, dtype, at + i, half, cosine + i, sine + i, sign, half - i);
        }
    }
}

tsr_status TSR_SIMD(rope)(tsr_device *device, const tsr_rope_args *args, tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t token = 0; token < args->tokens; ++token) {
        if (args->dtype == TSR_F32) {
            rotate_token(args, token, TSR_F32);
        } else {
            rotate_token(args, token, TSR_BF16);
        }
    }
    return TSR_OK;
}
