/* Cross-entropy, a row of logits at a time: its maximum, the sum of exponentials, the gradient.
 * Exponentials are made twice: cheaper than a third pass over memory. */
#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

VEC_INLINE float row_max(const float *x, int64_t count)
{
    vec max = vec_set(-INFINITY);
    int64_t i = 0;

    for (; i + VEC_N <= count; i += VEC_N) {
        max = vec_max(max, vec_load(x + i));
    }
    float result = vec_max_lane(max);
    for (; i < count; ++i) {
        result = x[i] > result ? x[i] : result;
    }
    return result;
}

/* Sum of e^(x - max), in four chains that do not wait for each other. */
VEC_INLINE float row_exp_sum(const float *x, int64_t count, float max)
{
    vec sum[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;

    for (; i + 4 * VEC_N <= count; i += 4 * VEC_N) {
#pragma GCC unroll 4
        for (int chain = 0; chain < 4; ++chain) {
            sum[chain] += vec_exp(vec_load(x + i + chain * VEC_N) - max);
        }
    }
    for (; i + VEC_N <= count; i += VEC_N) {
        sum[0] += vec_exp(vec_load(x + i) - max);
    }
    float total = vec_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    if (i < count) {
        const vec rest = vec_exp(vec_load_part(x + i, count - i) - max);

        for (int lane = 0; lane < count - i; ++lane) {
            total += rest[lane];
        }
    }
    return total;
}

VEC_INLINE void row_gradient(const tsr_cross_entropy_args *args, int64_t base, float max,
                             float factor, tsr_dtype dtype)
{
    const float *x = args->logits + base;
    int64_t i = 0;

    for (; i + VEC_N <= args->vocab; i += VEC_N) {
        vec_store_as(dtype, args->dlogits, base + i, vec_exp(vec_load(x + i) - max) * factor);
    }
    if (i < args->vocab) {
        const int64_t rest = args->vocab - i;

        vec_store_as_part(dtype, args->dlogits, base + i,
                          vec_exp(vec_load_part(x + i, rest) - max) * factor, rest);
    }
}

static void do_row(const tsr_cross_entropy_args *args, int64_t row)
{
    const int64_t base = row * args->vocab, target = args->target[row];
    const float *x = args->logits + base;
    const float logit = x[target], max = row_max(x, args->vocab);
    const float sum = row_exp_sum(x, args->vocab, max);

    args->loss[row] = (float)(log((double)sum) + ((double)max - (double)logit));
    if (args->dlogits == NULL) {
        return;
    }
    const float at_target = (vec_exp(vec_set(logit - max))[0] / sum - 1.0f) * args->grad_scale;
    if (args->dtype == TSR_F32) {
        row_gradient(args, base, max, args->grad_scale / sum, TSR_F32);
        ((float *)args->dlogits)[base + target] = at_target;
    } else {
        row_gradient(args, base, max, args->grad_scale / sum, TSR_BF16);
        ((tsr_bf16 *)args->dlogits)[base + target] = tsr_f32_to_bf16(at_target);
    }
}

tsr_status TSR_SIMD(cross_entropy)(tsr_device *device, const tsr_cross_entropy_args *args,
                                   tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t row = 0; row < args->rows; ++row) {
        do_row(args, row);
    }
    return TSR_OK;
}
