/* Element-wise work on long vectors: conversion and addition. */
#include "runtime/cuda/kernels/kernel.cuh"

enum { THREADS = 256, PACKS = 2 /* a thread, both on their way at once */ };

template <class From, class To> struct conversion {
    const From *from;
    To *to;

    template <int V> __device__ void compute(int64_t at, float (&out)[V]) const
    {
        tsr_load<V>(from + at, out);
    }
    template <int V> __device__ void store(int64_t at, const float (&out)[V]) const
    {
        tsr_store<V>(to + at, out);
    }
};

struct addition {
    const float *x;
    float *y;

    template <int V> __device__ void compute(int64_t at, float (&out)[V]) const
    {
        float other[V];

        tsr_load<V>(x + at, other);
        tsr_load<V>(y + at, out);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            out[v] += other[v];
        }
    }
    template <int V> __device__ void store(int64_t at, const float (&out)[V]) const
    {
        tsr_store<V>(y + at, out);
    }
};

/* A block does PACKS * THREADS packs, a thread PACKS of them, THREADS apart; the elements after the
 * last whole pack go one at a time. Every element is read and written once: bound by that traffic
 * (convert f32 to bf16: 6 bytes, add: 12). No shared memory, no sums.
 * Twins: tsr_plain_convert(), tsr_plain_add_f32(). */
template <class Op, int V>
static __global__ void __launch_bounds__(THREADS) elementwise_kernel(Op op, int64_t count)
{
    const int64_t first = ((int64_t)blockIdx.x * PACKS * THREADS + threadIdx.x) * V;
    const int64_t step = (int64_t)THREADS * V;
    float out[PACKS][V];

#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        if (first + i * step + V <= count) {
            op.template compute<V>(first + i * step, out[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < PACKS; ++i) {
        const int64_t at = first + i * step;

        if (at + V <= count) {
            op.template store<V>(at, out[i]);
        } else {
#pragma unroll 1
            for (int64_t rest = at; rest < count; ++rest) {
                float one[1];

                op.template compute<1>(rest, one);
                op.template store<1>(rest, one);
            }
        }
    }
}

template <int V, class Op>
static tsr_status launch(const char *name, const Op &op, int64_t count, bool is_aligned,
                         tsr_stream *stream)
{
    const int v = is_aligned ? V : 1;
    dim3 grid;

    TSR_TRY(tsr_grid_for(name, tsr_divide_up(count, (int64_t)PACKS * THREADS * v), &grid));
    if (is_aligned) {
        TSR_LAUNCH(elementwise_kernel<Op, V>, grid, dim3(THREADS), 0, tsr_cuda_stream_of(stream),
                   op, count);
    } else {
        TSR_LAUNCH(elementwise_kernel<Op, 1>, grid, dim3(THREADS), 0, tsr_cuda_stream_of(stream),
                   op, count);
    }
    return TSR_OK;
}

template <class From, class To>
static tsr_status convert(const void *from, void *to, int64_t count, tsr_stream *stream)
{
    const conversion<From, To> op = {(const From *)from, (To *)to};

    return launch<tsr_pack_width<From, To>()>("convert", op, count, tsr_packable(1, 1, from, to),
                                              stream);
}

tsr_status tsr_cuda_convert(tsr_device *device, const void *from, tsr_dtype from_dtype, void *to,
                            tsr_dtype to_dtype, int64_t count, tsr_stream *stream)
{
    (void)device;
    if (from_dtype == TSR_F32) {
        return to_dtype == TSR_F32 ? convert<float, float>(from, to, count, stream)
                                   : convert<float, tsr_device_bf16>(from, to, count, stream);
    }
    return to_dtype == TSR_F32 ? convert<tsr_device_bf16, float>(from, to, count, stream)
                               : convert<tsr_device_bf16, tsr_device_bf16>(from, to, count, stream);
}

tsr_status tsr_cuda_add_f32(tsr_device *device, const float *x, float *y, int64_t count,
                            tsr_stream *stream)
{
    const addition op = {x, y};

    (void)device;
    return launch<tsr_pack_width<float>()>("add_f32", op, count, tsr_packable(1, 1, x, y), stream);
}
