/* RMSNorm, a row at a time. */
#include "runtime/cpu/plain/plain.h"

#include <math.h>

tsr_status tsr_plain_rmsnorm_forward(tsr_device *device, const tsr_rmsnorm_args *args,
                                     tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t row = 0; row < args->rows; ++row) {
        const float *x = args->x + row * args->width;
        double squares = 0.0;

        for (int64_t col = 0; col < args->width; ++col) {
            squares += (double)x[col] * (double)x[col];
        }
        const double rstd = 1.0 / sqrt(squares / (double)args->width + (double)args->eps);
        for (int64_t col = 0; col < args->width; ++col) {
            tsr_plain_set(args->dtype, args->y, row * args->width + col,
                          (float)((double)x[col] * rstd * (double)args->weight[col]));
        }
        if (args->rstd != NULL) {
            args->rstd[row] = (float)rstd;
        }
    }
    return TSR_OK;
}

/* With n = x rstd the normalised row and g = dy weight:
 * d rstd / dx = -rstd^3 x / D, hence dx = rstd (g - n mean(g n)). */
tsr_status tsr_plain_rmsnorm_backward_input(tsr_device *device, const tsr_rmsnorm_args *args,
                                            tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t row = 0; row < args->rows; ++row) {
        const float *x = args->x + row * args->width;
        const float *dy = args->dy + row * args->width;
        float *dx = args->dx + row * args->width;
        const double rstd = (double)args->rstd[row];
        double dot = 0.0;

        for (int64_t col = 0; col < args->width; ++col) {
            dot += (double)dy[col] * (double)args->weight[col] * (double)x[col] * rstd;
        }
        const double mean = dot / (double)args->width;
        for (int64_t col = 0; col < args->width; ++col) {
            const double g = (double)dy[col] * (double)args->weight[col];

            dx[col] += (float)(rstd * (g - (double)x[col] * rstd * mean));
        }
    }
    return TSR_OK;
}

tsr_status tsr_plain_rmsnorm_backward_weight(tsr_device *device, const tsr_rmsnorm_args *args,
                                             tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t col = 0; col < args->width; ++col) {
        double sum = args->accumulate ? (double)args->dweight[col] : 0.0;

        for (int64_t row = 0; row < args->rows; ++row) {
            const int64_t at = row * args->width + col;

            sum += (double)args->dy[at] * (double)args->x[at] * (double)args->rstd[row];
        }
        args->dweight[col] = (float)sum;
    }
    return TSR_OK;
}
