/* How gemm_bf16.c brings its two sides into the order that tiles are loaded in.
 *
 * A word is a pair of bf16, elements r and r + 1 along the sum; beyond a side are zeros. */
#ifndef TSR_RUNTIME_CPU_GEMM_BF16_PACK_H
#define TSR_RUNTIME_CPU_GEMM_BF16_PACK_H

#include "runtime/cpu/simd/amx.h"
#include "runtime/cpu/simd/lanes.h"

#if defined(__AMX_BF16__) /* compiled for nothing else; so that the header still stands alone */

enum { BLOCK = AMX_BLOCK, LANES = 32 /* bf16 in a vector */ };

/* tsr_gemm_side, of bf16. */
typedef struct side {
    const tsr_bf16 *at;
    int64_t outer, along;
} side;

VEC_INLINE __mmask32 first_halves(int64_t count)
{
    return count >= LANES ? 0xffffffffu : count <= 0 ? 0 : (1u << count) - 1;
}

VEC_INLINE __m512i load_halves(const tsr_bf16 *from, __mmask32 lanes)
{
    return _mm512_maskz_loadu_epi16(lanes, from);
}

/* Lanes of two rows that are neighbours along the sum, to words: of the first 16 lanes and of the
 * last. */
VEC_INLINE void pair_lanes(__m512i even, __m512i odd, vec *first, vec *last)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(lane, 16), lane); /* (i, i) */
    const __m512i index = _mm512_add_epi32(both, _mm512_set1_epi32(LANES << 16));

    *first = (vec)_mm512_permutex2var_epi16(even, index, odd);
    *last = (vec)_mm512_permutex2var_epi16(
        even, _mm512_add_epi32(index, _mm512_set1_epi32(16 << 16 | 16)), odd);
}

/* Words of steps r and r + 1 of 32 lanes of a side whose lanes are neighbours in memory. */
VEC_INLINE void load_pair(const side *s, int64_t r, int64_t steps, __mmask32 lanes, vec *first,
                          vec *last)
{
    const __m512i even = load_halves(s->at + r * s->along, r < steps ? lanes : 0);
    const __m512i odd = load_halves(s->at + (r + 1) * s->along, r + 1 < steps ? lanes : 0);

    pair_lanes(even, odd, first, last);
}

/* b in blocks of 32 columns, each [words, 32]; steps: a multiple of 32 makes the words. */
VEC_INLINE void pack_columns_of(const side *b, int64_t columns, int64_t steps, float *out)
{
    const int64_t words = (steps + LANES - 1) / LANES * AMX_WORDS;

    if (b->along != 1) { /* in the order of memory */
        for (int64_t r = 0; r < 2 * words; r += 2) {
            for (int64_t j = 0; j < columns; j += BLOCK) {
                const side at = {b->at + j, 1, b->along};
                vec first, last;

                load_pair(&at, r, steps, first_halves(columns - j), &first, &last);
                vec_store(out + j * words + r / 2 * BLOCK, first);
                vec_store(out + j * words + r / 2 * BLOCK + VEC_N, last);
            }
        }
        return;
    }
    for (int64_t j = 0; j < columns; j += VEC_N) {
        float *to = out + j / BLOCK * BLOCK * words + j % BLOCK;

        for (int64_t word = 0; word < words; word += VEC_N) {
            const __mmask32 lanes = first_halves(steps - 2 * word);
            vec square[VEC_N];

#pragma GCC unroll 16
            for (int i = 0; i < VEC_N; ++i) {
                square[i] = (vec)load_halves(b->at + (j + i) * b->outer + 2 * word,
                                             j + i < columns ? lanes : 0);
            }
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < VEC_N; ++i) {
                vec_store(to + (word + i) * BLOCK, square[i]);
            }
        }
        if (columns - j <= VEC_N && j % BLOCK == 0) { /* the other half of the last block */
            for (int64_t word = 0; word < words; ++word) {
                vec_store(to + word * BLOCK + VEC_N, (vec){0});
            }
        }
    }
}

/* 32 rows of a, 16 words of each and then the next 16: [words / 16][32][16] */
VEC_INLINE void pack_rows_of(const side *a, int64_t rows, int64_t steps, float *out)
{
    for (int64_t r = 0; r < steps; r += LANES, out += BLOCK * AMX_WORDS) {
        vec square[2][VEC_N];

        if (a->along == 1) {
            for (int64_t i = 0; i < BLOCK; ++i) {
                vec_store(out + i * AMX_WORDS,
                          (vec)load_halves(a->at + i * a->outer + r,
                                           i < rows ? first_halves(steps - r) : 0));
            }
            continue;
        }
#pragma GCC unroll 16
        for (int i = 0; i < VEC_N; ++i) {
            load_pair(a, r + 2 * i, steps, first_halves(rows), &square[0][i], &square[1][i]);
        }
        for (int half = 0; half < 2; ++half) {
            transpose(square[half]);
#pragma GCC unroll 16
            for (int i = 0; i < VEC_N; ++i) {
                vec_store(out + (half * VEC_N + i) * AMX_WORDS, square[half][i]);
            }
        }
    }
}

#endif

#endif
