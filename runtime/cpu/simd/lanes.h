/* What products need of vectors of 16 lanes beyond vec.h: parts of them, stores past the caches,
 * 16 x 16 transposed. AVX-512. */
#ifndef TSR_RUNTIME_CPU_LANES_H
#define TSR_RUNTIME_CPU_LANES_H

#include "runtime/cpu/simd/vec.h"

#ifdef __AVX512F__ /* compiled for nothing else; so that the header still stands alone */

/* The first count lanes; any number of them, none if it is not positive. */
VEC_INLINE __mmask16 first_lanes(int64_t count)
{
    return (__mmask16)(count >= VEC_N ? 0xffff : count <= 0 ? 0 : (1 << count) - 1);
}

VEC_INLINE vec load_lanes(const float *from, __mmask16 lanes)
{
    return (vec)_mm512_maskz_loadu_ps(lanes, from);
}

VEC_INLINE void store_lanes(float *to, vec v, __mmask16 lanes)
{
    _mm512_mask_storeu_ps(to, lanes, (__m512)v);
}

enum { LINE = 64 }; /* bytes, of all caches */

/* to: the start of a line. */
VEC_INLINE void store_past_caches(float *to, vec v)
{
    _mm512_stream_ps(to, (__m512)v);
}

/* Before another thread may be told of what went past the caches. */
VEC_INLINE void finish_far_stores(void)
{
    _mm_sfence();
}

/* Rows become columns: of 4 x 4 blocks first, then the blocks themselves. */
VEC_INLINE void transpose(vec v[VEC_N])
{
    __m512 part[4][4]; /* [group of four rows][column within each block] */

#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
        const __m512 *row = (const __m512 *)(const void *)v + 4 * g;
        const __m512d low01 = (__m512d)_mm512_unpacklo_ps(row[0], row[1]);
        const __m512d high01 = (__m512d)_mm512_unpackhi_ps(row[0], row[1]);
        const __m512d low23 = (__m512d)_mm512_unpacklo_ps(row[2], row[3]);
        const __m512d high23 = (__m512d)_mm512_unpackhi_ps(row[2], row[3]);
        part[g][0] = (__m512)_mm512_unpacklo_pd(low01, low23);
        part[g][1] = (__m512)_mm512_unpackhi_pd(low01, low23);
        part[g][2] = (__m512)_mm512_unpacklo_pd(high01, high23);
        part[g][3] = (__m512)_mm512_unpackhi_pd(high01, high23);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) { /* 0x88: blocks 0 and 2 of each operand, 0xdd: 1 and 3 */
        const __m512 even01 = _mm512_shuffle_f32x4(part[0][j], part[1][j], 0x88);
        const __m512 even23 = _mm512_shuffle_f32x4(part[2][j], part[3][j], 0x88);
        const __m512 odd01 = _mm512_shuffle_f32x4(part[0][j], part[1][j], 0xdd);
        const __m512 odd23 = _mm512_shuffle_f32x4(part[2][j], part[3][j], 0xdd);
        v[j] = (vec)_mm512_shuffle_f32x4(even01, even23, 0x88);
        v[4 + j] = (vec)_mm512_shuffle_f32x4(odd01, odd23, 0x88);
        v[8 + j] = (vec)_mm512_shuffle_f32x4(even01, even23, 0xdd);
        v[12 + j] = (vec)_mm512_shuffle_f32x4(odd01, odd23, 0xdd);
    }
}

#endif

#endif
