/* SwiGLU, one pass over each row; rows are shared out among threads. */
#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

VEC_INLINE vec sigmoid(vec x)
{
    return 1.0f / (1.0f + vec_exp(-x));
}

VEC_INLINE void forward_row(const tsr_swiglu_args *args, int64_t row, tsr_dtype dtype)
{
    const int64_t width = args->width, at_gate = row * 2 * width, at_up = at_gate + width;
    const float weight = args->row_weight != NULL ? args->row_weight[row] : 1.0f;
    int64_t col = 0;

    for (; col + VEC_N <= width; col += VEC_N) {
        const vec gate = vec_load_as(dtype, args->gate_up, at_gate + col);
        const vec up = vec_load_as(dtype, args->gate_up, at_up + col);

        vec_store_as(dtype, args->h, row * width + col, gate * sigmoid(gate) * up * weight);
    }
    if (col < width) {
        const int64_t rest = width - col;
        const vec gate = vec_load_as_part(dtype, args->gate_up, at_gate + col, rest);
        const vec up = vec_load_as_part(dtype, args->gate_up, at_up + col, rest);

        vec_store_as_part(dtype, args->h, row * width + col, gate * sigmoid(gate) * up * weight,
                          rest);
    }
}

tsr_status TSR_SIMD(swiglu_forward)(tsr_device *device, const tsr_swiglu_args *args,
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

typedef struct gradients {
    vec gate, up, h; /* h without the row's weight */
} gradients;

/* silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g). */
VEC_INLINE gradients differentiate(vec gate, vec up, vec dh_weighted)
{
    const vec s = sigmoid(gate), silu = gate * s;

    return (gradients){
        .gate = dh_weighted * up * (s + silu * (1.0f - s)),
        .up = dh_weighted * silu,
        .h = silu * up,
    };
}

/* gate_up may be dgate_up: each place is read before it is written. */
VEC_INLINE float backward_row(const tsr_swiglu_args *args, int64_t row, tsr_dtype dtype)
{
    const int64_t width = args->width, at_gate = row * 2 * width, at_up = at_gate + width;
    const float weight = args->row_weight != NULL ? args->row_weight[row] : 1.0f;
    vec sum = {0};
    int64_t col = 0;

    for (; col + VEC_N <= width; col += VEC_N) {
        const vec dh = vec_load_as(dtype, args->dh, row * width + col);
        const gradients g =
            differentiate(vec_load_as(dtype, args->gate_up, at_gate + col),
                          vec_load_as(dtype, args->gate_up, at_up + col), dh * weight);

        vec_store_as(dtype, args->dgate_up, at_gate + col, g.gate);
        vec_store_as(dtype, args->dgate_up, at_up + col, g.up);
        if (args->h != NULL) {
            vec_store_as(dtype, args->h, row * width + col, g.h * weight);
        }
        sum += dh * g.h;
    }
    if (col < width) {
        const int64_t rest = width - col;
        const vec dh = vec_load_as_part(dtype, args->dh, row * width + col, rest);
        const gradients g =
            differentiate(vec_load_as_part(dtype, args->gate_up, at_gate + col, rest),
                          vec_load_as_part(dtype, args->gate_up, at_up + col, rest), dh * weight);

        vec_store_as_part(dtype, args->dgate_up, at_gate + col, g.gate, rest);
        vec_store_as_part(dtype, args->dgate_up, at_up + col, g.up, rest);
        if (args->h != NULL) {
            vec_store_as_part(dtype, args->h, row * width + col, g.h * weight, rest);
        }
        sum += dh * g.h;
    }
    return vec_sum(sum);
}

tsr_status TSR_SIMD(swiglu_backward)(tsr_device *device, const tsr_swiglu_args *args,
                                     tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t row = 0; row < args->rows; ++row) {
        const float drow_weight = args->dtype == TSR_F32 ? backward_row(args, row, TSR_F32)
                                                         : backward_row(args, row, TSR_BF16);

        if (args->drow_weight != NULL) {
            args->drow_weight[row] = drow_weight;
        }
    }
    return TSR_OK;
}
