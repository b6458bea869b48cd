#include "runtime/layers.h"

/* The pointers are NULL where only sizes matter: in reservations. */
static tsr_gemm_args forward_args(const tsr_linear *l, int64_t tokens, const void *x, const void *w,
                                  void *y)
{
    return (tsr_gemm_args){.a = x,
                           .b = w,
                           .c = y,
                           .m = tokens,
                           .n = l->out,
                           .k = l->in,
                           .lda = l->in,
                           .ldb = l->in,
                           .ldc = l->out,
                           .trans_b = true,
                           .accumulate = l->y_adds,
                           .dtype = l->dtype,
                           .c_dtype = l->y_dtype};
}

static tsr_gemm_args input_args(const tsr_linear *l, int64_t tokens, const void *dy, const void *w,
                                void *dx)
{
    return (tsr_gemm_args){.a = dy,
                           .b = w,
                           .c = dx,
                           .m = tokens,
                           .n = l->in,
                           .k = l->out,
                           .lda = l->out,
                           .ldb = l->in,
                           .ldc = l->in,
                           .accumulate = l->dx_adds,
                           .dtype = l->dtype,
                           .c_dtype = l->dx_dtype};
}

static tsr_gemm_args weight_args(const tsr_linear *l, int64_t tokens, const void *dy, const void *x,
                                 bool accumulate, float *dw)
{
    return (tsr_gemm_args){.a = dy,
                           .b = x,
                           .c = dw,
                           .m = l->out,
                           .n = l->in,
                           .k = tokens,
                           .lda = l->out,
                           .ldb = l->in,
                           .ldc = l->in,
                           .trans_a = true,
                           .accumulate = accumulate,
                           .dtype = l->dtype,
                           .c_dtype = TSR_F32};
}

tsr_status tsr_linear_forward(const tsr_linear *linear, const tsr_pass *pass, int64_t tokens,
                              const void *x, const void *w, void *y)
{
    const tsr_gemm_args args = forward_args(linear, tokens, x, w, y);

    return tsr_op_gemm(pass->device, &args, pass->stream);
}

tsr_status tsr_linear_backward_input(const tsr_linear *linear, const tsr_pass *pass, int64_t tokens,
                                     const void *dy, const void *w, void *dx)
{
    const tsr_gemm_args args = input_args(linear, tokens, dy, w, dx);

    return tsr_op_gemm(pass->device, &args, pass->stream);
}

tsr_status tsr_linear_backward_weight(const tsr_linear *linear, const tsr_pass *pass,
                                      int64_t tokens, const void *dy, const void *x,
                                      bool accumulate, float *dw)
{
    const tsr_gemm_args args = weight_args(linear, tokens, dy, x, accumulate, dw);

    return tsr_op_gemm(pass->device, &args, pass->stream);
}

tsr_status tsr_linear_reserve_tokens(const tsr_linear *linear, tsr_device *device, int64_t tokens,
                                     bool train)
{
    tsr_gemm_args args = forward_args(linear, tokens, NULL, NULL, NULL);

    TSR_TRY(tsr_op_gemm_reserve(device, &args));
    if (!train) {
        return TSR_OK;
    }
    args = input_args(linear, tokens, NULL, NULL, NULL);
    TSR_TRY(tsr_op_gemm_reserve(device, &args));
    args = weight_args(linear, tokens, NULL, NULL, false, NULL);
    TSR_TRY(tsr_op_gemm_reserve(device, &args));
    args.accumulate = true;
    return tsr_op_gemm_reserve(device, &args);
}

tsr_status tsr_linear_reserve(const tsr_linear *linear, tsr_device *device, int64_t max_batch,
                              int64_t seq, bool train)
{
    for (int64_t batch = 1; batch <= max_batch; ++batch) {
        TSR_TRY(tsr_linear_reserve_tokens(linear, device, batch * seq, train));
    }
    return TSR_OK;
}
