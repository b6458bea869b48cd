/* Cross-entropy: loss = log(sum e^x) - x[target], gradient = softmax(x) - onehot(target). */
#include "runtime/cpu/plain/plain.h"

#include <math.h>

static double log_sum_exp(const float *x, int64_t count)
{
    double max = -INFINITY, sum = 0.0;

    for (int64_t i = 0; i < count; ++i) {
        max = fmax(max, (double)x[i]);
    }
    for (int64_t i = 0; i < count; ++i) {
        sum += exp((double)x[i] - max);
    }
    return max + log(sum);
}

tsr_status tsr_plain_cross_entropy(tsr_device *device, const tsr_cross_entropy_args *args,
                                   tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t row = 0; row < args->rows; ++row) {
        const int64_t base = row * args->vocab, target = args->target[row];
        const float *x = args->logits + base;
        const double lse = log_sum_exp(x, args->vocab);

        args->loss[row] = (float)(lse - (double)x[target]);
        for (int64_t i = 0; i < args->vocab && args->dlogits != NULL; ++i) {
            const double p = exp((double)x[i] - lse);

            tsr_plain_set(args->dtype, args->dlogits, base + i,
                          (float)((p - (i == target ? 1.0 : 0.0)) * (double)args->grad_scale));
        }
    }
    return TSR_OK;
}
