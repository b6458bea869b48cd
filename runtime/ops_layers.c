#include "runtime/ops_impl.h"

static tsr_status check_rmsnorm(const tsr_rmsnorm_args *args)
{
    TSR_OP_CHECK_SIZE(args, rows);
    TSR_OP_CHECK_LEAST(args, width, 1);
    TSR_OP_CHECK_DTYPE(args, dtype);
    if (args->rows > 0) {
        TSR_OP_CHECK_POINTER(args, x);
    }
    return TSR_OK;
}

tsr_status tsr_op_rmsnorm_forward(tsr_device *device, const tsr_rmsnorm_args *args,
                                  tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_rmsnorm(args));
    if (args->rows == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, weight);
    TSR_OP_CHECK_POINTER(args, y);
    const double cells = (double)args->rows * (double)args->width;
    TSR_OP_RUN(TSR_OP_RMSNORM_FORWARD, stream, 4 * cells,
               cells * (4 + (double)tsr_dtype_bytes(args->dtype)),
               device->ops->rmsnorm_forward(device, args, stream));
}

tsr_status tsr_op_rmsnorm_backward_input(tsr_device *device, const tsr_rmsnorm_args *args,
                                         tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_rmsnorm(args));
    if (args->rows == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, weight);
    TSR_OP_CHECK_POINTER(args, rstd);
    TSR_OP_CHECK_POINTER(args, dy);
    TSR_OP_CHECK_POINTER(args, dx);
    const double cells = (double)args->rows * (double)args->width;
    TSR_OP_RUN(TSR_OP_RMSNORM_BACKWARD_INPUT, stream, 8 * cells, 16 * cells,
               device->ops->rmsnorm_backward_input(device, args, stream));
}

tsr_status tsr_op_rmsnorm_backward_weight(tsr_device *device, const tsr_rmsnorm_args *args,
                                          tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_rmsnorm(args));
    TSR_OP_CHECK_POINTER(args, dweight);
    if (args->rows > 0) {
        TSR_OP_CHECK_POINTER(args, rstd);
        TSR_OP_CHECK_POINTER(args, dy);
    }
    const double cells = (double)args->rows * (double)args->width;
    TSR_OP_RUN(TSR_OP_RMSNORM_BACKWARD_WEIGHT, stream, 3 * cells, 8 * cells,
               device->ops->rmsnorm_backward_weight(device, args, stream));
}

tsr_status tsr_op_rope(tsr_device *device, const tsr_rope_args *args, tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_OP_CHECK_SIZE(args, tokens);
    TSR_OP_CHECK_LEAST(args, seq_len, 1);
    TSR_OP_CHECK_SIZE(args, first_position);
    TSR_OP_CHECK_SIZE(args, heads);
    TSR_OP_CHECK_LEAST(args, head_dim, 2);
    TSR_CHECK(args->head_dim % 2 == 0, TSR_ERR_ARG, "rope: head_dim = %d, must be even",
              args->head_dim);
    TSR_OP_CHECK_LEAST(args, row_stride, (int64_t)args->heads * args->head_dim);
    TSR_OP_CHECK_DTYPE(args, dtype);
    if (args->tokens == 0 || args->heads == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, x);
    TSR_OP_CHECK_POINTER(args, cosine);
    TSR_OP_CHECK_POINTER(args, sine);
    const double cells = (double)args->tokens * args->heads * args->head_dim;
    TSR_OP_RUN(TSR_OP_ROPE, stream, 3 * cells, 2 * cells * (double)tsr_dtype_bytes(args->dtype),
               device->ops->rope(device, args, stream));
}

static tsr_status check_swiglu(const tsr_swiglu_args *args)
{
    TSR_OP_CHECK_SIZE(args, rows);
    TSR_OP_CHECK_LEAST(args, width, 1);
    TSR_OP_CHECK_DTYPE(args, dtype);
    if (args->rows > 0) {
        TSR_OP_CHECK_POINTER(args, gate_up);
    }
    return TSR_OK;
}

tsr_status tsr_op_swiglu_forward(tsr_device *device, const tsr_swiglu_args *args,
                                 tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_swiglu(args));
    if (args->rows == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, h);
    const double cells = (double)args->rows * (double)args->width;
    TSR_OP_RUN(TSR_OP_SWIGLU_FORWARD, stream, 6 * cells,
               3 * cells * (double)tsr_dtype_bytes(args->dtype),
               device->ops->swiglu_forward(device, args, stream));
}

