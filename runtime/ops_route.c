#include "runtime/ops_impl.h"

static tsr_status check_route(const tsr_route_args *args)
{
    TSR_OP_CHECK_SIZE(args, tokens);
    TSR_OP_CHECK_LEAST(args, seq_len, 1);
    TSR_CHECK(args->tokens % args->seq_len == 0, TSR_ERR_ARG,
              "route: tokens = %lld, must be a multiple of seq_len = %lld", (long long)args->tokens,
              (long long)args->seq_len);
    TSR_CHECK(args->experts >= 1 && args->experts <= TSR_EXPERTS_MAX, TSR_ERR_ARG,
              "route: experts = %d, must be 1 .. %d", args->experts, TSR_EXPERTS_MAX);
    const int top_k_max = args->experts < TSR_TOP_K_MAX ? args->experts : TSR_TOP_K_MAX;
    TSR_CHECK(args->top_k >= 1 && args->top_k <= top_k_max, TSR_ERR_ARG,
              "route: top_k = %d, must be 1 .. %d (experts = %d)", args->top_k, top_k_max,
              args->experts);
    if (args->groups > 1) {
        TSR_CHECK(args->experts % args->groups == 0, TSR_ERR_ARG,
                  "route: groups = %d, must divide experts = %d", args->groups, args->experts);
        const int size = args->experts / args->groups, least = (args->top_k + size - 1) / size;
        TSR_CHECK(args->kept_groups >= least && args->kept_groups <= args->groups, TSR_ERR_ARG,
                  "route: kept_groups = %d, must be %d .. %d (top_k = %d, %d experts a group)",
                  args->kept_groups, least, args->groups, args->top_k, size);
    } else {
        TSR_CHECK(args->groups >= 0, TSR_ERR_ARG, "route: groups = %d, must be >= 0", args->groups);
    }
    TSR_CHECK(args->gate == TSR_GATE_SOFTMAX || args->gate == TSR_GATE_SIGMOID, TSR_ERR_ARG,
              "route: gate = %d, must be softmax or sigmoid", (int)args->gate);
    TSR_CHECK(args->aux == TSR_AUX_SWITCH || args->aux == TSR_AUX_GSHARD, TSR_ERR_ARG,
              "route: aux = %d, must be switch or gshard", (int)args->aux);
    TSR_OP_CHECK_POINTER(args, counts);
    if (args->tokens > 0) {
        TSR_OP_CHECK_POINTER(args, logits);
        TSR_OP_CHECK_POINTER(args, scores);
        TSR_OP_CHECK_POINTER(args, index);
        TSR_OP_CHECK_POINTER(args, weight);
        TSR_OP_CHECK_POINTER(args, balance);
        TSR_OP_CHECK_POINTER(args, score_means);
    }
    return TSR_OK;
}

tsr_status tsr_op_route_forward(tsr_device *device, const tsr_route_args *args, tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_route(args));
    if (args->tokens == 0) {
        return tsr_device_zero(device, args->counts, (size_t)args->experts * sizeof *args->counts,
                               stream);
    }
    const double cells = (double)args->tokens * args->experts;
    TSR_OP_RUN(TSR_OP_ROUTE_FORWARD, stream, 8 * cells, 8 * cells,
               device->ops->route_forward(device, args, stream));
}

tsr_status tsr_op_route_backward(tsr_device *device, const tsr_route_args *args, tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_TRY(check_route(args));
    if (args->tokens == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, dweight);
    TSR_OP_CHECK_POINTER(args, dlogits);
    if (args->z_factor != 0.0f) {
        TSR_OP_CHECK_POINTER(args, z);
    }
    const double cells = (double)args->tokens * args->experts;
    TSR_OP_RUN(TSR_OP_ROUTE_BACKWARD, stream, 8 * cells, 12 * cells,
               device->ops->route_backward(device, args, stream));
}

