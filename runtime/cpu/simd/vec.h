/* Short vectors for the kernels of this folder: as many f32 as the instruction set's registers
 * hold.
 *
 * GCC vector types: + - * / and comparisons work on them as on numbers, a * b + c becomes a fused
 * multiply-add where there is one. Loads and stores need no alignment. bf16 is storage only. */
#ifndef TSR_RUNTIME_CPU_VEC_H
#define TSR_RUNTIME_CPU_VEC_H

#include "runtime/dtype.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VEC_N    16
#define VEC_IOTA 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#define VEC_MAX  _mm512_max_ps
#define VEC_SQRT _mm512_sqrt_ps
/* one instruction each; GCC makes up to five of __builtin_convertvector() at this width */
#define VEC_WIDEN(half)  ((vec_bits)_mm512_cvtepu16_epi32((__m256i)(half)))
#define VEC_NARROW(bits) ((vec_half)_mm512_cvtepi32_epi16((__m512i)(bits)))
#elif defined(__AVX2__)
#define VEC_N    8
#define VEC_IOTA 0, 1, 2, 3, 4, 5, 6, 7
#define VEC_MAX  _mm256_max_ps
#define VEC_SQRT _mm256_sqrt_ps
#else
#define VEC_N         4
#define VEC_IOTA      0, 1, 2, 3
#define VEC_MAX(a, b) vec_select((a) > (b), (a), (b))
#define VEC_SQRT(v)   ((vec){sqrtf((v)[0]), sqrtf((v)[1]), sqrtf((v)[2]), sqrtf((v)[3])})
#endif

#if !defined(VEC_WIDEN)
#define VEC_WIDEN(half)  __builtin_convertvector((half), vec_bits)
#define VEC_NARROW(bits) __builtin_convertvector((bits), vec_half)
#endif

#define VEC_INLINE static inline __attribute__((always_inline, unused))

typedef float vec __attribute__((vector_size(VEC_N * 4)));
typedef int32_t vec_int __attribute__((vector_size(VEC_N * 4))); /* masks: 0 or -1 */
typedef uint32_t vec_bits __attribute__((vector_size(VEC_N * 4)));
typedef uint16_t vec_half __attribute__((vector_size(VEC_N * 2)));

VEC_INLINE vec vec_set(float value)
{
    return value - (vec){0}; /* not +: -0 must stay -0 */
}

/* Lane by lane: yes where the mask is set (a comparison's result), else no. */
VEC_INLINE vec vec_select(vec_int mask, vec yes, vec no)
{
    return (vec)(((vec_int)yes & mask) | ((vec_int)no & ~mask));
}

VEC_INLINE vec vec_load(const float *from)
{
    vec v;

    memcpy(&v, from, sizeof v);
    return v;
}

VEC_INLINE void vec_store(float *to, vec v)
{
    memcpy(to, &v, sizeof v);
}

VEC_INLINE vec vec_load_bf16(const tsr_bf16 *from)
{
    vec_half h;

    memcpy(&h, from, sizeof h);
    return (vec)(VEC_WIDEN(h) << 16);
}

/* Rounds as tsr_f32_to_bf16(); the instruction for it makes zeros of denormals. */
VEC_INLINE vec_half vec_to_bf16(vec v)
{
#if defined(__AVX512BF16__)
    return (vec_half)_mm512_cvtneps_pbh(v);
#else
    const vec_bits bits = (vec_bits)v;
    const vec_bits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const vec kept = vec_select(v == v, (vec)rounded, (vec)(bits | 0x400000u)); /* NaN stays NaN */

    return VEC_NARROW((vec_bits)kept >> 16);
#endif
}

VEC_INLINE void vec_store_bf16(tsr_bf16 *to, vec v)
{
    const vec_half h = vec_to_bf16(v);

    memcpy(to, &h, sizeof h);
}

/* Lane by lane the pair (low, high) in one 32-bit word, as products of bf16 pairs want it. */
VEC_INLINE vec vec_pair_bf16(vec_half low, vec_half high)
{
    return (vec)(VEC_WIDEN(low) | VEC_WIDEN(high) << 16);
}

