/* Rows of the embedding table. Forward shares out tokens; backward shares out columns, so that each
 * row's sum is made by one thread in token order, without atomics. */
#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

enum {
    COLUMNS = 16 /* a cache line of f32: what backward hands out */
};

VEC_INLINE void load_row(const tsr_embedding_args *args, int64_t t, tsr_dtype dtype)
{
    const int64_t from = (int64_t)args->token[t] * args->width, width = args->width;
    float *x = args->x + t * width;
    int64_t col = 0;

    for (; col + VEC_N <= width; col += VEC_N) {
        vec_store(x + col, vec_load_as(dtype, args->table, from + col));
    }
    if (col < width) {
        vec_store_part(x + col, vec_load_as_part(dtype, args->table, from + col, width - col),
                       width - col);
    }
}

tsr_status TSR_SIMD(embedding_forward)(tsr_device *device, const tsr_embedding_args *args,
                                       tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t t = 0; t < args->tokens; ++t) {
        if (args->dtype == TSR_F32) {
            load_row(args, t, TSR_F32);
        } else {
            load_row(args, t, TSR_BF16);
        }
    }
    return TSR_OK;
}

static void add_columns(const tsr_embedding_args *args, int64_t begin, int64_t end)
{
    for (int64_t row = 0; row < args->vocab && !args->accumulate; ++row) {
        memset(args->dtable + row * args->width + begin, 0, (size_t)(end - begin) * sizeof(float));
    }
    for (int64_t t = 0; t < args->tokens; ++t) {
        const float *dx = args->dx + t * args->width;
        float *row = args->dtable + (int64_t)args->token[t] * args->width;

#pragma omp simd
        for (int64_t col = begin; col < end; ++col) {
            row[col] += dx[col];
        }
    }
}

tsr_status TSR_SIMD(embedding_backward)(tsr_device *device, const tsr_embedding_args *args,
                                        tsr_stream *stream)
{
    const int64_t blocks = (args->width + COLUMNS - 1) / COLUMNS;
    const int64_t parts = blocks < device->threads ? blocks : device->threads;

    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t begin = part * blocks / parts * COLUMNS;
        const int64_t end = (part + 1) * blocks / parts * COLUMNS;

        add_columns(args, begin, end < args->width ? end : args->width);
    }
    return TSR_OK;
}
