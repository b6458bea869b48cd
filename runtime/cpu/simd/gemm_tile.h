/* The registers' part of gemm_f32.c: a tile of 14 x 32 results, and 16 x 16 transposed. AVX-512. */
#ifndef TSR_RUNTIME_CPU_GEMM_TILE_H
#define TSR_RUNTIME_CPU_GEMM_TILE_H

#include "runtime/cpu/simd/vec.h"

#include <stdbool.h>

#ifdef __AVX512F__ /* compiled for nothing else; so that the header still stands alone */

/* 28 accumulators, two vectors of b and one of a leave one of the 32 registers over. */
enum { STRIP = 14, PANEL = 2 * VEC_N };

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

/* How a strip lies in its buffer: element (i, r) at i * row + r * step. Copied as it lies in
 * memory, never transposed; rows of long ones are padded, lest their starts share one set of the
 * cache. */
typedef struct strip_layout {
    int row, step;
} strip_layout;

enum { MOST_STEPS = 512, LINE_FLOATS = 16, LINE = 64 };

static const strip_layout along_layout = {MOST_STEPS + LINE_FLOATS, 1}, across_layout = {1, STRIP};

/* The strips to come, copied while these are multiplied, a little at a time, in the order of
 * memory: pieces of a vector, some of them in a row, BUNDLE at a time. Their lines are fetched
 * shortly before: rows far apart in memory fall into few sets of the caches and would not stay
 * longer there. */
typedef struct next_strips {
    const float *at, *ahead; /* rows to copy and to fetch */
    float *to;
    int64_t column, ahead_column, columns; /* in pieces */
    int64_t piece, to_piece;               /* that lie this many floats apart */
    int64_t row_step, to_step;
    __mmask16 lanes, last; /* of a piece, and of the last one of a row */
    int64_t left, at_once; /* bundles */
} next_strips;

enum { BUNDLE = 8 };

VEC_INLINE void copy_bundle(const next_strips *next)
{
    const float *from = next->at + next->column * next->piece;
    const int64_t count = next->columns - next->column;
    float *to = next->to + next->column * next->to_piece;

    if (count > BUNDLE || (count == BUNDLE && next->last == next->lanes)) {
#pragma GCC unroll 8
        for (int i = 0; i < BUNDLE; ++i) {
            vec_store(to + i * next->to_piece, load_lanes(from + i * next->piece, next->lanes));
        }
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        const __mmask16 lanes = i == count - 1 ? next->last : next->lanes;
        vec_store(to + i * next->to_piece, load_lanes(from + i * next->piece, lanes));
    }
}

VEC_INLINE void fetch_bundle(next_strips *next)
{
    const float *ahead = next->ahead + next->ahead_column * next->piece;

#pragma GCC unroll 8
    for (int i = 0; i < BUNDLE; ++i) {
        __builtin_prefetch(ahead + i * next->piece);
    }
    next->ahead_column += BUNDLE;
    if (next->ahead_column >= next->columns) {
        next->ahead_column = 0;
        next->ahead += next->row_step;
    }
}

VEC_INLINE void approach(next_strips *next)
{
    for (int64_t i = 0; i < next->at_once && next->left > 0; ++i, --next->left) {
        fetch_bundle(next);
        copy_bundle(next);
        next->column += BUNDLE;
        if (next->column >= next->columns) {
            next->column = 0;
            next->at += next->row_step;
            next->to += next->to_step;
        }
    }
}

/* Steps between two approaches: far more than it takes to have so few lines under way. */
enum { APPROACH_STEPS = 64 };

/* tile[i][j] = (0 or itself) + sum over r of a(i, r) b[r][j], for the first `rows` rows of the
 * strip and `vectors` vectors of the panel */
VEC_INLINE void multiply_tile(const float *a, strip_layout layout, const float *b, int64_t steps,
                              int rows, int vectors, bool is_first, next_strips *next,
                              float tile[STRIP][PANEL])
{
    vec sum[STRIP][2] = {0};

    if (!is_first) {
#pragma GCC unroll 14
        for (int i = 0; i < rows; ++i) {
            sum[i][0] = vec_load(tile[i]);
            sum[i][1] = vec_load(tile[i] + VEC_N);
        }
    }
    for (int64_t done = 0; done < steps; done += APPROACH_STEPS) {
        const int64_t now = steps - done < APPROACH_STEPS ? steps - done : APPROACH_STEPS;

        approach(next);
        for (int64_t r = 0; r < now; ++r, a += layout.step, b += PANEL) {
            const vec b0 = vec_load(b), b1 = vectors == 2 ? vec_load(b + VEC_N) : b0;
#pragma GCC unroll 14
            for (int i = 0; i < rows; ++i) {
                const vec x = vec_set(a[i * layout.row]);
                sum[i][0] += x * b0;
                if (vectors == 2) {
                    sum[i][1] += x * b1;
                }
            }
        }
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; ++i) {
        vec_store(tile[i], sum[i][0]);
        if (vectors == 2) {
            vec_store(tile[i] + VEC_N, sum[i][1]);
        }
    }
}

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
