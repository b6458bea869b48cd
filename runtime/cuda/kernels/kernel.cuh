/* What the kernels of this folder share: packs of elements, sums of a warp and of a block, grids.
 *
 * A pack is what one access moves: V elements, V * sizeof(T) <= 16 bytes. Each kernel exists for
 * packs as wide as its widest element type allows, used when all pointers and rows are aligned to
 * 16 bytes, and for V = 1, right for any alignment. In registers elements are always f32. */
#ifndef TSR_RUNTIME_CUDA_KERNEL_CUH
#define TSR_RUNTIME_CUDA_KERNEL_CUH

#include "runtime/cuda/port.h"

typedef __nv_bfloat16 tsr_device_bf16;

#define TSR_WARP      32
#define TSR_ALL_LANES 0xffffffffu
#define TSR_BLOCK_MAX 1024

/* ---- elements ------------------------------------------------------------------------------- */

template <class... T> static constexpr int tsr_pack_width()
{
    size_t widest = 1;

    ((widest = sizeof(T) > widest ? sizeof(T) : widest), ...);
    return (int)(16 / widest);
}

template <int V, class T> struct alignas(V * sizeof(T)) tsr_pack {
    static_assert(V * sizeof(T) <= 16, "one access moves 16 bytes at most");
    T at[V];
};

__device__ __forceinline__ float tsr_widen(float value)
{
    return value;
}

__device__ __forceinline__ float tsr_widen(tsr_device_bf16 value)
{
    return __bfloat162float(value);
}

__device__ __forceinline__ void tsr_narrow(float value, float *out)
{
    *out = value;
}

__device__ __forceinline__ void tsr_narrow(float value, tsr_device_bf16 *out)
{
    *out = __float2bfloat16_rn(value);
}

template <int V, class T> __device__ __forceinline__ void tsr_load(const T *from, float (&to)[V])
{
    const tsr_pack<V, T> pack = *(const tsr_pack<V, T> *)from;

#pragma unroll
    for (int v = 0; v < V; ++v) {
        to[v] = tsr_widen(pack.at[v]);
    }
}

template <int V, class T> __device__ __forceinline__ void tsr_store(T *to, const float (&from)[V])
{
    tsr_pack<V, T> pack;

#pragma unroll
    for (int v = 0; v < V; ++v) {
        tsr_narrow(from[v], &pack.at[v]);
    }
    *(tsr_pack<V, T> *)to = pack;
}

/* May packs of v elements be used: rows of `width` elements, all these arrays aligned? */
template <class... Pointers>
static bool tsr_packable(int v, int64_t width, const Pointers *...arrays)
{
    return width % v == 0 && (((uintptr_t)arrays % 16 == 0) && ...);
}

/* ---- sums, in an order that depends on the number of threads only
 * ------------------------------ */

template <class T> __device__ __forceinline__ T tsr_warp_sum(T value)
{
#pragma unroll
    for (int distance = TSR_WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(TSR_ALL_LANES, value, distance);
    }
    return value;
}

__device__ __forceinline__ float tsr_warp_max(float value)
{
#pragma unroll
    for (int distance = TSR_WARP / 2; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(TSR_ALL_LANES, value, distance));
    }
    return value;
}

/* The same sum in every thread of a one-dimensional block of whole warps: lanes first, then warps
 * in order. Every thread must call it. */
template <class T> __device__ __forceinline__ T tsr_block_sum(T value)
{
    TSR_SHARED(partial, T[TSR_WARP]);
    const int warps = (int)blockDim.x / TSR_WARP;

    value = tsr_warp_sum(value);
    if (warps == 1) {
        return value;
    }
    __syncthreads(); /* the last sum has been read by all */
    if (threadIdx.x % TSR_WARP == 0) {
        partial[threadIdx.x / TSR_WARP] = value;
    }
    __syncthreads();
    value = partial[0];
    for (int warp = 1; warp < warps; ++warp) {
        value += partial[warp];
    }
    return value;
}

/* As tsr_block_sum(), of maxima. */
__device__ __forceinline__ float tsr_block_max(float value)
{
    TSR_SHARED(partial, float[TSR_WARP]);
    const int warps = (int)blockDim.x / TSR_WARP;

    value = tsr_warp_max(value);
    __syncthreads(); /* the last maximum has been read by all */
    if (threadIdx.x % TSR_WARP == 0) {
        partial[threadIdx.x / TSR_WARP] = value;
    }
    __syncthreads();
    for (int warp = 0; warp < warps; ++warp) {
        value = fmaxf(value, partial[warp]);
    }
    return value;
}

/* ---- launches ------------------------------------------------------------------------------- */

static inline int64_t tsr_divide_up(int64_t value, int64_t by)
{
    return (value + by - 1) / by;
}

/* Threads for `work` equal pieces, `each` of them a thread: whole warps, at most `most`. */
static inline unsigned tsr_block_for(int64_t work, int each, int most)
{
    const int64_t threads = tsr_divide_up(tsr_divide_up(work, each), TSR_WARP) * TSR_WARP;

    return (unsigned)(threads > most ? most : threads);
}

/* A one-dimensional grid of this many blocks. */
static inline tsr_status tsr_grid_for(const char *name, int64_t blocks, dim3 *out)
{
    TSR_CHECK(blocks <= INT32_MAX, TSR_ERR_RANGE,
              "%s: %lld blocks, a launch takes %d: use smaller "
              "batches",
              name, (long long)blocks, INT32_MAX);
    *out = dim3((unsigned)blocks, 1, 1);
    return TSR_OK;
}

#endif