tsr_status tsr_op_swiglu_backward(tsr_device *device, const tsr_swiglu_args *args,
                                  tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_swiglu(args));
    if (args->rows == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, dh);
    TSR_OP_CHECK_POINTER(args, dgate_up);
    const double cells = (double)args->rows * (double)args->width;
    TSR_OP_RUN(TSR_OP_SWIGLU_BACKWARD, stream, 14 * cells,
               (args->h != NULL ? 6 : 5) * cells * (double)tsr_dtype_bytes(args->dtype),
               device->ops->swiglu_backward(device, args, stream));
}

static tsr_status check_attention(const tsr_attention_args *args)
{
    TSR_OP_CHECK_SIZE(args, batch);
    TSR_OP_CHECK_SIZE(args, q_len);
    TSR_OP_CHECK_LEAST(args, kv_len, args->q_len);
    TSR_OP_CHECK_LEAST(args, kv_heads, 1);
    TSR_OP_CHECK_LEAST(args, heads, args->kv_heads);
    TSR_CHECK(args->head_dim >= 1 && args->head_dim <= TSR_HEAD_DIM_MAX, TSR_ERR_ARG,
              "attention: head_dim = %d, must be 1 .. %d", args->head_dim, TSR_HEAD_DIM_MAX);
    TSR_CHECK(args->heads % args->kv_heads == 0, TSR_ERR_ARG,
              "attention: heads = %d, must be a multiple of kv_heads = %d", args->heads,
              args->kv_heads);
    TSR_OP_CHECK_LEAST(args, q_stride, (int64_t)args->heads * args->head_dim);
    TSR_OP_CHECK_LEAST(args, out_stride, (int64_t)args->heads * args->head_dim);
    TSR_OP_CHECK_LEAST(args, kv_stride, (int64_t)args->kv_heads * args->head_dim);
    TSR_OP_CHECK_SIZE(args, q_batch_stride);
    TSR_OP_CHECK_SIZE(args, kv_batch_stride);
    TSR_OP_CHECK_SIZE(args, out_batch_stride);
    TSR_OP_CHECK_DTYPE(args, dtype);
    return TSR_OK;
}

static tsr_status check_attention_tensors(const tsr_attention_args *args)
{
    TSR_OP_CHECK_POINTER(args, q);
    TSR_OP_CHECK_POINTER(args, k);
    TSR_OP_CHECK_POINTER(args, v);
    TSR_OP_CHECK_POINTER(args, out);
    return TSR_OK;
}

/* Multiplications of one product over the visible query-key pairs, times two. */
static double attention_flops(const tsr_attention_args *args)
{
    const double q = (double)args->q_len, kv = (double)args->kv_len;
    const double pairs = q * (kv - q) + q * (q + 1) / 2;

    return 2 * pairs * (double)args->batch * args->heads * args->head_dim;
}

/* Bytes of the query-shaped tensors and of the key-shaped ones, once each. */
static double attention_bytes(const tsr_attention_args *args, double q_like, double kv_like)
{
    const double cells = q_like * (double)args->q_len * args->heads +
                         kv_like * (double)args->kv_len * args->kv_heads;

    return cells * (double)args->batch * args->head_dim * (double)tsr_dtype_bytes(args->dtype);
}

tsr_status tsr_op_attention_forward(tsr_device *device, const tsr_attention_args *args,
                                    tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_attention(args));
    if (args->batch == 0 || args->q_len == 0) {
        return TSR_OK;
    }
    TSR_TRY(check_attention_tensors(args));
    TSR_OP_RUN(TSR_OP_ATTENTION_FORWARD, stream, 2 * attention_flops(args),
               attention_bytes(args, 2, 2), device->ops->attention_forward(device, args, stream));
}

tsr_status tsr_op_attention_backward(tsr_device *device, const tsr_attention_args *args,
                                     tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_attention(args));
    TSR_CHECK(args->q_len == args->kv_len, TSR_ERR_ARG,
              "attention_backward: q_len = %lld, must be kv_len = %lld", (long long)args->q_len,
              (long long)args->kv_len);
    if (args->batch == 0 || args->q_len == 0) {
        return TSR_OK;
    }
    TSR_TRY(check_attention_tensors(args));
    TSR_OP_CHECK_POINTER(args, lse);
    TSR_OP_CHECK_POINTER(args, dout);
    TSR_OP_CHECK_POINTER(args, dq);
    TSR_OP_CHECK_POINTER(args, dk);
    TSR_OP_CHECK_POINTER(args, dv);
    TSR_OP_RUN(TSR_OP_ATTENTION_BACKWARD, stream, 5 * attention_flops(args),
               attention_bytes(args, 4, 4), device->ops->attention_backward(device, args, stream));
}

tsr_status tsr_op_attention_reserve(tsr_device *device, const tsr_attention_args *args)
{
    TSR_TRY(check_attention(args));
    if (device->ops->attention_reserve == NULL) {
        return TSR_OK;
    }
    return device->ops->attention_reserve(device, args);
}
