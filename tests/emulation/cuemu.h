/* CUDA device code on the host: each thread of a block is a fibre, each block runs by itself.
 *
 * Included by runtime/cuda/port.h under TSR_EMULATED. Implements what our kernels use: barriers,
 * shuffles, votes, atomics, shared memory, vector types, bf16 (the toolkit's own header).
 * Harder than a GPU: shared memory starts as NaN and is fenced, lanes of a warp run one at a time
 * in an order that tests choose, blocks too; threads that meet at different barriers, or wait for
 * each other for ever, end the launch with an error. Does not do: textures, cooperative groups,
 * clusters, blocks that wait for one another. */
#ifndef TSR_CUEMU_H
#define TSR_CUEMU_H

#include "tests/emulation/fake_cudart.h"

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__    __attribute__((noinline))
#define __launch_bounds__(...)
#ifndef __restrict__
#define __restrict__ __restrict
#endif
#define __shared__ static_assert(false, "declare shared memory by TSR_SHARED or TSR_DYN_SHARED");

extern "C" {
/* The thread that runs, and its block: cuemu.cpp keeps them. */
extern uint3 cuemu_thread, cuemu_block;
extern dim3 cuemu_block_dim, cuemu_grid_dim;

/** Shared memory of this block under this key; made on first use, filled with NaN. */
void *cuemu_shared(const void *key, size_t bytes);
void *cuemu_dynamic_shared(void);

typedef enum cuemu_op { CUEMU_SYNC, CUEMU_SHUFFLE, CUEMU_BALLOT, CUEMU_MATCH } cuemu_op;

void cuemu_barrier(const char *file, int line);
/** Meet the lanes of mask; the value of lane `source`, or the ballot, or the lanes with this
 * value. */
uint64_t cuemu_warp(cuemu_op op, unsigned mask, uint64_t value, unsigned source, const char *file,
                    int line);
unsigned cuemu_lane(void);
/** End the launch with a fault, as __trap() does. */
void cuemu_trap(const char *file, int line);

/** One turn of a loop that waits for what another thread writes: lets others run. */
void cuemu_spin(void);

/** Queue one launch; args (bytes of them) is copied. Checks the sizes as the real runtime does. */
cudaError_t cuemu_launch(void (*call)(const void *args), const void *args, size_t bytes, dim3 grid,
                         dim3 block, size_t shared_bytes, cudaStream_t stream);
}

namespace cuemu
{
template <class... Params> struct bound { /* a kernel and its arguments */
    void (*kernel)(Params...);
    std::tuple<Params...> args;

    static void call(const void *self)
    {
        const bound *const b = (const bound *)self;
        std::apply(b->kernel, b->args);
    }
};

template <class... Params, class... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Args... args)
{
    static_assert((std::is_trivially_copyable<Params>::value && ...), "as on the GPU");
    alignas(16) bound<Params...> b = {kernel, std::tuple<Params...>(args...)};

    return cuemu_launch(bound<Params...>::call, &b, sizeof b, grid, block, shared_bytes, stream);
}

template <class T> uint64_t to_bits(T value)
{
    static_assert(sizeof(T) <= 8, "a lane exchanges at most 8 bytes");
    uint64_t bits = 0;

    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T> T from_bits(uint64_t bits)
{
    T value;

    std::memcpy(&value, &bits, sizeof value);
    return value;
}

/* Which lane answers, for segments of `width` lanes. */
inline unsigned segment(int width)
{
    return cuemu_lane() & ~(unsigned)(width - 1);
}
} // namespace cuemu

#define threadIdx cuemu_thread
#define blockIdx  cuemu_block
#define blockDim  cuemu_block_dim
#define gridDim   cuemu_grid_dim
#define warpSize  32

