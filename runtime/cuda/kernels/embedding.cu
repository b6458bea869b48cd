/* Rows of the embedding table, and their gradient. */
#include "runtime/cuda/kernels/counting_sort.cuh"

enum {
    THREADS = 256,
    SUM_THREADS = 128,
    DIGIT_BITS = 8 /* of one pass of the sort by token */
};

/* A block a token, a thread packs of four columns blockDim apart. Traffic 6 bytes an element of a
 * bf16 table, bound by that. No shared memory, no sums. Twin: tsr_plain_embedding_forward(). */
template <class T, int V>
static __global__ void __launch_bounds__(THREADS) forward_kernel(tsr_embedding_args a)
{
    const T *row = (const T *)a.table + (int64_t)a.token[blockIdx.x] * a.width;
    float *x = a.x + (int64_t)blockIdx.x * a.width;

    for (int64_t col = (int64_t)threadIdx.x * V; col < a.width; col += (int64_t)blockDim.x * V) {
        float pack[V];

        tsr_load<V>(row + col, pack);
        tsr_store<V>(x + col, pack);
    }
}

template <class T> static tsr_status forward(const tsr_embedding_args *args, tsr_stream *stream)
{
    constexpr int V = tsr_pack_width<T, float>();
    const bool is_aligned = tsr_packable(V, args->width, args->table, args->x);
    const dim3 block(tsr_block_for(args->width / (is_aligned ? V : 1), 2, THREADS));
    dim3 grid;

    TSR_TRY(tsr_grid_for("embedding_forward", args->tokens, &grid));
    if (is_aligned) {
        TSR_LAUNCH(forward_kernel<T, V>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    } else {
        TSR_LAUNCH(forward_kernel<T, 1>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    }
    return TSR_OK;
}

tsr_status tsr_cuda_embedding_forward(tsr_device *device, const tsr_embedding_args *args,
                                      tsr_stream *stream)
{
    (void)device;
    return args->dtype == TSR_F32 ? forward<float>(args, stream)
                                  : forward<tsr_device_bf16>(args, stream);
}

/* ---- the gradient: equal tokens brought together in order, then summed by one block
 * -------------- */

typedef struct occurrences { /* sorted by token, then by position in the batch */
    int32_t *tokens, *positions;
} occurrences;

struct place_token {
    const int32_t *tokens, *positions; /* positions: NULL before the first pass */
    occurrences to;

    __device__ void operator()(int64_t i, int32_t row) const
    {
        to.tokens[row] = tokens[i];
        to.positions[row] = positions == NULL ? (int32_t)i : positions[i];
    }
};

/* Where the occurrences of the token at `first` end, by bisection. */
static __device__ __forceinline__ int64_t run_end(const int32_t *tokens, int64_t first,
                                                  int64_t count)
{
    const int32_t token = tokens[first];
    int64_t low = first + 1, high = count;

    while (low < high) {
        const int64_t middle = (low + high) / 2;

        if (tokens[middle] > token) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* Block (i, tile) has work where occurrence i is the first of its token: a thread a pack of
 * columns, summed over the occurrences in order, as the twin does. Traffic 4 bytes an element of
 * dx, and each row of dtable that is met read (if kept) and written once: bound by that. No shared
 * memory, no atomics. Twin: tsr_plain_embedding_backward(), with equal bits. */
template <int V>
static __global__ void __launch_bounds__(SUM_THREADS)
    sum_kernel(tsr_embedding_args a, occurrences sorted)
{
    const int64_t first = blockIdx.x;
    const int64_t col = ((int64_t)blockIdx.y * blockDim.x + threadIdx.x) * V;

    if (col >= a.width || (first > 0 && sorted.tokens[first - 1] == sorted.tokens[first])) {
        return;
    }
    float *row = a.dtable + (int64_t)sorted.tokens[first] * a.width + col;
    const int64_t end = run_end(sorted.tokens, first, a.tokens);
    float sum[V];

    tsr_load<V>(row, sum);
#pragma unroll 8
    for (int64_t i = first; i < end; ++i) {
        float dx[V];

        tsr_load<V>(a.dx + (int64_t)sorted.positions[i] * a.width + col, dx);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            sum[v] += dx[v];
        }
    }
    tsr_store<V>(row, sum);
}

/* Sort by token, a digit at a time from the lowest; *out is the order. */
static tsr_status sort_tokens(tsr_device *device, const tsr_embedding_args *args,
                              tsr_stream *stream, occurrences *out)
{
    const int bins = 1 << DIGIT_BITS;
    const int64_t tokens = args->tokens, shares = tsr_sort_shares(tokens);
    const int64_t words = bins + 2 + shares * bins + 4 * tokens;
    const size_t offsets_bytes = (size_t)(bins + 1) * sizeof(int64_t);
    const int32_t *keys = args->token, *positions = NULL;
    void *scratch = NULL;

    TSR_TRY(tsr_cuda_workspace(device, offsets_bytes + (size_t)words * sizeof(int32_t), stream,
                               &scratch));
    int64_t *offsets = (int64_t *)scratch;
    int32_t *rest = (int32_t *)(offsets + bins + 1);
    const tsr_sort_tables tables = {rest + bins, rest, offsets};
    int32_t *buffers = rest + bins + shares * bins;
    int pass = 0;

    for (; pass == 0 || (args->vocab - 1) >> (pass * DIGIT_BITS) > 0; ++pass) {
        int32_t *pair = buffers + pass % 2 * 2 * tokens;
        const tsr_sort_keys digits = {keys, tokens, pass * DIGIT_BITS, bins - 1, bins};
        const place_token place = {keys, positions, {pair, pair + tokens}};

        TSR_TRY(
            tsr_sort("embedding_backward", digits, 1, tables, place, tsr_cuda_stream_of(stream)));
        keys = pair;
        positions = pair + tokens;
    }
    out->tokens = buffers + (pass - 1) % 2 * 2 * tokens;
    out->positions = out->tokens + tokens;
    return TSR_OK;
}

tsr_status tsr_cuda_embedding_backward(tsr_device *device, const tsr_embedding_args *args,
                                       tsr_stream *stream)
{
    const cudaStream_t queue = tsr_cuda_stream_of(stream);
    const int v = tsr_packable(4, args->width, args->dx, args->dtable) ? 4 : 1;
    const int64_t packs = args->width / v;
    const dim3 block(tsr_block_for(packs, 1, SUM_THREADS));
    occurrences sorted;
    dim3 grid;

    if (!args->accumulate) {
        const size_t bytes = (size_t)args->vocab * (size_t)args->width * sizeof(float);

        TSR_CUDA_TRY(cudaMemsetAsync(args->dtable, 0, bytes, queue));
    }
    if (args->tokens == 0) {
        return TSR_OK;
    }
    TSR_TRY(sort_tokens(device, args, stream, &sorted));
    TSR_TRY(tsr_grid_for("embedding_backward", args->tokens, &grid));
    grid.y = (unsigned)tsr_divide_up(packs, block.x);
    if (v == 4) {
        TSR_LAUNCH(sum_kernel<4>, grid, block, 0, queue, *args, sorted);
    } else {
        TSR_LAUNCH(sum_kernel<1>, grid, block, 0, queue, *args, sorted);
    }
    return TSR_OK;
}
