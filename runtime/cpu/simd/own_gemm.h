/* Matrix products by one thread, by kernels of our own: of f32 for the instruction sets with 32
 * registers of 16 lanes, of f32 and bf16 for AMX.
 *
 * Weights of an expert are read once for few tokens, so what oneDNN spends on copying them counts.
 * Here one side, meant to be the smaller, is packed into panels that stay in the second-level
 * cache; the other passes through the caches while it is multiplied. */
#ifndef TSR_RUNTIME_CPU_OWN_GEMM_H
#define TSR_RUNTIME_CPU_OWN_GEMM_H

#include "runtime/dtype.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    TSR_OWN_GEMM_COLUMNS = 256, /* n is cut to multiples of 32 up to this without loss */
};

/** Element (i, r) is number i * outer + r * along at `at`, r counting along the sum; outer or along
 *  is 1. */
typedef struct tsr_gemm_side {
    const void *at;
    int64_t outer, along;
} tsr_gemm_side;

/**
 * c(i, j) (+)= sum over r of a(i, r) b(j, r).
 *
 * Both sides are alike: with tsr_own_gemm_exchanged() every bit stays. Which side is b decides the
 * speed only: it is packed. A sum is taken in f32, in an
 * order that k gives, and then added to c: neither m nor n nor the way they are cut changes it.
 */
typedef struct tsr_own_gemm_args {
    tsr_gemm_side a, b; /* [m, k], [n, k] */
    void *c;            /* (i, j) is number i * c_outer_a + j * c_outer_b; one of them is 1 */
    int64_t c_outer_a, c_outer_b;
    int64_t m, n, k;   /* all positive */
    bool accumulate;   /* c is f32 */
    bool is_exchanged; /* a and b have changed places */
    bool is_far;       /* c will not be read soon: written past the caches where that is possible */
    tsr_dtype dtype, c_dtype; /* of a and b; of c: f32, or the same */
} tsr_own_gemm_args;

/** The same product with the sides exchanged. */
static inline tsr_own_gemm_args tsr_own_gemm_exchanged(tsr_own_gemm_args p)
{
    const tsr_own_gemm_args was = p;

    p.a = was.b;
    p.b = was.a;
    p.c_outer_a = was.c_outer_b;
    p.c_outer_b = was.c_outer_a;
    p.m = was.n;
    p.n = was.m;
    p.is_exchanged = !was.is_exchanged;
    return p;
}

/** A kernel for one dtype. scratch: of this thread, aligned to 64 bytes, enough for all sizes. */
typedef struct tsr_own_gemm {
    void (*run)(const tsr_own_gemm_args *args, void *scratch);
    size_t scratch_bytes;
    int64_t rows;     /* m is cut to multiples of this without loss */
    bool turns_words; /* to pack b costs more where its elements are neighbours along the sum */
} tsr_own_gemm;

extern const tsr_own_gemm tsr_avx512_gemm_f32;                 /* needs what cpu:avx512 needs */
extern const tsr_own_gemm tsr_amx_gemm_bf16, tsr_amx_gemm_f32; /* need what cpu:amx needs */

#endif
