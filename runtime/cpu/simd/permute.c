/* Token copies in expert order, and their sums back in token order: memory bound, no arithmetic to
 * speak of. */
#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

VEC_INLINE void copy_row(const void *from, tsr_dtype from_dtype, int64_t from_at, void *to,
                         tsr_dtype to_dtype, int64_t to_at, int64_t width)
{
    int64_t col = 0;

    for (; col + VEC_N <= width; col += VEC_N) {
        vec_store_as(to_dtype, to, to_at + col, vec_load_as(from_dtype, from, from_at + col));
    }
    if (col < width) {
        vec_store_as_part(to_dtype, to, to_at + col,
                          vec_load_as_part(from_dtype, from, from_at + col, width - col),
                          width - col);
    }
}

tsr_status TSR_SIMD(permute)(tsr_device *device, const tsr_permute_args *args, tsr_stream *stream)
{
    const bool convert = args->from_f32 && args->dtype != TSR_F32;
    const size_t bytes = tsr_dtype_bytes(args->dtype), row_bytes = (size_t)args->width * bytes;

    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t row = 0; row < args->offsets[args->experts]; ++row) {
        char *to = (char *)args->rows + (size_t)row * row_bytes;
        const int64_t token = args->token_of[row];

        if (token < 0) {
            memset(to, 0, row_bytes);
        } else if (convert) {
            copy_row(args->tokens, TSR_F32, token * args->width, to, TSR_BF16, 0, args->width);
        } else {
            memcpy(to, (const char *)args->tokens + (size_t)token * row_bytes, row_bytes);
        }
    }
    return TSR_OK;
}

VEC_INLINE void sum_token(const tsr_unpermute_args *args, int64_t token, tsr_dtype dtype)
{
    const int64_t width = args->width;
    const int32_t *row_of = args->row_of + token * args->top_k;
    const float *base = args->base != NULL ? args->base + token * width : NULL;
    float *out = args->out + token * width;
    int64_t col = 0;

    for (; col + VEC_N <= width; col += VEC_N) {
        vec sum = base != NULL ? vec_load(base + col) : (vec){0};

        for (int k = 0; k < args->top_k; ++k) {
            if (row_of[k] >= 0) {
                sum += vec_load_as(dtype, args->rows, row_of[k] * width + col);
            }
        }
        vec_store(out + col, sum);
    }
    if (col < width) {
        const int64_t rest = width - col;
        vec sum = base != NULL ? vec_load_part(base + col, rest) : (vec){0};

        for (int k = 0; k < args->top_k; ++k) {
            if (row_of[k] >= 0) {
                sum += vec_load_as_part(dtype, args->rows, row_of[k] * width + col, rest);
            }
        }
        vec_store_part(out + col, sum, rest);
    }
}

tsr_status TSR_SIMD(unpermute)(tsr_device *device, const tsr_unpermute_args *args,
                               tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t token = 0; token < args->tokens; ++token) {
        if (args->dtype == TSR_F32) {
            sum_token(args, token, TSR_F32);
        } else {
            sum_token(args, token, TSR_BF16);
        }
    }
    return TSR_OK;
}
