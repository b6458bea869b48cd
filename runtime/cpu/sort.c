/* Index work between router and experts, where no vector unit helps: one version for all tables. */
#include "runtime/cpu/cpu_impl.h"

/* A counting sort: the fill pass uses offsets[e] as expert e's next row, which leaves it at the end
 * of e's rows; moving them up one place afterwards restores the starts. */
tsr_status tsr_cpu_sort_by_expert(tsr_device *device, const tsr_sort_args *args, tsr_stream *stream)
{
    const int64_t copies = args->tokens * args->top_k;
    int64_t *offsets = args->offsets;

    (void)device;
    (void)stream;
    memset(offsets, 0, (size_t)(args->experts + 1) * sizeof *offsets);
    for (int64_t copy = 0; copy < copies; ++copy) {
        TSR_CHECK(args->index[copy] >= 0 && args->index[copy] < args->experts, TSR_ERR_ARG,
                  "index[%lld] = %d, must be an expert in [0, %d)", (long long)copy,
                  (int)args->index[copy], args->experts);
        ++offsets[args->index[copy] + 1];
    }
    for (int e = 0; e < args->experts; ++e) {
        offsets[e + 1] = offsets[e] + tsr_padded_rows(offsets[e + 1]);
    }
    for (int64_t copy = 0; copy < copies; ++copy) {
        const int64_t row = offsets[args->index[copy]]++;

        args->row_of[copy] = (int32_t)row;
        args->token_of[row] = (int32_t)(copy / args->top_k);
        args->row_weight[row] = args->weight[copy];
    }
    int64_t start = 0;
    for (int e = 0; e < args->experts; ++e) {
        const int64_t end = offsets[e], next = tsr_padded_rows(end);

        for (int64_t row = end; row < next; ++row) {
            args->token_of[row] = -1;
            args->row_weight[row] = 0.0f;
        }
        offsets[e] = start;
        start = next;
    }
    return TSR_OK;
}

tsr_status tsr_cpu_gather_f32(tsr_device *device, const float *rows, const int32_t *row_of,
                              int64_t count, float *out, tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t i = 0; i < count; ++i) {
        out[i] = row_of[i] >= 0 ? rows[row_of[i]] : 0.0f;
    }
    return TSR_OK;
}
