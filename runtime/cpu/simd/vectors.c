/* Conversions and sums of long vectors: bound by memory, one pass each. Threads share blocks. */
#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

enum {
    BLOCK = 4096, /* elements; also the unit of summation, so never to be changed by threads */
    GROUPS = 64   /* of consecutive blocks: their sums are added in order */
};

static int64_t block_end(int64_t begin, int64_t count)
{
    return count - begin < BLOCK ? count : begin + BLOCK;
}

VEC_INLINE void convert_block(tsr_dtype from_dtype, const void *from, tsr_dtype to_dtype, void *to,
                              int64_t begin, int64_t end)
{
    int64_t i = begin;

    for (; i + VEC_N <= end; i += VEC_N) {
        vec_store_as(to_dtype, to, i, vec_load_as(from_dtype, from, i));
    }
    if (i < end) {
        vec_store_as_part(to_dtype, to, i, vec_load_as_part(from_dtype, from, i, end - i), end - i);
    }
}

tsr_status TSR_SIMD(convert)(tsr_device *device, const void *from, tsr_dtype from_dtype, void *to,
                             tsr_dtype to_dtype, int64_t count, tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads) if (count > 4 * BLOCK)
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int64_t end = block_end(begin, count);

        if (from_dtype == to_dtype) {
            const size_t size = tsr_dtype_bytes(to_dtype), at = (size_t)begin * size;
            memmove((char *)to + at, (const char *)from + at, (size_t)(end - begin) * size);
        } else if (to_dtype == TSR_BF16) {
            convert_block(TSR_F32, from, TSR_BF16, to, begin, end);
        } else {
            convert_block(TSR_BF16, from, TSR_F32, to, begin, end);
        }
    }
    return TSR_OK;
}

tsr_status TSR_SIMD(add_f32)(tsr_device *device, const float *x, float *y, int64_t count,
                             tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads) if (count > 4 * BLOCK)
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        const int64_t end = block_end(begin, count);

        for (int64_t i = begin; i < end; ++i) {
            y[i] += x[i];
        }
    }
    return TSR_OK;
}

VEC_INLINE double block_sum(const float *x, int64_t begin, int64_t end, bool squared)
{
    double sum = 0.0;

#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) {
        const double value = (double)x[i];

        sum += squared ? value * value : value;
    }
    return sum;
}

/* Blocks, then groups of blocks, then all: an order that only count decides. */
VEC_INLINE double grouped_sum(const tsr_device *device, const float *x, int64_t count, bool squared)
{
    const int64_t blocks = (count + BLOCK - 1) / BLOCK;
    const int64_t group = (blocks + GROUPS - 1) / GROUPS * BLOCK;
    double sums[GROUPS] = {0}, total = 0.0;

#pragma omp parallel for num_threads(device->threads) if (count > 4 * BLOCK)
    for (int g = 0; g < GROUPS; ++g) {
        const int64_t stop = (g + 1) * group < count ? (g + 1) * group : count;

        for (int64_t begin = g * group; begin < stop; begin += BLOCK) {
            sums[g] += block_sum(x, begin, block_end(begin, count), squared);
        }
    }
    for (int g = 0; g < GROUPS; ++g) {
        total += sums[g];
    }
    return total;
}

tsr_status TSR_SIMD(sum)(tsr_device *device, const float *x, int64_t count, double *out,
                         tsr_stream *stream)
{
    (void)stream;
    *out = grouped_sum(device, x, count, false);
    return TSR_OK;
}

tsr_status TSR_SIMD(sum_squares)(tsr_device *device, const float *x, int64_t count, double *out,
                                 tsr_stream *stream)
{
    (void)stream;
    *out = grouped_sum(device, x, count, true);
    return TSR_OK;
}