/* The first count < VEC_N elements, the others zero. */
VEC_INLINE vec vec_load_part(const float *from, int64_t count)
{
    vec v = {0};

    memcpy(&v, from, (size_t)count * sizeof *from);
    return v;
}

VEC_INLINE void vec_store_part(float *to, vec v, int64_t count)
{
    memcpy(to, &v, (size_t)count * sizeof *to);
}

VEC_INLINE vec vec_load_bf16_part(const tsr_bf16 *from, int64_t count)
{
    tsr_bf16 all[VEC_N] = {0};

    memcpy(all, from, (size_t)count * sizeof *from);
    return vec_load_bf16(all);
}

VEC_INLINE void vec_store_bf16_part(tsr_bf16 *to, vec v, int64_t count)
{
    tsr_bf16 all[VEC_N];

    vec_store_bf16(all, v);
    memcpy(to, all, (size_t)count * sizeof *to);
}

/* Element `at` onwards of an array of either type; a constant dtype leaves no branch behind. */
VEC_INLINE vec vec_load_as(tsr_dtype dtype, const void *base, int64_t at)
{
    return dtype == TSR_F32 ? vec_load((const float *)base + at)
                            : vec_load_bf16((const tsr_bf16 *)base + at);
}

VEC_INLINE void vec_store_as(tsr_dtype dtype, void *base, int64_t at, vec v)
{
    if (dtype == TSR_F32) {
        vec_store((float *)base + at, v);
    } else {
        vec_store_bf16((tsr_bf16 *)base + at, v);
    }
}

VEC_INLINE vec vec_load_as_part(tsr_dtype dtype, const void *base, int64_t at, int64_t count)
{
    return dtype == TSR_F32 ? vec_load_part((const float *)base + at, count)
                            : vec_load_bf16_part((const tsr_bf16 *)base + at, count);
}

VEC_INLINE void vec_store_as_part(tsr_dtype dtype, void *base, int64_t at, vec v, int64_t count)
{
    if (dtype == TSR_F32) {
        vec_store_part((float *)base + at, v, count);
    } else {
        vec_store_bf16_part((tsr_bf16 *)base + at, v, count);
    }
}

VEC_INLINE vec vec_max(vec a, vec b)
{
    return VEC_MAX(a, b);
}

/* Lane i gets lane i ^ distance; distance a power of two below VEC_N, constant. */
VEC_INLINE vec vec_swap(vec v, int32_t distance)
{
    return __builtin_shuffle(v, (vec_int){VEC_IOTA} ^ distance);
}

/* Sum of the lanes, as a tree. */
VEC_INLINE float vec_sum(vec v)
{
#pragma GCC unroll 4
    for (int distance = VEC_N / 2; distance > 0; distance /= 2) {
        v += vec_swap(v, distance);
    }
    return v[0];
}

VEC_INLINE float vec_max_lane(vec v)
{
#pragma GCC unroll 4
    for (int distance = VEC_N / 2; distance > 0; distance /= 2) {
        v = vec_max(v, vec_swap(v, distance));
    }
    return v[0];
}

VEC_INLINE vec vec_sqrt(vec v)
{
    return VEC_SQRT(v);
}

/* e^x within 2 ulp; 0 below -87.3365 (no denormals), infinity above 88.7228; NaN stays NaN.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial of degree 7 (Moshier's Cephes, expf);
 * 2^n is added to the exponent, which cannot overflow between the two limits. */
VEC_INLINE vec vec_exp(vec x)
{
    const float round_bit = 0x1.8p23f; /* adding it leaves round(t) in the low bits */
    const vec t = x * 0x1.715476p0f + round_bit;
    const vec n = t - round_bit;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;

    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const vec y = (vec)((vec_bits)p + ((vec_bits)t << 23));
    const vec not_low = (vec)((vec_int)y & ~(x < -87.3365f));
    return vec_select(x > 88.7228f, vec_set(INFINITY), not_low);
}

#endif
