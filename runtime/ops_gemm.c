#include "runtime/ops_impl.h"

static tsr_status check_gemm(const tsr_gemm_args *args)
{
    TSR_OP_CHECK_SIZE(args, m);
    TSR_OP_CHECK_SIZE(args, n);
    TSR_OP_CHECK_SIZE(args, k);
    TSR_OP_CHECK_LEAST(args, lda, args->trans_a ? args->m : args->k);
    TSR_OP_CHECK_LEAST(args, ldb, args->trans_b ? args->k : args->n);
    TSR_OP_CHECK_LEAST(args, ldc, args->n);
    TSR_OP_CHECK_DTYPE(args, dtype);
    TSR_CHECK(args->c_dtype == TSR_F32 || (args->c_dtype == args->dtype && !args->accumulate),
              TSR_ERR_ARG, "gemm: c_dtype = %s, must be f32%s", tsr_dtype_name(args->c_dtype),
              args->accumulate ? " to accumulate" : " or dtype");
    return TSR_OK;
}

/* The product over an empty k: zero, or nothing to add. */
static tsr_status empty_product(tsr_device *device, const tsr_gemm_args *args, tsr_stream *stream)
{
    const size_t element = tsr_dtype_bytes(args->c_dtype);

    TSR_OP_CHECK_POINTER(args, c);
    for (int64_t row = 0; row < args->m && !args->accumulate; ++row) {
        char *at = (char *)args->c + (size_t)(row * args->ldc) * element;
        TSR_TRY(tsr_device_zero(device, at, (size_t)args->n * element, stream));
    }
    return TSR_OK;
}

tsr_status tsr_op_gemm(tsr_device *device, const tsr_gemm_args *args, tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_gemm(args));
    if (args->m == 0 || args->n == 0) {
        return TSR_OK;
    }
    if (args->k == 0) {
        return empty_product(device, args, stream);
    }
    TSR_OP_CHECK_POINTER(args, a);
    TSR_OP_CHECK_POINTER(args, b);
    TSR_OP_CHECK_POINTER(args, c);
    const double m = (double)args->m, n = (double)args->n, k = (double)args->k;
    TSR_OP_RUN(TSR_OP_GEMM, stream, 2 * m * n * k,
               (m * k + k * n) * (double)tsr_dtype_bytes(args->dtype) +
                   m * n * (double)tsr_dtype_bytes(args->c_dtype) * (args->accumulate ? 2 : 1),
               device->ops->gemm(device, args, stream));
}

tsr_status tsr_op_gemm_reserve(tsr_device *device, const tsr_gemm_args *args)
{
    TSR_TRY(check_gemm(args));
    if (device->ops->gemm_reserve == NULL || args->m == 0 || args->n == 0 || args->k == 0) {
        return TSR_OK;
    }
    return device->ops->gemm_reserve(device, args);
}

static tsr_status check_grouped(const tsr_grouped_gemm_args *args)
{
    TSR_OP_CHECK_SIZE(args, max_rows);
    TSR_OP_CHECK_LEAST(args, n, 1);
    TSR_OP_CHECK_LEAST(args, k, 1);
    TSR_OP_CHECK_SIZE(args, experts);
    TSR_OP_CHECK_DTYPE(args, dtype);
    TSR_CHECK(args->pass == TSR_GROUPED_WGRAD || !args->accumulate, TSR_ERR_ARG,
              "grouped_gemm: accumulate is for weight gradients only");
    return TSR_OK;
}

tsr_status tsr_op_grouped_gemm(tsr_device *device, const tsr_grouped_gemm_args *args,
                               tsr_stream *stream)
{
    int64_t rows = 0;

    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_grouped(args));
    if (args->experts == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, w);
    TSR_OP_CHECK_POINTER(args, offsets);
    if (args->max_rows > 0) {
        TSR_OP_CHECK_POINTER(args, x);
        TSR_OP_CHECK_POINTER(args, y);
    }
    TSR_TRY(tsr_op_profile_read(device, stream, args->offsets + args->experts, &rows));
    const double n = (double)args->n, k = (double)args->k, r = (double)rows;
    const double element = (double)tsr_dtype_bytes(args->dtype);
    TSR_OP_RUN(TSR_OP_GROUPED_GEMM, stream, 2 * r * n * k,
               r * (n + k) * element +
                   args->experts * n * k * (args->pass == TSR_GROUPED_WGRAD ? 4 : element),
               device->ops->grouped_gemm(device, args, stream));
}

tsr_status tsr_op_grouped_gemm_reserve(tsr_device *device, const tsr_grouped_gemm_args *args)
{
    TSR_TRY(check_grouped(args));
    if (device->ops->grouped_gemm_reserve == NULL || args->max_rows == 0 || args->experts == 0) {
        return TSR_OK;
    }
    return device->ops->grouped_gemm_reserve(device, args);
}
