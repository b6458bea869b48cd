/* SwiGLU and its gradient. */
#include "runtime/cuda/kernels/kernel.cuh"

enum { THREADS = 256 };

static __device__ __forceinline__ float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

/* A block a row, a thread packs blockDim apart: 16 bytes of gate and of up each. Every element is
 * read or written once (6 bytes a bf16 output): bound by that. No shared memory, no sums.
 * Twin: tsr_plain_swiglu_forward(). */
template <class T, int V>
static __global__ void __launch_bounds__(THREADS) forward_kernel(tsr_swiglu_args a)
{
    const int64_t row = blockIdx.x;
    const T *gates = (const T *)a.gate_up + row * 2 * a.width, *ups = gates + a.width;
    T *h = (T *)a.h + row * a.width;
    const float weight = a.row_weight != NULL ? a.row_weight[row] : 1.0f;

    for (int64_t at = (int64_t)threadIdx.x * V; at < a.width; at += (int64_t)blockDim.x * V) {
        float gate[V], up[V];

        tsr_load<V>(gates + at, gate);
        tsr_load<V>(ups + at, up);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            gate[v] = gate[v] * sigmoid(gate[v]) * up[v] * weight;
        }
        tsr_store<V>(h + at, gate);
    }
}

/* As forward, with silu'(g) = s (1 + g (1 - s)); a pack is read before it is written, so the
 * gradient may take the place of gate_up. The row weight's gradient is summed over a thread's
 * elements, lanes, warps. Traffic 12 bytes a bf16 element of h, bound by that. Shared memory 128
 * bytes. Twin: tsr_plain_swiglu_backward(). */
template <class T, int V>
static __global__ void __launch_bounds__(THREADS) backward_kernel(tsr_swiglu_args a)
{
    const int64_t row = blockIdx.x;
    const T *gates = (const T *)a.gate_up + row * 2 * a.width, *ups = gates + a.width;
    const T *dhs = (const T *)a.dh + row * a.width;
    T *dgates = (T *)a.dgate_up + row * 2 * a.width, *dups = dgates + a.width;
    const float weight = a.row_weight != NULL ? a.row_weight[row] : 1.0f;
    float dweight = 0.0f;

    for (int64_t at = (int64_t)threadIdx.x * V; at < a.width; at += (int64_t)blockDim.x * V) {
        float gate[V], up[V], dh[V], h[V];

        tsr_load<V>(gates + at, gate);
        tsr_load<V>(ups + at, up);
        tsr_load<V>(dhs + at, dh);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            const float s = sigmoid(gate[v]), silu = gate[v] * s;

            dweight += dh[v] * silu * up[v];
            h[v] = silu * up[v] * weight;
            gate[v] = dh[v] * weight * up[v] * (s * (1.0f + gate[v] * (1.0f - s)));
            up[v] = dh[v] * weight * silu;
        }
        tsr_store<V>(dgates + at, gate);
        tsr_store<V>(dups + at, up);
        if (a.h != NULL) {
            tsr_store<V>((T *)a.h + row * a.width + at, h);
        }
    }
    if (a.drow_weight != NULL) {
        dweight = tsr_block_sum(dweight);
        if (threadIdx.x == 0) {
            a.drow_weight[row] = dweight;
        }
    }
}

template <class T> static tsr_status forward(const tsr_swiglu_args *args, tsr_stream *stream)
{
    constexpr int V = tsr_pack_width<T>();
    const bool is_aligned = tsr_packable(V, args->width, args->gate_up, args->h);
    const dim3 block(tsr_block_for(args->width / (is_aligned ? V : 1), 1, THREADS));
    dim3 grid;

    TSR_TRY(tsr_grid_for("swiglu_forward", args->rows, &grid));
    if (is_aligned) {
        TSR_LAUNCH(forward_kernel<T, V>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    } else {
        TSR_LAUNCH(forward_kernel<T, 1>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    }
    return TSR_OK;
}

template <class T> static tsr_status backward(const tsr_swiglu_args *args, tsr_stream *stream)
{
    constexpr int V = tsr_pack_width<T>();
    const bool is_aligned =
        tsr_packable(V, args->width, args->gate_up, args->h, args->dh, args->dgate_up);
    const dim3 block(tsr_block_for(args->width / (is_aligned ? V : 1), 1, THREADS));
    dim3 grid;

    TSR_TRY(tsr_grid_for("swiglu_backward", args->rows, &grid));
    if (is_aligned) {
        TSR_LAUNCH(backward_kernel<T, V>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    } else {
        TSR_LAUNCH(backward_kernel<T, 1>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    }
    return TSR_OK;
}

tsr_status tsr_cuda_swiglu_forward(tsr_device *device, const tsr_swiglu_args *args,
                                   tsr_stream *stream)
{
    (void)device;
    return args->dtype == TSR_F32 ? forward<float>(args, stream)
                                  : forward<tsr_device_bf16>(args, stream);
}

tsr_status tsr_cuda_swiglu_backward(tsr_device *device, const tsr_swiglu_args *args,
                                    tsr_stream *stream)
{
    (void)device;
    return args->dtype == TSR_F32 ? backward<float>(args, stream)
                                  : backward<tsr_device_bf16>(args, stream);
}
