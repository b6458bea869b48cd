/* RMSNorm. Rows are shared out among threads; the weight gradient shares out columns instead, so
 * that each of its sums is made by one thread in one order. */
#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

enum {
    COLUMNS = 128, /* of the weight gradient, summed by one thread at a time */
    ROWS = 64      /* summed in registers before they are added to the total */
};

VEC_INLINE float row_squares(const float *x, int64_t width)
{
    vec sum[4] = {{0}, {0}, {0}, {0}};
    int64_t col = 0;

    for (; col + 4 * VEC_N <= width; col += 4 * VEC_N) {
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) {
            const vec v = vec_load(x + col + u * VEC_N);

            sum[u] += v * v;
        }
    }
    for (; col < width; col += VEC_N) {
        const vec v =
            width - col >= VEC_N ? vec_load(x + col) : vec_load_part(x + col, width - col);

        sum[0] += v * v;
    }
    return vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

VEC_INLINE void forward_row(const tsr_rmsnorm_args *args, int64_t row, tsr_dtype dtype)
{
    const int64_t width = args->width, base = row * width;
    const float *x = args->x + base;
    const float rstd = 1.0f / sqrtf(row_squares(x, width) / (float)width + args->eps);
    int64_t col = 0;

    for (; col + VEC_N <= width; col += VEC_N) {
        vec_store_as(dtype, args->y, base + col,
                     vec_load(x + col) * rstd * vec_load(args->weight + col));
    }
    if (col < width) {
        const int64_t rest = width - col;

        vec_store_as_part(
            dtype, args->y, base + col,
            vec_load_part(x + col, rest) * rstd * vec_load_part(args->weight + col, rest), rest);
    }
    if (args->rstd != NULL) {
        args->rstd[row] = rstd;
    }
}

tsr_status TSR_SIMD(rmsnorm_forward)(tsr_device *device, const tsr_rmsnorm_args *args,
                                     tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t row = 0; row < args->rows; ++row) {
        if (args->dtype == TSR_F32) {
            forward_row(args, row, TSR_F32);
        } else {
            forward_row(args, row, TSR_BF16);
        }
    }
    return TSR_OK;
}

/* sum of dy weight x */
VEC_INLINE float row_dot(const float *dy, const float *weight, const float *x, int64_t width)
{
    vec sum[2] = {{0}, {0}};
    int64_t col = 0;

    for (; col + 2 * VEC_N <= width; col += 2 * VEC_N) {
#pragma GCC unroll 2
        for (int u = 0; u < 2; ++u) {
            const int64_t at = col + u * VEC_N;

            sum[u] += vec_load(dy + at) * vec_load(weight + at) * vec_load(x + at);
        }
    }
    for (; col + VEC_N <= width; col += VEC_N) {
        sum[0] += vec_load(dy + col) * vec_load(weight + col) * vec_load(x + col);
    }
    if (col < width) {
        const int64_t rest = width - col;

        sum[0] += vec_load_part(dy + col, rest) * vec_load_part(weight + col, rest) *
                  vec_load_part(x + col, rest);
    }
    return vec_sum(sum[0] + sum[1]);
}

/* dx += rstd (dy weight - x rstd^2 mean(dy weight x)); see the plain twin. */
static void backward_row(const tsr_rmsnorm_args *args, int64_t row)
{
    const int64_t width = args->width;
    const float *x = args->x + row * width, *dy = args->dy + row * width, *weight = args->weight;
    float *dx = args->dx + row * width;
    const float rstd = args->rstd[row];
    const float factor = rstd * rstd * rstd * row_dot(dy, weight, x, width) / (float)width;
    int64_t col = 0;

    for (; col + VEC_N <= width; col += VEC_N) {
        vec_store(dx + col, vec_load(dx + col) +
                                vec_load(dy + col) * vec_load(weight + col) * rstd -
                                vec_load(x + col) * factor);
    }
    for (; col < width; ++col) {
        dx[col] += dy[col] * weight[col] * rstd - x[col] * factor;
    }
}

tsr_status TSR_SIMD(rmsnorm_backward_input)(tsr_device *device, const tsr_rmsnorm_args *args,
                                            tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t row = 0; row < args->rows; ++row) {
        backward_row(args, row);
    }
    return TSR_OK;
}

/* total[c] += sum over rows of dy x rstd, for `vectors` vectors of columns. */
VEC_INLINE void sum_rows(const tsr_rmsnorm_args *args, int64_t first_row, int64_t end_row,
                         int64_t first_col, int vectors, float *total)
{
    vec sum[COLUMNS / VEC_N];

    for (int v = 0; v < vectors; ++v) {
        sum[v] = (vec){0};
    }
    for (int64_t row = first_row; row < end_row; ++row) {
        const int64_t base = row * args->width + first_col;
        const float rstd = args->rstd[row];

        for (int v = 0; v < vectors; ++v) {
            const int64_t at = base + v * VEC_N;

            sum[v] += vec_load(args->dy + at) * vec_load(args->x + at) * rstd;
        }
    }
    for (int v = 0; v < vectors; ++v) {
        vec_store(total + v * VEC_N, vec_load(total + v * VEC_N) + sum[v]);
    }
}

static void sum_columns(const tsr_rmsnorm_args *args, int64_t first, int64_t count)
{
    const int64_t width = args->width, whole = count / VEC_N;
    float total[COLUMNS] = {0};

    for (int64_t row = 0; row < args->rows; row += ROWS) {
        const int64_t end = row + ROWS < args->rows ? row + ROWS : args->rows;

        if (count == COLUMNS) {
            sum_rows(args, row, end, first, COLUMNS / VEC_N, total);
            continue;
        }
        for (int64_t v = 0; v < whole; ++v) {
            sum_rows(args, row, end, first + v * VEC_N, 1, total + v * VEC_N);
        }
        for (int64_t col = whole * VEC_N; col < count; ++col) {
            float sum = 0.0f;

            for (int64_t r = row; r < end; ++r) {
                const int64_t at = r * width + first + col;

                sum += args->dy[at] * args->x[at] * args->rstd[r];
            }
            total[col] += sum;
        }
    }
    for (int64_t col = 0; col < count; ++col) {
        const float before = args->accumulate ? args->dweight[first + col] : 0.0f;

        args->dweight[first + col] = before + total[col];
    }
}

tsr_status TSR_SIMD(rmsnorm_backward_weight)(tsr_device *device, const tsr_rmsnorm_args *args,
                                             tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t first = 0; first < args->width; first += COLUMNS) {
        const int64_t rest = args->width - first;

        sum_columns(args, first, rest < COLUMNS ? rest : COLUMNS);
    }
    return TSR_OK;
}