#define CUEMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(CUEMU_SITE)
{
    cuemu_barrier(file, line);
}
inline void __syncwarp(unsigned mask = ~0u, CUEMU_SITE)
{
    (void)cuemu_warp(CUEMU_SYNC, mask, 0, 0, file, line);
}
template <class T> T __shfl_sync(unsigned mask, T v, int source, int width = 32, CUEMU_SITE)
{
    const unsigned from = cuemu::segment(width) + ((unsigned)source & (unsigned)(width - 1));
    return cuemu::from_bits<T>(
        cuemu_warp(CUEMU_SHUFFLE, mask, cuemu::to_bits(v), from, file, line));
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int lanes, int width = 32, CUEMU_SITE)
{
    const unsigned me = cuemu_lane(), other = me ^ (unsigned)lanes;
    const unsigned from = other < cuemu::segment(width) + (unsigned)width ? other : me;
    return cuemu::from_bits<T>(
        cuemu_warp(CUEMU_SHUFFLE, mask, cuemu::to_bits(v), from, file, line));
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, CUEMU_SITE)
{
    const unsigned me = cuemu_lane(), other = me + by;
    const unsigned from = other < cuemu::segment(width) + (unsigned)width ? other : me;
    return cuemu::from_bits<T>(
        cuemu_warp(CUEMU_SHUFFLE, mask, cuemu::to_bits(v), from, file, line));
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, CUEMU_SITE)
{
    const unsigned me = cuemu_lane();
    const unsigned from = me >= cuemu::segment(width) + by ? me - by : me;
    return cuemu::from_bits<T>(
        cuemu_warp(CUEMU_SHUFFLE, mask, cuemu::to_bits(v), from, file, line));
}
inline unsigned __ballot_sync(unsigned mask, int claim, CUEMU_SITE)
{
    return (unsigned)cuemu_warp(CUEMU_BALLOT, mask, claim != 0, 0, file, line);
}
inline int __any_sync(unsigned mask, int claim, CUEMU_SITE)
{
    return cuemu_warp(CUEMU_BALLOT, mask, claim != 0, 0, file, line) != 0;
}
inline int __all_sync(unsigned mask, int claim, CUEMU_SITE)
{
    return cuemu_warp(CUEMU_BALLOT, mask, claim == 0, 0, file, line) == 0;
}
template <class T> unsigned __match_any_sync(unsigned mask, T v, CUEMU_SITE)
{
    return (unsigned)cuemu_warp(CUEMU_MATCH, mask, cuemu::to_bits(v), 0, file, line);
}

/* One host thread runs all fibres, and none is interrupted: plain code is atomic here. */
template <class T> T atomicAdd(T *at, typename std::common_type<T>::type value)
{
    const T old = *at;
    *at = (T)(old + value);
    return old;
}
template <class T> T atomicMax(T *at, typename std::common_type<T>::type value)
{
    const T old = *at;
    *at = old < value ? value : old;
    return old;
}
template <class T> T atomicMin(T *at, typename std::common_type<T>::type value)
{
    const T old = *at;
    *at = value < old ? value : old;
    return old;
}
template <class T> T atomicOr(T *at, typename std::common_type<T>::type value)
{
    const T old = *at;
    *at = old | value;
    return old;
}
template <class T> T atomicExch(T *at, typename std::common_type<T>::type value)
{
    const T old = *at;
    *at = value;
    return old;
}
template <class T>
T atomicCAS(T *at, typename std::common_type<T>::type expected,
            typename std::common_type<T>::type value)
{
    const T old = *at;
    *at = old == expected ? value : old;
    return old;
}
inline void __trap(CUEMU_SITE)
{
    cuemu_trap(file, line);
}
inline void __threadfence(void)
{
}
inline void __threadfence_block(void)
{
}

template <class T> T __ldg(const T *at)
{
    return *at;
}
template <class T> T __ldcs(const T *at)
{
    return *at;
}
template <class T> T __ldcg(const T *at)
{
    return *at;
}
template <class T> void __stcs(T *at, typename std::common_type<T>::type value)
{
    *at = value;
}
template <class T> void __stcg(T *at, typename std::common_type<T>::type value)
{
    *at = value;
}

inline float __int_as_float(int v)
{
    return cuemu::from_bits<float>(cuemu::to_bits(v));
}
inline float __uint_as_float(unsigned v)
{
    return cuemu::from_bits<float>(cuemu::to_bits(v));
}
inline int __float_as_int(float v)
{
    return cuemu::from_bits<int>(cuemu::to_bits(v));
}
inline unsigned __float_as_uint(float v)
{
    return cuemu::from_bits<unsigned>(cuemu::to_bits(v));
}
inline int __popc(unsigned v)
{
    return __builtin_popcount(v);
}
inline int __popcll(unsigned long long v)
{
    return __builtin_popcountll(v);
}
inline int __ffs(int v)
{
    return __builtin_ffs(v);
}
inline int __clz(int v)
{
    return v == 0 ? 32 : __builtin_clz((unsigned)v);
}
inline float rsqrtf(float v)
{
    return 1.0f / sqrtf(v);
}
inline float __expf(float v)
{
    return expf(v);
}
inline float __logf(float v)
{
    return logf(v);
}
inline float __fdividef(float a, float b)
{
    return a / b;
}
inline float __fadd_rn(float a, float b)
{
    return a + b;
}
inline float __fmul_rn(float a, float b)
{
    return a * b;
}
inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
inline float __frcp_rn(float v)
{
    return 1.0f / v;
}
inline float __fsqrt_rn(float v)
{
    return sqrtf(v);
}

/* CUDA's global min and max, for the pairs of types that it accepts without a cast. */
template <class T, class U> constexpr typename std::common_type<T, U>::type min(T a, U b)
{
    typedef typename std::common_type<T, U>::type both;
    return (both)b < (both)a ? (both)b : (both)a;
}
template <class T, class U> constexpr typename std::common_type<T, U>::type max(T a, U b)
{
    typedef typename std::common_type<T, U>::type both;
    return (both)a < (both)b ? (both)b : (both)a;
}

#endif
