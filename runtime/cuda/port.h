/* One kernel source for nvcc and for g++: what differs between the two, and nothing else.
 *
 * Kernels say TSR_SHARED and TSR_DYN_SHARED for shared memory and TSR_LAUNCH to start; everything
 * else is CUDA as usual. Under TSR_EMULATED threads are fibres on the host (tests/emulation).
 * Inline PTX, asynchronous copies and tensor cores stay in files that are not emulated. */
#ifndef TSR_RUNTIME_CUDA_PORT_H
#define TSR_RUNTIME_CUDA_PORT_H

#include "runtime/cuda/cuda_impl.h"

#include <stdint.h>

template <class T> struct tsr_identity {
    typedef T type;
};

#ifdef TSR_EMULATED

#include "tests/emulation/cuemu.h"

/* TSR_SHARED(tile, float[32][33]); declares shared memory `tile` of that type. */
#define TSR_SHARED(name, ...)                                                                      \
    static const char name##_key = 0;                                                              \
    typename tsr_identity<__VA_ARGS__>::type &name = *(                                            \
        typename tsr_identity<__VA_ARGS__>::type *)cuemu_shared(&name##_key, sizeof(__VA_ARGS__))
/* TSR_DYN_SHARED(float, tile); declares `float *tile`, as long as the launch says. */
#define TSR_DYN_SHARED(type, name) type *name = (type *)cuemu_dynamic_shared()

template <class... Params, class... Args>
static cudaError_t tsr_launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                              cudaStream_t stream, Args... args)
{
    return cuemu::launch<Params...>(kernel, grid, block, shared_bytes, stream, args...);
}

#else

#include <cuda_bf16.h>

#define TSR_SHARED(name, ...) __shared__ typename tsr_identity<__VA_ARGS__>::type name
#define TSR_DYN_SHARED(type, name)                                                                 \
    extern __shared__ __align__(16) unsigned char tsr_dynamic_shared[];                            \
    type *name = (type *)tsr_dynamic_shared

template <class... Params, class... Args>
static cudaError_t tsr_launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                              cudaStream_t stream, Args... args)
{
    if (shared_bytes > 48 * 1024) { /* more has to be asked for */
        const cudaError_t code = cudaFuncSetAttribute(
            (const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes);

        if (code != cudaSuccess) {
            return code;
        }
    }
    kernel<<<grid, block, shared_bytes, stream>>>(args...);
    return cudaGetLastError();
}

#endif

/* Queue kernel(args...) on a cudaStream_t and return from this function if that fails. The grid
 * must not be empty. Arguments are copied now; a kernel<a, b> needs no parentheses. */
#define TSR_LAUNCH(...)                                                                            \
    TSR_TRY(tsr_cuda_check(tsr_launch(__VA_ARGS__), "launch", __FILE__, __LINE__))

#endif
