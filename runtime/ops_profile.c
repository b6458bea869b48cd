#include "runtime/ops_impl.h"

#include <time.h>

static _Thread_local bool is_profiling;

static tsr_op_profile profile[TSR_OPS] = {
    [TSR_OP_GEMM] = {.name = "gemm"},
    [TSR_OP_GROUPED_GEMM] = {.name = "grouped_gemm"},
    [TSR_OP_RMSNORM_FORWARD] = {.name = "rmsnorm_forward"},
    [TSR_OP_RMSNORM_BACKWARD_INPUT] = {.name = "rmsnorm_backward_input"},
    [TSR_OP_RMSNORM_BACKWARD_WEIGHT] = {.name = "rmsnorm_backward_weight"},
    [TSR_OP_ROPE] = {.name = "rope"},
    [TSR_OP_SWIGLU_FORWARD] = {.name = "swiglu_forward"},
    [TSR_OP_SWIGLU_BACKWARD] = {.name = "swiglu_backward"},
    [TSR_OP_ATTENTION_FORWARD] = {.name = "attention_forward"},
    [TSR_OP_ATTENTION_BACKWARD] = {.name = "attention_backward"},
    [TSR_OP_ROUTE_FORWARD] = {.name = "route_forward"},
    [TSR_OP_ROUTE_BACKWARD] = {.name = "route_backward"},
    [TSR_OP_SORT_BY_EXPERT] = {.name = "sort_by_expert"},
    [TSR_OP_PERMUTE] = {.name = "permute"},
    [TSR_OP_UNPERMUTE] = {.name = "unpermute"},
    [TSR_OP_GATHER_F32] = {.name = "gather_f32"},
    [TSR_OP_EMBEDDING_FORWARD] = {.name = "embedding_forward"},
    [TSR_OP_EMBEDDING_BACKWARD] = {.name = "embedding_backward"},
    [TSR_OP_CROSS_ENTROPY] = {.name = "cross_entropy"},
    [TSR_OP_CONVERT] = {.name = "convert"},
    [TSR_OP_ADD_F32] = {.name = "add_f32"},
    [TSR_OP_SUM] = {.name = "sum"},
    [TSR_OP_SUM_SQUARES] = {.name = "sum_squares"},
    [TSR_OP_ADAMW] = {.name = "adamw"},
};

static double now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double tsr_op_profile_start(void)
{
    return is_profiling ? now() : 0.0;
}

tsr_status tsr_op_profile_stop(tsr_op op, tsr_stream *stream, double start, double flops,
                               double bytes)
{
    if (!is_profiling) {
        return TSR_OK;
    }
    TSR_TRY(tsr_stream_wait(stream));
    profile[op].calls += 1;
    profile[op].seconds += now() - start;
    profile[op].flops += flops;
    profile[op].bytes += bytes;
    return TSR_OK;
}

tsr_status tsr_op_profile_read(tsr_device *device, tsr_stream *stream, const int64_t *at,
                               int64_t *out)
{
    *out = 0;
    if (!is_profiling) {
        return TSR_OK;
    }
    TSR_TRY(tsr_device_copy(device, out, at, sizeof *out, TSR_COPY_DEVICE_TO_HOST, stream));
    return tsr_stream_wait(stream);
}

void tsr_op_profile_enable(bool on)
{
    is_profiling = on;
}

void tsr_op_profile_reset(void)
{
    for (int op = 0; op < TSR_OPS; ++op) {
        profile[op] = (tsr_op_profile){.name = profile[op].name};
    }
}

const tsr_op_profile *tsr_op_profile_get(int *count_out)
{
    *count_out = TSR_OPS;
    return profile;
}
