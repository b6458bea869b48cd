/* Rotary position embedding. */
#include "runtime/cuda/kernels/kernel.cuh"

enum { THREADS = 256 };

/* A block a token, in place: thread (x, y) turns packs of pairs x, x + blockDim.x, ... of heads y,
 * y + blockDim.y, ..., with the cosines and sines of a pack loaded once for all heads. Every
 * element is read and written once: bound by that. No shared memory, no sums. Twin:
 * tsr_plain_rope(). */
template <class T, int V>
static __global__ void __launch_bounds__(THREADS) rope_kernel(tsr_rope_args a)
{
    const int middle = a.head_dim / 2;
    const int64_t token = blockIdx.x;
    const int64_t angles = (a.first_position + token % a.seq_len) * middle;
    T *row = (T *)a.x + token * a.row_stride;

    for (int i = (int)threadIdx.x * V; i < middle; i += (int)blockDim.x * V) {
        float cosine[V], sine[V];

#pragma unroll
        for (int v = 0; v < V; ++v) {
            cosine[v] = a.cosine[angles + i + v];
            sine[v] = a.inverse ? -a.sine[angles + i + v] : a.sine[angles + i + v];
        }
        for (int head = (int)threadIdx.y; head < a.heads; head += (int)blockDim.y) {
            T *at = row + (int64_t)head * a.head_dim + i;
            float first[V], second[V], turned[V];

            tsr_load<V>(at, first);
            tsr_load<V>(at + middle, second);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                turned[v] = first[v] * cosine[v] - second[v] * sine[v];
                second[v] = second[v] * cosine[v] + first[v] * sine[v];
            }
            tsr_store<V>(at, turned);
            tsr_store<V>(at + middle, second);
        }
    }
}

/* The heads shared out evenly over as many rows of threads as fit. */
static dim3 block_for(int packs, int heads)
{
    const int across = packs < THREADS ? packs : THREADS, down_max = THREADS / across;
    const int rounds = (heads + down_max - 1) / down_max;

    return dim3((unsigned)across, (unsigned)((heads + rounds - 1) / rounds));
}

template <class T> static tsr_status rope(const tsr_rope_args *args, tsr_stream *stream)
{
    constexpr int V = tsr_pack_width<T>();
    const int middle = args->head_dim / 2;
    const bool is_aligned = middle % V == 0 && tsr_packable(V, args->row_stride, args->x);
    const dim3 block = block_for(middle / (is_aligned ? V : 1), args->heads);
    dim3 grid;

    TSR_TRY(tsr_grid_for("rope", args->tokens, &grid));
    if (is_aligned) {
        TSR_LAUNCH(rope_kernel<T, V>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    } else {
        TSR_LAUNCH(rope_kernel<T, 1>, grid, block, 0, tsr_cuda_stream_of(stream), *args);
    }
    return TSR_OK;
}

tsr_status tsr_cuda_rope(tsr_device *device, const tsr_rope_args *args, tsr_stream *stream)
{
    (void)device;
    return args->dtype == TSR_F32 ? rope<float>(args, stream) : rope<tsr_device_bf16>(args, stream);
}
