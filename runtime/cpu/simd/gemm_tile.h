/* The registers' part of gemm_f32.c: a tile of 14 x 32 results. AVX-512. */
#ifndef TSR_RUNTIME_CPU_GEMM_TILE_H
#define TSR_RUNTIME_CPU_GEMM_TILE_H

#include "runtime/cpu/simd/lanes.h"

#include <stdbool.h>

#ifdef __AVX512F__ /* compiled for nothing else; so that the header still stands alone */

/* 28 accumulators, two vectors of b and one of a leave one of the 32 registers over. */
enum { STRIP = 14, PANEL = 2 * VEC_N };

/* How a strip lies in its buffer: element (i, r) at i * row + r * step. Copied as it lies in
 * memory, never transposed; rows of long ones are padded, lest their starts share one set of the
 * cache. */
typedef struct strip_layout {
    int row, step;
} strip_layout;

enum { MOST_STEPS = 512, LINE_FLOATS = 16 };

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

#endif

#endif
