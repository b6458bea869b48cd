/* RMSNorm and its gradients. */
#include "runtime/cuda/kernels/kernel.cuh"

enum {
    ROW_THREADS = 512,
    KEPT = 4 /* packs of a row that a thread keeps in registers; wider rows are read again */
};

/* ---- rows ----------------------------------------------------------------------------------- */

/* A block a row, a thread packs blockDim apart, the first KEPT of them in registers: up to 8192
 * columns are read once. The sum of squares goes thread, lanes, warps. Traffic 6 bytes an element
 * (bf16 output), bound by that. Shared memory 128 bytes. Twin: tsr_plain_rmsnorm_forward(). */
template <class T, int V>
static __global__ void __launch_bounds__(ROW_THREADS) forward_kernel(tsr_rmsnorm_args a)
{
    const float *row = a.x + (int64_t)blockIdx.x * a.width;
    T *y = (T *)a.y + (int64_t)blockIdx.x * a.width;
    const int64_t step = (int64_t)blockDim.x * V, first = (int64_t)threadIdx.x * V;
    float x[KEPT][V], squares = 0.0f;

#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        if (first + i * step < a.width) {
            tsr_load<V>(row + first + i * step, x[i]);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                squares += x[i][v] * x[i][v];
            }
        }
    }
    for (int64_t at = first + KEPT * step; at < a.width; at += step) {
        float more[V];

        tsr_load<V>(row + at, more);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            squares += more[v] * more[v];
        }
    }
    const float rstd = 1.0f / sqrtf(tsr_block_sum(squares) / (float)a.width + a.eps);
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        const int64_t at = first + i * step;

        if (at < a.width) {
            float weight[V];

            tsr_load<V>(a.weight + at, weight);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                x[i][v] *= rstd * weight[v];
            }
            tsr_store<V>(y + at, x[i]);
        }
    }
    for (int64_t at = first + KEPT * step; at < a.width; at += step) {
        float more[V], weight[V];

        tsr_load<V>(row + at, more);
        tsr_load<V>(a.weight + at, weight);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            more[v] *= rstd * weight[v];
        }
        tsr_store<V>(y + at, more);
    }
    if (threadIdx.x == 0 && a.rstd != NULL) {
        a.rstd[blockIdx.x] = rstd;
    }
}

/* g = dy weight and n = x rstd, a pack each. */
template <int V>
static __device__ __forceinline__ void load_gradient(const tsr_rmsnorm_args &a, int64_t row,
                                                     int64_t at, float rstd, float (&g)[V],
                                                     float (&n)[V])
{
    float weight[V];

    tsr_load<V>(a.dy + row + at, g);
    tsr_load<V>(a.x + row + at, n);
    tsr_load<V>(a.weight + at, weight);
#pragma unroll
    for (int v = 0; v < V; ++v) {
        g[v] *= weight[v];
        n[v] *= rstd;
    }
}

/* dx += rstd (g - n mean(g n)). */
template <int V>
static __device__ __forceinline__ void add_gradient(float *dx, const float (&g)[V],
                                                    const float (&n)[V], float rstd, float mean)
{
    float sum[V];

    tsr_load<V>(dx, sum);
#pragma unroll
    for (int v = 0; v < V; ++v) {
        sum[v] += rstd * (g[v] - n[v] * mean);
    }
    tsr_store<V>(dx, sum);
}

/* As forward: a block a row, g and n of up to 8192 columns in registers; the sum g n goes thread,
 * lanes, warps. Traffic 16 bytes an element, bound by that. Shared memory 128 bytes.
 * Twin: tsr_plain_rmsnorm_backward_input(). */
template <int V>
static __global__ void __launch_bounds__(ROW_THREADS) backward_input_kernel(tsr_rmsnorm_args a)
{
    const int64_t row = (int64_t)blockIdx.x * a.width;
    const int64_t step = (int64_t)blockDim.x * V, first = (int64_t)threadIdx.x * V;
    const float rstd = a.rstd[blockIdx.x];
    float g[KEPT][V], n[KEPT][V], dot = 0.0f;

#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        if (first + i * step < a.width) {
            load_gradient<V>(a, row, first + i * step, rstd, g[i], n[i]);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                dot += g[i][v] * n[i][v];
            }
        }
    }
    for (int64_t at = first + KEPT * step; at < a.width; at += step) {
        float more_g[V], more_n[V];

        load_gradient<V>(a, row, at, rstd, more_g, more_n);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            dot += more_g[v] * more_n[v];
        }
    }
    const float mean = tsr_block_sum(dot) / (float)a.width;
#pragma unroll
    for (int i = 0; i < KEPT; ++i) {
        if (first + i * step < a.width) {
            add_gradient<V>(a.dx + row + first + i * step, g[i], n[i], rstd, mean);
        }
    }
    for (int64_t at = first + KEPT * step; at < a.width; at += step) {
        float more_g[V], more_n[V];

        load_gradient<V>(a, row, at, rstd, more_g, more_n);
        add_gradient<V>(a.dx + row + at, more_g, more_n, rstd, mean);
    }
}

/* V is 4 or 1 here: x, dy and the weight are f32 always. */
enum { V_ROWS = 4 };