tsr_status tsr_op_sort_by_expert(tsr_device *device, const tsr_sort_args *args, tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_OP_CHECK_SIZE(args, tokens);
    TSR_OP_CHECK_LEAST(args, experts, 1);
    TSR_OP_CHECK_LEAST(args, top_k, 1);
    /* Each expert's range may be padded by ALIGN - 1 rows, and all ranges are multiples of it. */
    const int64_t copies = args->tokens * args->top_k;
    const int64_t padded = copies + (int64_t)args->experts * (TSR_ROW_ALIGN - 1);
    const int64_t least_rows = padded / TSR_ROW_ALIGN * TSR_ROW_ALIGN;
    TSR_OP_CHECK_LEAST(args, max_rows, least_rows);
    TSR_OP_CHECK_POINTER(args, offsets);
    if (args->tokens == 0) {
        return tsr_device_zero(device, args->offsets,
                               ((size_t)args->experts + 1) * sizeof *args->offsets, stream);
    }
    TSR_OP_CHECK_POINTER(args, index);
    TSR_OP_CHECK_POINTER(args, weight);
    TSR_OP_CHECK_POINTER(args, row_of);
    TSR_OP_CHECK_POINTER(args, token_of);
    TSR_OP_CHECK_POINTER(args, row_weight);
    TSR_OP_RUN(TSR_OP_SORT_BY_EXPERT, stream, 0, 20 * (double)copies,
               device->ops->sort_by_expert(device, args, stream));
}

tsr_status tsr_op_permute(tsr_device *device, const tsr_permute_args *args, tsr_stream *stream)
{
    int64_t rows = 0;

    TSR_OP_CHECK_STREAM(device, stream);
    TSR_OP_CHECK_LEAST(args, experts, 1);
    TSR_OP_CHECK_LEAST(args, width, 1);
    TSR_OP_CHECK_DTYPE(args, dtype);
    TSR_OP_CHECK_POINTER(args, offsets);
    TSR_OP_CHECK_POINTER(args, tokens);
    TSR_OP_CHECK_POINTER(args, rows);
    TSR_OP_CHECK_POINTER(args, token_of);
    TSR_TRY(tsr_op_profile_read(device, stream, args->offsets + args->experts, &rows));
    const double element = (double)tsr_dtype_bytes(args->dtype);
    TSR_OP_RUN(TSR_OP_PERMUTE, stream, 0,
               (double)rows * (double)args->width * (element + (args->from_f32 ? 4 : element)),
               device->ops->permute(device, args, stream));
}

tsr_status tsr_op_unpermute(tsr_device *device, const tsr_unpermute_args *args, tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_OP_CHECK_SIZE(args, tokens);
    TSR_OP_CHECK_LEAST(args, width, 1);
    TSR_OP_CHECK_LEAST(args, top_k, 1);
    TSR_OP_CHECK_DTYPE(args, dtype);
    if (args->tokens == 0) {
        return TSR_OK;
    }
    TSR_OP_CHECK_POINTER(args, rows);
    TSR_OP_CHECK_POINTER(args, row_of);
    TSR_OP_CHECK_POINTER(args, out);
    const double cells = (double)args->tokens * (double)args->width;
    TSR_OP_RUN(
        TSR_OP_UNPERMUTE, stream, args->top_k * cells,
        cells * (args->top_k * (double)tsr_dtype_bytes(args->dtype) + (args->base != NULL ? 8 : 4)),
        device->ops->unpermute(device, args, stream));
}

tsr_status tsr_op_gather_f32(tsr_device *device, const float *rows, const int32_t *row_of,
                             int64_t count, float *out, tsr_stream *stream)
{
    TSR_OP_CHECK_STREAM(device, stream);
    TSR_CHECK(count >= 0, TSR_ERR_ARG, "gather_f32: count = %lld, must be >= 0", (long long)count);
    if (count == 0) {
        return TSR_OK;
    }
    TSR_CHECK(rows != NULL && row_of != NULL && out != NULL, TSR_ERR_ARG,
              "gather_f32: rows, row_of and out must not be NULL");
    TSR_OP_RUN(TSR_OP_GATHER_F32, stream, 0, 12 * (double)count,
               device->ops->gather_f32(device, rows, row_of, count, out, stream));
}
