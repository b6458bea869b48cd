/* Token copies sorted by expert. */
#include "runtime/cuda/kernels/counting_sort.cuh"

struct place_copy {
    const float *weight;
    int32_t *row_of, *token_of;
    float *row_weight;
    int top_k;

    __device__ void operator()(int64_t copy, int32_t row) const
    {
        row_of[copy] = row;
        token_of[row] = (int32_t)(copy / top_k);
        row_weight[row] = weight[copy];
    }
};

/* A thread a row that may be padding: TSR_ROW_ALIGN of them an expert. */
static __global__ void __launch_bounds__(256)
    pad_kernel(tsr_sort_tables tables, int experts, int32_t *token_of, float *row_weight)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x), expert = i / TSR_ROW_ALIGN;

    if (expert < experts) {
        const int64_t row = tables.offsets[expert] + tables.totals[expert] + i % TSR_ROW_ALIGN;

        if (row < tables.offsets[expert + 1]) {
            token_of[row] = -1;
            row_weight[row] = 0.0f;
        }
    }
}

/* See counting_sort.cuh; scattered writes of 12 bytes a copy are most of its traffic, but its five
 * short launches cost more. Twin: tsr_cpu_sort_by_expert(). */
tsr_status tsr_cuda_sort_by_expert(tsr_device *device, const tsr_sort_args *args,
                                   tsr_stream *stream)
{
    const tsr_sort_keys keys = {args->index, args->tokens * args->top_k, 0, INT32_MAX,
                                args->experts};
    const place_copy place = {args->weight, args->row_of, args->token_of, args->row_weight,
                              args->top_k};
    const int64_t shares = tsr_sort_shares(keys.count);
    const cudaStream_t queue = tsr_cuda_stream_of(stream);
    void *scratch = NULL;

    TSR_TRY(tsr_cuda_workspace(device, (size_t)((shares + 1) * args->experts) * sizeof(int32_t),
                               stream, &scratch));
    const tsr_sort_tables tables = {(int32_t *)scratch + args->experts, (int32_t *)scratch,
                                    args->offsets};
    TSR_TRY(tsr_sort("sort_by_expert", keys, TSR_ROW_ALIGN, tables, place, queue));
    TSR_LAUNCH(pad_kernel,
               dim3((unsigned)tsr_divide_up((int64_t)args->experts * TSR_ROW_ALIGN, 256)),
               dim3(256), 0, queue, tables, args->experts, args->token_of, args->row_weight);
    return TSR_OK;
}
