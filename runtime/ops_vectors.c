#include "runtime/ops_impl.h"

static tsr_status check_embedding(const tsr_embedding_args *args)
{
    TSR_OP_CHECK_SIZE(args, tokens);
    TSR_OP_CHECK_LEAST(args, vocab, 1);
    TSR_OP_CHECK_LEAST(args, width, 1);
    TSR_OP_CHECK_DTYPE(args, dtype);
    if (args->tokens > 0) {
        TSR_OP_CHECK_POINTER(args, token);
    }
    return TSR_OK;
}

tsr_status tsr_op_embedding_forward(tsr_device *device, const tsr_embedding_args *args,
                                    tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_embedding(args));
    if (args->tokens == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, table);
    TSR_OP_CHECK_POINTER(args, x);
    const double cells = (double)args->tokens * (double)args->width;
    TSR_OP_RUN(TSR_OP_EMBEDDING_FORWARD, stream, 0,
               cells * (4 + (double)tsr_dtype_bytes(args->dtype)),
               device->ops->embedding_forward(device, args, stream));
}

tsr_status tsr_op_embedding_backward(tsr_device *device, const tsr_embedding_args *args,
                                     tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_embedding(args));
    TSR_OP_CHECK_POINTER(args, dtable);
    if (args->tokens > 0) {
        TSR_OP_CHECK_POINTER(args, dx);
    }
    const double cells = (double)args->tokens * (double)args->width;
    const double cleared = args->accumulate ? 0 : (double)args->vocab * (double)args->width;
    TSR_OP_RUN(TSR_OP_EMBEDDING_BACKWARD, stream, cells, 12 * cells + 4 * cleared,
               device->ops->embedding_backward(device, args, stream));
}

tsr_status tsr_op_cross_entropy(tsr_device *device, const tsr_cross_entropy_args *args,
                                tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_OP_CHECK_SIZE(args, rows);
    TSR_OP_CHECK_LEAST(args, vocab, 1);
    TSR_OP_CHECK_DTYPE(args, dtype);
    if (args->rows == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, logits);
    TSR_OP_CHECK_POINTER(args, target);
    TSR_OP_CHECK_POINTER(args, loss);
    TSR_CHECK(args->dlogits != args->logits || args->dtype == TSR_F32, TSR_ERR_ARG,
              "cross_entropy: dlogits may be logits only in f32");
    const double cells = (double)args->rows * (double)args->vocab;
    const double written = args->dlogits != NULL ? (double)tsr_dtype_bytes(args->dtype) : 0;
    TSR_OP_RUN(TSR_OP_CROSS_ENTROPY, stream, 6 * cells, cells * (4 + written),
               device->ops->cross_entropy(device, args, stream));
}

/* Sizes and pointers of a vector operator: x and y are needed unless there is nothing to do. */
static tsr_status check_vector(const char *name, const void *x, const void *y, int64_t count)
{
    TSR_CHECK(count >= 0, TSR_ERR_ARG, "%s: count = %lld, must be >= 0", name, (long long)count);
    TSR_CHECK(count == 0 || (x != NULL && y != NULL), TSR_ERR_ARG,
              "%s: input and output must not be NULL", name);
    return TSR_OK;
}

tsr_status tsr_op_convert(tsr_device *device, const void *from, tsr_dtype from_dtype, void *to,
                          tsr_dtype to_dtype, int64_t count, tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_vector("convert", from, to, count));
    TSR_CHECK((from_dtype == TSR_F32 || from_dtype == TSR_BF16) &&
                  (to_dtype == TSR_F32 || to_dtype == TSR_BF16),
              TSR_ERR_ARG, "convert: from_dtype = %d, to_dtype = %d, must be f32 or bf16",
              (int)from_dtype, (int)to_dtype);
    if (count == 0) {
        return TSR_OK;
    }
    const size_t width = tsr_dtype_bytes(from_dtype) + tsr_dtype_bytes(to_dtype);
    TSR_OP_RUN(TSR_OP_CONVERT, stream, 0, (double)count * (double)width,
               device->ops->convert(device, from, from_dtype, to, to_dtype, count, stream));
}

tsr_status tsr_op_add_f32(tsr_device *device, const float *x, float *y, int64_t count,
                          tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_vector("add_f32", x, y, count));
    if (count == 0) {
        return TSR_OK;
    }
    TSR_OP_RUN(TSR_OP_ADD_F32, stream, (double)count, 12 * (double)count,
               device->ops->add_f32(device, x, y, count, stream));
}

tsr_status tsr_op_sum(tsr_device *device, const float *x, int64_t count, double *out,
                      tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_vector("sum", x, out, count));
    TSR_CHECK(out != NULL, TSR_ERR_ARG, "sum: out must not be NULL");
    TSR_OP_RUN(TSR_OP_SUM, stream, (double)count, 4 * (double)count,
               device->ops->sum(device, x, count, out, stream));
}

tsr_status tsr_op_sum_squares(tsr_device *device, const float *x, int64_t count, double *out,
                              tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_vector("sum_squares", x, out, count));
    TSR_CHECK(out != NULL, TSR_ERR_ARG, "sum_squares: out must not be NULL");
    TSR_OP_RUN(TSR_OP_SUM_SQUARES, stream, 2 * (double)count, 4 * (double)count,
               device->ops->sum_squares(device, x, count, out, stream));
}

tsr_status tsr_op_adamw(tsr_device *device, const tsr_adamw_args *args, tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_OP_CHECK_SIZE(args, count);
    TSR_OP_CHECK_LEAST(args, step, 1);
    TSR_OP_CHECK_DTYPE(args, work_dtype);
    TSR_OP_CHECK_DTYPE(args, moment_dtype);
    if (args->count == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, master);
    TSR_OP_CHECK_POINTER(args, m);
    TSR_OP_CHECK_POINTER(args, v);
    TSR_OP_CHECK_POINTER(args, grad);
    TSR_OP_CHECK_POINTER(args, work);
    TSR_CHECK(args->work != args->master || args->work_dtype == TSR_F32, TSR_ERR_ARG,
              "adamw: work may be master only in f32");
    const double moments = 4 * (double)tsr_dtype_bytes(args->moment_dtype);
    const double work = args->work == args->master ? 0 : (double)tsr_dtype_bytes(args->work_dtype);
    TSR_OP_RUN(TSR_OP_ADAMW, stream, 15 * (double)args->count,
               (double)args->count * (12 + moments + work),
               device->ops->adamw(device, args, stream));
}
