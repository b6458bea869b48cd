/* Long vectors, and the optimizer's step. */
#include "runtime/cpu/plain/plain.h"

#include <math.h>

tsr_status tsr_plain_convert(tsr_device *device, const void *from, tsr_dtype from_dtype, void *to,
                             tsr_dtype to_dtype, int64_t count, tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t i = 0; i < count; ++i) {
        tsr_plain_set(to_dtype, to, i, tsr_plain_get(from_dtype, from, i));
    }
    return TSR_OK;
}

tsr_status tsr_plain_add_f32(tsr_device *device, const float *x, float *y, int64_t count,
                             tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t i = 0; i < count; ++i) {
        y[i] += x[i];
    }
    return TSR_OK;
}

tsr_status tsr_plain_sum(tsr_device *device, const float *x, int64_t count, double *out,
                         tsr_stream *stream)
{
    double sum = 0.0;

    (void)device;
    (void)stream;
    for (int64_t i = 0; i < count; ++i) {
        sum += (double)x[i];
    }
    *out = sum;
    return TSR_OK;
}

tsr_status tsr_plain_sum_squares(tsr_device *device, const float *x, int64_t count, double *out,
                                 tsr_stream *stream)
{
    double sum = 0.0;

    (void)device;
    (void)stream;
    for (int64_t i = 0; i < count; ++i) {
        sum += (double)x[i] * (double)x[i];
    }
    *out = sum;
    return TSR_OK;
}

/* The moments are rounded when they are stored; the step uses them unrounded. */
tsr_status tsr_plain_adamw(tsr_device *device, const tsr_adamw_args *args, tsr_stream *stream)
{
    const double b1 = (double)args->beta1, b2 = (double)args->beta2, t = (double)args->step;
    const double correct_m = 1.0 - pow(b1, t), correct_v = 1.0 - pow(b2, t);

    (void)device;
    (void)stream;
    for (int64_t i = 0; i < args->count; ++i) {
        const double g = (double)args->grad[i] * (double)args->grad_scale;
        const double old_m = (double)tsr_plain_get(args->moment_dtype, args->m, i);
        const double old_v = (double)tsr_plain_get(args->moment_dtype, args->v, i);
        const double m = b1 * old_m + (1.0 - b1) * g, v = b2 * old_v + (1.0 - b2) * g * g;
        const double step = m / correct_m / (sqrt(v / correct_v) + (double)args->eps);
        const double old = (double)args->master[i];

        tsr_plain_set(args->moment_dtype, args->m, i, (float)m);
        tsr_plain_set(args->moment_dtype, args->v, i, (float)v);
        args->master[i] = (float)(old - (double)args->lr * (step + (double)args->decay * old));
        tsr_plain_set(args->work_dtype, args->work, i, args->master[i]);
    }
    return TSR_OK;
}
