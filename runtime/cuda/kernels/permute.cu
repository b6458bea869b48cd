/* Token copies in expert order, their sums back in token order, and gathers. */
#include "runtime/cuda/kernels/kernel.cuh"

enum {
    THREADS = 256,
    WARPS = THREADS / TSR_WARP,
    PERMUTE_BLOCKS = 8, /* for each multiprocessor: as many as it holds at once */
    ROW_PACKS = 4       /* of a lane on their way at once */
};

/* One row of packs by one warp; zeros if from is NULL. */
template <class From, class To, int V>
static __device__ __forceinline__ void copy_row(const From *from, To *to, int64_t width, int lane)
{
    for (int64_t first = (int64_t)lane * V; first < width;
         first += (int64_t)ROW_PACKS * TSR_WARP * V) {
        float pack[ROW_PACKS][V] = {};

#pragma unroll
        for (int i = 0; i < ROW_PACKS; ++i) {
            const int64_t at = first + (int64_t)i * TSR_WARP * V;

            if (from != NULL && at < width) {
                tsr_load<V>(from + at, pack[i]);
            }
        }
#pragma unroll
        for (int i = 0; i < ROW_PACKS; ++i) {
            const int64_t at = first + (int64_t)i * TSR_WARP * V;

            if (at < width) {
                tsr_store<V>(to + at, pack[i]);
            }
        }
    }
}

/* A warp a row, the warps of the whole grid striding over the rows, whose number only the device
 * knows. Each row is read and written once, 4 bytes a bf16 element: bound by that. No shared
 * memory, no sums. Twin: tsr_plain_permute(). */
template <class From, class To, int V>
static __global__ void __launch_bounds__(THREADS) permute_kernel(tsr_permute_args a)
{
    const int lane = (int)threadIdx.x % TSR_WARP;
    const int64_t rows = a.offsets[a.experts], step = (int64_t)gridDim.x * WARPS;

    for (int64_t row = (int64_t)blockIdx.x * WARPS + threadIdx.x / TSR_WARP; row < rows;
         row += step) {
        const int64_t token = a.token_of[row];
        const From *from = token < 0 ? NULL : (const From *)a.tokens + token * a.width;

        copy_row<From, To, V>(from, (To *)a.rows + row * a.width, a.width, lane);
    }
}

template <class From, class To>
static tsr_status permute(tsr_device *device, const tsr_permute_args *args, tsr_stream *stream)
{
    constexpr int V = tsr_pack_width<From, To>();
    const int multiprocessors = ((const tsr_cuda_device *)device)->multiprocessors;
    const dim3 grid((unsigned)(multiprocessors * PERMUTE_BLOCKS));

    if (tsr_packable(V, args->width, args->tokens, args->rows)) {
        TSR_LAUNCH(permute_kernel<From, To, V>, grid, dim3(THREADS), 0, tsr_cuda_stream_of(stream),
                   *args);
    } else {
        TSR_LAUNCH(permute_kernel<From, To, 1>, grid, dim3(THREADS), 0, tsr_cuda_stream_of(stream),
                   *args);
    }
    return TSR_OK;
}

tsr_status tsr_cuda_permute(tsr_device *device, const tsr_permute_args *args, tsr_stream *stream)
{
    if (args->dtype == TSR_F32) {
        return permute<float, float>(device, args, stream);
    }
    return args->from_f32 ? permute<float, tsr_device_bf16>(device, args, stream)
                          : permute<tsr_device_bf16, tsr_device_bf16>(device, args, stream);
}

/* A block a token, a thread packs of four columns blockDim apart: the base, then the K rows in
 * order, added in f32; the loads of the rows do not wait for each other. Traffic 2 K + 8 bytes an
 * element for bf16 rows, bound by that. No shared memory. Twin: tsr_plain_unpermute(). */
template <class T, int V>
static __global__ void __launch_bounds__(THREADS) unpermute_kernel(tsr_unpermute_args a)
{
    const int64_t token = blockIdx.x;
    const int32_t *row_of = a.row_of + token * a.top_k;

    for (int64_t col = (int64_t)threadIdx.x * V; col < a.width; col += (int64_t)blockDim.x * V) {
        float sum[V] = {0.0f};

        if (a.base != NULL) {
            tsr_load<V>(a.base + token * a.width + col, sum);
        }
#pragma unroll 4
        for (int k = 0; k < a.top_k; ++k) {
            float row[V] = {0.0f};

            if (row_of[k] >= 0) { /* the same for the whole block */
                tsr_load<V>((const T *)a.rows + (int64_t)row_of[k] * a.width + col, row);
            }
#pragma unroll
            for (int v = 0; v < V; ++v) {
                sum[v] += row[v];
            }
        }
        tsr_store<V>(a.out + token * a.width + col, sum);
    }
}

template <class T> static tsr_status unpermute(const tsr_unpermute_args *args, tsr_stream *stream)
{
    constexpr int V = tsr_pack_width<T, float>();
    const bool is_aligned = tsr_packable(V, args->width, args->rows, args->base, args->out);
    const dim3 block(tsr_block_for(args->width / (is_aligned ? V : 1), 1, THREADS));
    dim3 grid;

    TSR_TRY(tsr_grid_for("unpermute", args->tokens, &grid));
    if (is_aligned) {
        TSR_LAUNCH(unpermute_kernel<T, V>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    } else {
        TSR_LAUNCH(unpermute_kernel<T, 1>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    }
    return TSR_OK;
}

tsr_status tsr_cuda_unpermute(tsr_device *device, const tsr_unpermute_args *args,
                              tsr_stream *stream)
{
    (void)device;
    return args->dtype == TSR_F32 ? unpermute<float>(args, stream)
                                  : unpermute<tsr_device_bf16>(args, stream);
}

/* A thread an element; the scattered reads bound it. Twin: tsr_cpu_gather_f32(). */
static __global__ void __launch_bounds__(THREADS)
    gather_kernel(const float *rows, const int32_t *row_of, int64_t count, float *out)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;

    if (i < count) {
        out[i] = row_of[i] >= 0 ? rows[row_of[i]] : 0.0f;
    }
}

tsr_status tsr_cuda_gather_f32(tsr_device *device, const float *rows, const int32_t *row_of,
                               int64_t count, float *out, tsr_stream *stream)
{
    dim3 grid;

    (void)device;
    TSR_TRY(tsr_grid_for("gather_f32", tsr_divide_up(count, THREADS), &grid));
    TSR_LAUNCH(gather_kernel, grid, dim3(THREADS), 0, tsr_cuda_stream_of(stream), rows, row_of,
               count, out);
    return TSR_OK;
}
