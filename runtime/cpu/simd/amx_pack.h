/* How amx_gemm.c brings its two sides into the order that tiles are loaded in.
 *
 * A word is a pair of bf16, elements r and r + 1 along the sum; beyond a side are zeros. Elements
 * of f32 are split into three bf16 that add up to them: part after part. 16 words of 32 rows of a,
 * or 16 words of 32 columns of b, are a step: [parts][32][16] of a, [parts][16][32] of b. */
#ifndef TSR_RUNTIME_CPU_AMX_PACK_H
#define TSR_RUNTIME_CPU_AMX_PACK_H

#include "runtime/cpu/simd/amx.h"
#include "runtime/cpu/simd/cut.h"
#include "runtime/cpu/simd/lanes.h"

#include <stdbool.h>

#if defined(__AMX_BF16__) /* compiled for nothing else; so that the header still stands alone */

enum {
    BLOCK = AMX_BLOCK, /* rows of a, columns of b and elements along the sum that go together */
    PARTS_F32 = 3,
    STEP = BLOCK * AMX_WORDS, /* words of a part of a step */
    AHEAD = 16                /* elements along the sum that are fetched ahead */
};

/* tsr_gemm_side, of either type. */
typedef struct side {
    const char *at;
    int64_t outer, along, element; /* bytes */
} side;

VEC_INLINE const void *element_at(const side *s, int64_t i, int64_t r)
{
    return s->at + i * s->outer + r * s->along;
}

VEC_INLINE __mmask32 first_halves(int64_t count)
{
    return count >= BLOCK ? 0xffffffffu : count <= 0 ? 0 : (1u << count) - 1;
}

VEC_INLINE __m512i load_halves(const void *from, __mmask32 lanes)
{
    return _mm512_maskz_loadu_epi16(lanes, from);
}

/* Lanes of two rows that are neighbours along the sum, to words: of the first 16 lanes and of the
 * last. */
VEC_INLINE void pair_halves(__m512i even, __m512i odd, vec word[2])
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(lane, 16), lane); /* (i, i) */
    const __m512i first = _mm512_add_epi32(both, _mm512_set1_epi32(BLOCK << 16));
    const __m512i last = _mm512_add_epi32(first, _mm512_set1_epi32(16 << 16 | 16));

    word[0] = (vec)_mm512_permutex2var_epi16(even, first, odd);
    word[1] = (vec)_mm512_permutex2var_epi16(even, last, odd);
}

/* The upper halves of lanes that are neighbours, as 16 words. */
VEC_INLINE vec upper_halves(__m512i low, __m512i high)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i index = /* (4 i + 1, 4 i + 3) */
        _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(0x40004)),
                         _mm512_set1_epi32(0x30001));

    return (vec)_mm512_permutex2var_epi16(low, index, high);
}

/* The next part of *v in the upper halves of the lanes: 8 bits of it, to the nearest; *v keeps the
 * rest. The last part takes what there is, exactly; it also keeps a NaN that rounding made 0. */
VEC_INLINE __m512i split(int part, vec *v)
{
    const __m512i half = _mm512_set1_epi32(part < PARTS_F32 - 1 ? 0x8000 : 0);
    const __m512i bits =
        _mm512_and_si512(_mm512_add_epi32((__m512i)*v, half), _mm512_set1_epi32(-0x10000));

    *v -= (vec)bits;
    return bits;
}

/* Steps r and r + 1 of 32 lanes of a side whose lanes are neighbours in memory, in words: of the
 * first 16 lanes and of the last, part after part. */
VEC_INLINE void load_pairs(int parts, const side *s, int64_t i, int64_t lanes, int64_t r,
                           int64_t elements, vec word[PARTS_F32][2])
{
    if (parts == 1) {
        const __mmask32 mask = first_halves(lanes);

        pair_halves(load_halves(element_at(s, i, r), r < elements ? mask : 0),
                    load_halves(element_at(s, i, r + 1), r + 1 < elements ? mask : 0), word[0]);
        return;
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
        const __mmask16 mask = first_lanes(lanes - half * VEC_N);
        const int64_t at = i + half * VEC_N;
        vec even = load_lanes(element_at(s, at, r), r < elements ? mask : 0);
        vec odd = load_lanes(element_at(s, at, r + 1), r + 1 < elements ? mask : 0);

#pragma GCC unroll 3
        for (int part = 0; part < parts; ++part) {
            const __m512i low = _mm512_srli_epi32(split(part, &even), 16);

            word[part][half] = (vec)_mm512_or_si512(low, split(part, &odd));
        }
    }
}

/* 16 words of one lane of a side whose elements are neighbours along the sum, part after part. */
VEC_INLINE void load_words(int parts, const side *s, int64_t i, int64_t r, int64_t elements,
                           bool is_whole, vec word[PARTS_F32])
{
    const void *from = element_at(s, i, r);

    if (parts == 1) {
        word[0] = (vec)load_halves(from, is_whole ? 0xffffffffu : first_halves(elements - r));
        return;
    }
    vec low = is_whole ? vec_load(from) : load_lanes(from, first_lanes(elements - r));
    vec high = is_whole
                   ? vec_load((const float *)from + VEC_N)
                   : load_lanes((const float *)from + VEC_N, first_lanes(elements - r - VEC_N));
#pragma GCC unroll 3
    for (int part = 0; part < parts; ++part) {
        word[part] = upper_halves(split(part, &low), split(part, &high));
    }
}

