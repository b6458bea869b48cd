/* oneDNN matrix products kept by shape: finding one is a hash look-up, making one costs 0.2 - 0.9
 * ms.
 *
 * A product is either `shared`, run by all threads of the device together, or `serial`, run by one
 * thread while the others run theirs. On processors whose oneDNN refuses bf16 (no AVX-512) operands
 * are widened to f32 around an f32 product: slower, same rounding of the result.
 * With AVX-512, oneDNN 2.6 adds along k in an order that depends neither on the threads nor on m
 * (but for one row of bf16 times an untransposed matrix); its older kernels do not keep to that,
 * nor do those for AMX, which our own replace. */
#ifndef TSR_RUNTIME_CPU_GEMM_CACHE_H
#define TSR_RUNTIME_CPU_GEMM_CACHE_H

#include "runtime/cpu/cpu_impl.h"

enum {
    TSR_MATMUL_TRANS_A = 1,
    TSR_MATMUL_TRANS_B = 2,
    TSR_MATMUL_ACCUMULATE = 4,
    TSR_MATMUL_SERIAL = 8,
    TSR_MATMUL_BF16 = 16,  /* a and b */
    TSR_MATMUL_C_BF16 = 32 /* c */
};

/** What makes two products the same primitive. No padding: compared and hashed as words. */
typedef struct tsr_matmul_shape {
    int64_t m, n, k, lda, ldb, ldc, flags;
} tsr_matmul_shape;

typedef struct tsr_matmul tsr_matmul;

TSR_NODISCARD tsr_status tsr_gemm_cache_create(int threads, tsr_gemm_cache **out);
void tsr_gemm_cache_destroy(tsr_gemm_cache **cache_p);

/** The product of this shape; made when it is new (TSR_ERR_DEVICE, TSR_ERR_NOMEM). */
TSR_NODISCARD tsr_status tsr_gemm_cache_find(tsr_gemm_cache *cache, const tsr_matmul_shape *shape,
                                             const tsr_matmul **out);

/** Run one. A serial one uses the scratch of `thread` (0 .. threads - 1), a shared one needs 0.
 *  Returns oneDNN's status: inside a parallel region there is no one to hear a message. */
TSR_NODISCARD int tsr_matmul_run(const tsr_gemm_cache *cache, const tsr_matmul *matmul, int thread,
                                 const void *a, const void *b, void *c);

/** Pass oneDNN's status of tsr_matmul_run() on. */
TSR_NODISCARD tsr_status tsr_matmul_status(int dnnl_status);

/** Array of at least `bytes` for the caller's plan of one call; kept, grown when too small. */
TSR_NODISCARD tsr_status tsr_gemm_cache_plan(tsr_gemm_cache *cache, size_t bytes, void **out);

static inline tsr_gemm_cache *tsr_gemm_cache_of(const tsr_device *device)
{
    return ((const tsr_cpu_device *)device)->gemms;
}

/** Our own kernel of this device for this type, or NULL. */
static inline const tsr_own_gemm *tsr_own_gemm_of(const tsr_device *device, tsr_dtype dtype)
{
    return ((const tsr_cpu_device *)device)->own_gemm[dtype];
}

static inline int64_t tsr_round_up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

/** Make each thread's part of the scratch, aligned to 64 bytes, at least this large. The parts are
 *  those of the serial products: in use by one at a time. */
TSR_NODISCARD tsr_status tsr_gemm_cache_reserve_parts(tsr_gemm_cache *cache, size_t bytes);
void *tsr_gemm_cache_part(const tsr_gemm_cache *cache, int thread);

/** Scratch and plan, in bytes. */
size_t tsr_gemm_cache_bytes(const tsr_gemm_cache *cache);

/** Products made so far. */
int64_t tsr_gemm_cache_created(const tsr_gemm_cache *cache);

#endif