template <class T> static tsr_status forward(const tsr_rmsnorm_args *args, tsr_stream *stream)
{
    const bool is_aligned = tsr_packable(V_ROWS, args->width, args->x, args->weight, args->y);
    const int64_t packs = args->width / (is_aligned ? V_ROWS : 1);
    const dim3 block(tsr_block_for(packs, KEPT, ROW_THREADS));
    dim3 grid;

    TSR_TRY(tsr_grid_for("rmsnorm_forward", args->rows, &grid));
    if (is_aligned) {
        TSR_LAUNCH(forward_kernel<T, V_ROWS>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    } else {
        TSR_LAUNCH(forward_kernel<T, 1>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    }
    return TSR_OK;
}

tsr_status tsr_cuda_rmsnorm_forward(tsr_device *device, const tsr_rmsnorm_args *args,
                                    tsr_stream *stream)
{
    (void)device;
    return args->dtype == TSR_F32 ? forward<float>(args, stream)
                                  : forward<tsr_device_bf16>(args, stream);
}

tsr_status tsr_cuda_rmsnorm_backward_input(tsr_device *device, const tsr_rmsnorm_args *args,
                                           tsr_stream *stream)
{
    const bool is_aligned =
        tsr_packable(V_ROWS, args->width, args->x, args->weight, args->dy, args->dx);
    const int64_t packs = args->width / (is_aligned ? V_ROWS : 1);
    const dim3 block(tsr_block_for(packs, KEPT, ROW_THREADS));
    dim3 grid;

    (void)device;
    TSR_TRY(tsr_grid_for("rmsnorm_backward_input", args->rows, &grid));
    if (is_aligned) {
        TSR_LAUNCH(backward_input_kernel<V_ROWS>, grid, block, 0, tsr_cuda_stream_of(stream),
                   *args);
    } else {
        TSR_LAUNCH(backward_input_kernel<1>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    }
    return TSR_OK;
}

/* ---- columns: the weight's gradient --------------------------------------------------------- */

enum {
    COLUMN_WARPS = 8,
    SLICE_ROWS = 256, /* of one block at least */
    SLICES_MAX = 64
};

/* A block sums the rows of one slice for 32 packs of columns: a lane a pack, a warp every eighth
 * row; the warps' sums are added in order through shared memory (4 KiB). Reads 8 bytes an element
 * once, bound by that. Twin: tsr_plain_rmsnorm_backward_weight(). */
template <int V>
static __global__ void __launch_bounds__(COLUMN_WARPS *TSR_WARP)
    slice_kernel(tsr_rmsnorm_args a, int64_t slice_rows, float *partials)
{
    TSR_SHARED(sums, float[COLUMN_WARPS][TSR_WARP][V]);
    const int lane = (int)threadIdx.x % TSR_WARP, warp = (int)threadIdx.x / TSR_WARP;
    const int64_t col = ((int64_t)blockIdx.x * TSR_WARP + lane) * V;
    const int64_t first = (int64_t)blockIdx.y * slice_rows;
    const int64_t end = a.rows - first < slice_rows ? a.rows : first + slice_rows;
    float sum[V] = {0.0f};

    if (col < a.width) {
#pragma unroll 4
        for (int64_t row = first + warp; row < end; row += COLUMN_WARPS) {
            float x[V], dy[V];

            tsr_load<V>(a.x + row * a.width + col, x);
            tsr_load<V>(a.dy + row * a.width + col, dy);
            const float rstd = a.rstd[row];
#pragma unroll
            for (int v = 0; v < V; ++v) {
                sum[v] += dy[v] * (x[v] * rstd);
            }
        }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
        sums[warp][lane][v] = sum[v];
    }
    __syncthreads();
    if (warp == 0 && col < a.width) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
            float total = sums[0][lane][v];

            for (int w = 1; w < COLUMN_WARPS; ++w) {
                total += sums[w][lane][v];
            }
            partials[blockIdx.y * a.width + col + v] = total;
        }
    }
}

/* A thread a column: its old gradient, if kept, then the slices in order. */
static __global__ void __launch_bounds__(256)
    add_slices_kernel(tsr_rmsnorm_args a, const float *partials, int slices)
{
    const int64_t col = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;

    if (col < a.width) {
        float sum = a.accumulate ? a.dweight[col] : 0.0f;

        for (int slice = 0; slice < slices; ++slice) {
            sum += partials[slice * a.width + col];
        }
        a.dweight[col] = sum;
    }
}

tsr_status tsr_cuda_rmsnorm_backward_weight(tsr_device *device, const tsr_rmsnorm_args *args,
                                            tsr_stream *stream)
{
    const cudaStream_t queue = tsr_cuda_stream_of(stream);
    const bool is_aligned = tsr_packable(V_ROWS, args->width, args->x, args->dy);
    const int64_t columns = (int64_t)TSR_WARP * (is_aligned ? V_ROWS : 1);
    const int64_t least = tsr_divide_up(args->rows, SLICES_MAX);
    const int64_t slice_rows = least > SLICE_ROWS ? least : (int64_t)SLICE_ROWS;
    const int slices = (int)tsr_divide_up(args->rows, slice_rows);
    const dim3 block(COLUMN_WARPS * TSR_WARP);
    void *partials = NULL;
    dim3 grid;

    TSR_TRY(tsr_cuda_workspace(device, (size_t)(slices + 1) * (size_t)args->width * sizeof(float),
                               stream, &partials));
    TSR_TRY(tsr_grid_for("rmsnorm_backward_weight", tsr_divide_up(args->width, columns), &grid));
    if (slices > 0) { /* none without rows */
        grid.y = (unsigned)slices;
        if (is_aligned) {
            TSR_LAUNCH(slice_kernel<V_ROWS>, grid, block, 0, queue, *args, slice_rows,
                       (float *)partials);
        } else {
            TSR_LAUNCH(slice_kernel<1>, grid, block, 0, queue, *args, slice_rows,
                       (float *)partials);
        }
    }
    TSR_TRY(tsr_grid_for("rmsnorm_backward_weight", tsr_divide_up(args->width, 256), &grid));
    TSR_LAUNCH(add_slices_kernel, grid, dim3(256), 0, queue, *args, (const float *)partials,
               slices);
    return TSR_OK;
}
