/* Product of f32 matrices by one thread, for the instruction sets with 32 registers of 16 lanes.
 *
 * Weights of an expert are read once for few tokens, so what oneDNN spends on copying them counts.
 * Here one side, meant to be the smaller, is packed into panels that stay in the second-level
 * cache; the other passes through the first level in strips, the next being fetched while one is
 * used. */
#ifndef TSR_RUNTIME_CPU_GEMM_F32_H
#define TSR_RUNTIME_CPU_GEMM_F32_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    TSR_GEMM_F32_ROWS = 14,     /* m is cut to multiples of this without loss, */
    TSR_GEMM_F32_COLUMNS = 256, /* n to multiples of 32 up to this */
};

/** Element (i, r) is at[i * outer + r * along], r counting along the sum; outer or along is 1. */
typedef struct tsr_gemm_side {
    const float *at;
    int64_t outer, along;
} tsr_gemm_side;

/**
 * c(i, j) (+)= sum over r of a(i, r) b(j, r).
 *
 * Both sides are alike: exchange a, m, c_outer_a with b, n, c_outer_b and every bit stays. Which
 * side is b decides the speed only: it is packed. A sum is taken in the order of r, one fused
 * multiply-add after the other, and then added to c: neither m nor n nor the way they are cut
 * changes a result.
 */
typedef struct tsr_gemm_f32_args {
    tsr_gemm_side a, b; /* [m, k], [n, k] */
    float *c;           /* (i, j) is c[i * c_outer_a + j * c_outer_b]; one of them is 1 */
    int64_t c_outer_a, c_outer_b;
    int64_t m, n, k; /* all positive */
    bool accumulate;
    bool is_far; /* c will not be read soon: written past the caches where that is possible */
} tsr_gemm_f32_args;

/** scratch: tsr_gemm_f32_scratch_bytes() of this thread, aligned to 64 bytes. */
typedef void tsr_gemm_f32(const tsr_gemm_f32_args *args, float *scratch);

/** Whatever the sizes. */
size_t tsr_gemm_f32_scratch_bytes(void);

/** Needs what cpu:avx512 needs. */
tsr_gemm_f32 tsr_avx512_gemm_f32;

#endif
