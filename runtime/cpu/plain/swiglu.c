/* SwiGLU: h = silu(gate) * up * row_weight. */
#include "runtime/cpu/plain/plain.h"

#include <math.h>

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

tsr_status tsr_plain_swiglu_forward(tsr_device *device, const tsr_swiglu_args *args,
                                    tsr_stream *stream)
{
    const int64_t width = args->width;

    (void)device;
    (void)stream;
    for (int64_t row = 0; row < args->rows; ++row) {
        const double weight = args->row_weight != NULL ? (double)args->row_weight[row] : 1.0;

        for (int64_t col = 0; col < width; ++col) {
            const double gate = tsr_plain_get(args->dtype, args->gate_up, row * 2 * width + col);
            const double up =
                tsr_plain_get(args->dtype, args->gate_up, (row * 2 + 1) * width + col);

            tsr_plain_set(args->dtype, args->h, row * width + col,
                          (float)(gate * sigmoid(gate) * up * weight));
        }
    }
    return TSR_OK;
}

/* silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g). */
static double swiglu_backward_row(const tsr_swiglu_args *args, int64_t row, double weight)
{
    const int64_t width = args->width;
    double drow_weight = 0.0;

    for (int64_t col = 0; col < width; ++col) {
        const int64_t at_gate = row * 2 * width + col, at_up = at_gate + width;
        const double gate = tsr_plain_get(args->dtype, args->gate_up, at_gate);
        const double up = tsr_plain_get(args->dtype, args->gate_up, at_up);
        const double dh = tsr_plain_get(args->dtype, args->dh, row * width + col);
        const double s = sigmoid(gate);

        if (args->h != NULL) {
            tsr_plain_set(args->dtype, args->h, row * width + col, (float)(gate * s * up * weight));
        }
        tsr_plain_set(args->dtype, args->dgate_up, at_gate,
                      (float)(dh * weight * up * s * (1.0 + gate * (1.0 - s))));
        tsr_plain_set(args->dtype, args->dgate_up, at_up, (float)(dh * weight * gate * s));
        drow_weight += dh * gate * s * up;
    }
    return drow_weight;
}

tsr_status tsr_plain_swiglu_backward(tsr_device *device, const tsr_swiglu_args *args,
                                     tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t row = 0; row < args->rows; ++row) {
        const double weight = args->row_weight != NULL ? (double)args->row_weight[row] : 1.0;
        const double drow_weight = swiglu_backward_row(args, row, weight);

        if (args->drow_weight != NULL) {
            args->drow_weight[row] = (float)drow_weight;
        }
    }
    return TSR_OK;
}