/* The same of 16 lanes from i on, turned: 16 lanes of each word. */
VEC_INLINE void load_columns(int parts, const side *s, int64_t i, int64_t lanes, int64_t r,
                             int64_t elements, vec square[PARTS_F32][VEC_N])
{
    for (int lane = 0; lane < VEC_N; ++lane) {
        vec word[PARTS_F32] = {0};

        if (lane < lanes) {
            load_words(parts, s, i + lane, r, elements, elements - r >= BLOCK, word);
        }
#pragma GCC unroll 3
        for (int part = 0; part < parts; ++part) {
            square[part][lane] = word[part];
        }
    }
#pragma GCC unroll 3
    for (int part = 0; part < parts; ++part) {
        transpose(square[part]);
    }
}

/* b in blocks of 32 columns. */
VEC_INLINE void pack_columns_of(int parts, const side *b, int64_t columns, int64_t elements,
                                float *out)
{
    const int64_t count = (elements + BLOCK - 1) / BLOCK; /* steps of tiles */

    if (b->outer == b->element) { /* in the order of memory */
        for (int64_t r = 0; r < count * BLOCK; r += 2) {
            float *to = out + r / BLOCK * parts * STEP + r % BLOCK / 2 * BLOCK;

            for (int64_t j = 0; j < columns; j += BLOCK, to += count * parts * STEP) {
                vec word[PARTS_F32][2];

                __builtin_prefetch(element_at(b, j, r + AHEAD));
                __builtin_prefetch(element_at(b, j, r + AHEAD + 1));
                if (parts != 1) {
                    __builtin_prefetch(element_at(b, j + VEC_N, r + AHEAD));
                    __builtin_prefetch(element_at(b, j + VEC_N, r + AHEAD + 1));
                }
                load_pairs(parts, b, j, columns - j, r, elements, word);
#pragma GCC unroll 3
                for (int part = 0; part < parts; ++part) {
                    vec_store(to + part * STEP, word[part][0]);
                    vec_store(to + part * STEP + VEC_N, word[part][1]);
                }
            }
        }
        return;
    }
    for (int64_t j = 0; j < round_up(columns, BLOCK); j += VEC_N) {
        for (int64_t step = 0; step < count; ++step) {
            float *to = out + (j / BLOCK * count + step) * parts * STEP + j % BLOCK;
            vec square[PARTS_F32][VEC_N];

            load_columns(parts, b, j, columns - j, step * BLOCK, elements, square);
#pragma GCC unroll 3
            for (int part = 0; part < parts; ++part) {
#pragma GCC unroll 16
                for (int word = 0; word < VEC_N; ++word) {
                    vec_store(to + part * STEP + word * BLOCK, square[part][word]);
                }
            }
        }
    }
}

/* Rows of a whose elements are neighbours along the sum. */
VEC_INLINE void pack_rows_along(int parts, const side *a, int64_t rows, int64_t elements,
                                bool is_whole, float *out)
{
    for (int64_t i = 0; i < BLOCK; ++i) {
        float *to = out + i * AMX_WORDS;

        for (int64_t r = 0; r < elements; r += BLOCK, to += parts * STEP) {
            vec word[PARTS_F32] = {0};

            if (is_whole || i < rows) {
                load_words(parts, a, i, r, elements, is_whole || elements - r >= BLOCK, word);
            }
#pragma GCC unroll 3
            for (int part = 0; part < parts; ++part) {
                vec_store(to + part * STEP, word[part]);
            }
        }
    }
}

/* 32 rows of a, of which `rows` are there. */
VEC_INLINE void pack_rows_of(int parts, const side *a, int64_t rows, int64_t elements, float *out)
{
    if (a->along == a->element) {
        if (rows >= BLOCK && elements % BLOCK == 0) {
            pack_rows_along(parts, a, rows, elements, true, out);
        } else {
            pack_rows_along(parts, a, rows, elements, false, out);
        }
        return;
    }
    for (int64_t r = 0; r < elements; r += BLOCK, out += parts * STEP) {
        vec square[2][PARTS_F32][VEC_N];

#pragma GCC unroll 16
        for (int pair = 0; pair < VEC_N; ++pair) {
            vec word[PARTS_F32][2];

            load_pairs(parts, a, 0, rows, r + 2 * pair, elements, word);
#pragma GCC unroll 3
            for (int part = 0; part < parts; ++part) {
                square[0][part][pair] = word[part][0];
                square[1][part][pair] = word[part][1];
            }
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 3
            for (int part = 0; part < parts; ++part) {
                float *to = out + part * STEP + half * VEC_N * AMX_WORDS;

                transpose(square[half][part]);
#pragma GCC unroll 16
                for (int i = 0; i < VEC_N; ++i) {
                    vec_store(to + i * AMX_WORDS, square[half][part][i]);
                }
            }
        }
    }
}

#endif

#endif
