/* The kernel for f32: tiles of 14 x 32 results in registers, over strips of a and panels of b.
 * Strips are copied while others are multiplied, so that a streams from memory meanwhile. */
#include "runtime/cpu/simd/cut.h"
#include "runtime/cpu/simd/gemm_tile.h"
#include "runtime/cpu/simd/own_gemm.h"

/* tsr_own_gemm_args, of floats. */
typedef struct side {
    const float *at;
    int64_t outer, along;
} side;

typedef struct product {
    side a, b;
    float *c;
    int64_t c_outer_a, c_outer_b, m, n, k;
    bool accumulate, is_far;
} product;

/* Steps of a sum in one pass: a strip of them is 28 KiB, about a first-level cache. Floats of b
 * packed at once: 512 KiB, half of a second-level cache. Sums that wait for the next pass: 1
 * MiB. */
enum { MOST_PACKED = 128 * 1024, MOST_SUMS = 592 * STRIP * PANEL };

/* Strips that are copied, multiplied and written together: their rows fill whole lines of memory,
 * of a as of a transposed c. */
enum { GROUP = 8, GROUP_ROWS = GROUP * STRIP };
_Static_assert(GROUP_ROWS % LINE_FLOATS == 0, "a group of strips is whole lines");

/* Copies write whole vectors and whole blocks of 16 steps: beyond the end. */
enum {
    STRIP_FLOATS = STRIP * (MOST_STEPS + LINE_FLOATS),
    PANEL_FLOATS = MOST_PACKED + PANEL * VEC_N
};

/* out[r][0 .. 15] = side(0 .. count - 1, r), zero behind, in half the width of a panel. */
static void pack_lanes(const side *from, int64_t count, int64_t steps, float *out)
{
    if (from->along != 1) {
        for (int64_t r = 0; r < steps; ++r) {
            vec_store(out + r * PANEL, load_lanes(from->at + r * from->along, first_lanes(count)));
        }
        return;
    }
    for (int64_t r = 0; r < steps; r += VEC_N) {
        const __mmask16 lanes = first_lanes(steps - r);
        vec block[VEC_N];

#pragma GCC unroll 16
        for (int i = 0; i < VEC_N; ++i) {
            block[i] = load_lanes(from->at + i * from->outer + r, i < count ? lanes : 0);
        }
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < VEC_N; ++i) {
            vec_store(out + (r + i) * PANEL, block[i]);
        }
    }
}

static side part_of(const side *whole, int64_t i, int64_t r)
{
    return (side){whole->at + i * whole->outer + r * whole->along, whole->outer, whole->along};
}

/* In the order of memory: all steps of a few columns, or all columns of a few steps. */
static void pack_panels(const side *b, int64_t columns, int64_t steps, float *out)
{
    const int64_t deep = b->along == 1 ? steps : VEC_N;

    for (int64_t r = 0; r < steps; r += deep) {
        for (int64_t j = 0; j < columns; j += VEC_N) {
            const side lanes = part_of(b, j, r);
            float *panel = out + j / PANEL * PANEL * steps + j % PANEL;

            pack_lanes(&lanes, columns - j, least(deep, steps - r), panel + r * PANEL);
        }
    }
}

/* To copy the group of strips that begins at a, of which `rows` are left, while `tiles` tiles are
 * multiplied. */
static next_strips approach_of(const product *p, const side *a, int64_t rows, int64_t tiles,
                               float *to)
{
    const int64_t times = tiles * ((p->k + APPROACH_STEPS - 1) / APPROACH_STEPS);
    next_strips next = {.at = a->at, .to = to};

    rows = least(rows, GROUP_ROWS);
    if (a->along == 1) { /* a row of all steps after the other, piece by piece a line */
        next.columns = (p->k + LINE_FLOATS - 1) / LINE_FLOATS;
        next.piece = next.to_piece = LINE_FLOATS;
        next.row_step = a->outer;
        next.to_step = along_layout.row;
        next.lanes = first_lanes(LINE_FLOATS);
        next.last = first_lanes(p->k - (next.columns - 1) * LINE_FLOATS);
        next.left = rows;
    } else { /* a step of all rows after the other, piece by piece a strip */
        next.columns = (rows + STRIP - 1) / STRIP;
        next.piece = STRIP;
        next.to_piece = STRIP_FLOATS;
        next.row_step = a->along;
        next.to_step = across_layout.step;
        next.lanes = first_lanes(STRIP);
        next.last = first_lanes(rows - (next.columns - 1) * STRIP);
        next.left = p->k;
    }
    next.left *= (next.columns + BUNDLE - 1) / BUNDLE;
    next.at_once = (next.left + times - 1) / times;
    next.ahead = a->at;
    for (int64_t i = 0; i < least(2 * next.at_once, next.left); ++i) {
        fetch_bundle(&next); /* and so fetching stays ahead of copying by as many */
    }
    return next;
}

/* The lines of c that a tile will be put into. */
static void expect_tile(const product *p, const float *c, int64_t rows)
{
    if (p->c_outer_b == 1 && (p->accumulate || !p->is_far)) {
        for (int64_t i = 0; i < least(rows, STRIP); ++i) {
            __builtin_prefetch(c + i * p->c_outer_a, 1);
            __builtin_prefetch(c + i * p->c_outer_a + VEC_N, 1);
        }
    }
}

static void put_rows(float tile[STRIP][PANEL], const product *p, float *c, int64_t rows,
                     int64_t columns, bool add)
{
    const bool is_far = p->is_far && !add && columns >= PANEL && p->c_outer_a % LINE_FLOATS == 0 &&
                        (uintptr_t)c % LINE == 0;

    for (int64_t i = 0; i < least(rows, STRIP); ++i) {
        for (int64_t j = 0; j < least(columns, PANEL); j += VEC_N) {
            float *to = c + i * p->c_outer_a + j;
            const vec v = vec_load(tile[i] + j);
            const __mmask16 lanes = first_lanes(columns - j);

            if (is_far) {
                store_past_caches(to, v);
            } else {
                store_lanes(to, add ? load_lanes(to, lanes) + v : v, lanes);
            }
        }
    }
}

/* The tiles of a group of strips, one below the other: written by whole lines. One strip at a time
 * would write 14 floats of a line, which leaves the caches before the rest comes: the lines of a
 * column of tiles, far apart, fall into few sets. */
static void put_columns(float block[GROUP_ROWS][PANEL], const product *p, float *c, int64_t rows,
                        int64_t columns)
{
    const bool is_far =
        p->is_far && !p->accumulate && p->c_outer_b % LINE_FLOATS == 0 && (uintptr_t)c % LINE == 0;

    for (int64_t j = 0; j < least(columns, PANEL); j += VEC_N) {
        for (int64_t i = 0; i < rows; i += VEC_N) {
            const __mmask16 lanes = first_lanes(rows - i);
            vec v[VEC_N];

#pragma GCC unroll 16
            for (int r = 0; r < VEC_N; ++r) {
                v[r] = vec_load(block[i + r] + j);
            }
            transpose(v);
#pragma GCC unroll 16
            for (int r = 0; r < VEC_N; ++r) {
                float *to = c + (j + r) * p->c_outer_b + i;
                const __mmask16 kept = r < columns - j ? lanes : 0;

                if (is_far && kept == 0xffff) {
                    store_past_caches(to, v[r]);
                } else {
                    store_lanes(to, p->accumulate ? load_lanes(to, kept) + v[r] : v[r], kept);
                }
            }
        }
    }
}

/* Some rows of a tile: as many vectors as columns need. */
VEC_INLINE void multiply_rows(const float *strip, strip_layout layout, const float *panel,
                              int64_t steps, int rows, int64_t columns, bool is_first,
                              next_strips *next, float tile[STRIP][PANEL])
{
    if (columns > VEC_N) {
        multiply_tile(strip, layout, panel, steps, rows, 2, is_first, next, tile);
    } else {
        multiply_tile(strip, layout, panel, steps, rows, 1, is_first, next, tile);
    }
}

/* The tile of a strip of which `rows` are left and a panel of which `columns` are left. */
VEC_INLINE void multiply_part(const float *strip, strip_layout layout, const float *panel,
                              int64_t steps, int64_t rows, int64_t columns, bool is_first,
                              next_strips *next, float tile[STRIP][PANEL])
{
    if (rows > 8) {
        multiply_rows(strip, layout, panel, steps, STRIP, columns, is_first, next, tile);
    } else if (rows > 4) {
        multiply_rows(strip, layout, panel, steps, 8, columns, is_first, next, tile);
    } else {
        multiply_rows(strip, layout, panel, steps, 4, columns, is_first, next, tile);
    }
}

/* Where the sums of a group of strips and panel j are kept: of all groups if there are more passes
 * to come, else of one group and panel at a time. */
static float (*tiles_of(const product *p, float (*tiles)[STRIP][PANEL], int64_t i, int64_t j,
                        bool is_alone))[STRIP][PANEL]
{
    const int64_t across = (p->n + PANEL - 1) / PANEL;

    return is_alone ? tiles : tiles + (i / GROUP_ROWS * across + j / PANEL) * GROUP;
}

static void put_group(float (*tiles)[STRIP][PANEL], const product *p, float *c, int64_t rows,
                      int64_t columns)
{
    if (p->c_outer_b != 1) {
        put_columns(tiles[0], p, c, rows, columns);
        return;
    }
    for (int64_t i = 0; i < rows; i += STRIP) {
        put_rows(tiles[i / STRIP], p, c + i * p->c_outer_a, rows - i, columns, p->accumulate);
    }
}

/* One pass over all strips of a, with the panels of its steps: sums start, go on or end in
 * tiles. */
VEC_INLINE void multiply_panels(const product *p, strip_layout layout, const float *panels,
                                float *strips, float (*tiles)[STRIP][PANEL], bool is_first,
                                bool is_last)
{
    const int64_t across = (p->n + PANEL - 1) / PANEL;
    float *group = strips, *other = strips + GROUP * STRIP_FLOATS;
    next_strips next = approach_of(p, &p->a, p->m, 1, group);

    next.at_once = next.left; /* there is nothing to do meanwhile */
    approach(&next);
    for (int64_t i = 0; i < p->m; i += GROUP_ROWS) {
        const side later = part_of(&p->a, i + GROUP_ROWS, 0);
        const int64_t rows = least(GROUP_ROWS, p->m - i);

        if (i + GROUP_ROWS < p->m) {
            next = approach_of(p, &later, p->m - i - GROUP_ROWS, across * GROUP, other);
        }
        for (int64_t j = 0; j < p->n; j += PANEL) {
            float(*tile)[STRIP][PANEL] = tiles_of(p, tiles, i, j, is_first && is_last);
            float *c = p->c + i * p->c_outer_a + j * p->c_outer_b;

            for (int64_t row = 0; row < rows; row += STRIP) {
                if (is_last) {
                    expect_tile(p, c + row * p->c_outer_a, rows - row);
                }
                multiply_part(group + row / STRIP * STRIP_FLOATS, layout, panels + j * p->k, p->k,
                              rows - row, p->n - j, is_first, &next, tile[row / STRIP]);
            }
            if (is_last) {
                put_group(tile, p, c, rows, p->n - j);
            }
        }
        float *const used = group;
        group = other;
        other = used;
    }
}

static side side_of(const tsr_gemm_side *of)
{
    return (side){of->at, of->outer, of->along};
}

static void run(const tsr_own_gemm_args *args, void *scratch)
{
    const product whole = {side_of(&args->a), side_of(&args->b), args->c, args->c_outer_a,
                           args->c_outer_b,   args->m,           args->n, args->k,
                           args->accumulate,  args->is_far};
    const int64_t steps = even_part(whole.k, MOST_STEPS, LINE_FLOATS);
    const int64_t most_columns = least(MOST_PACKED / steps, MOST_SUMS / GROUP_ROWS);
    const int64_t columns = even_part(whole.n, most_columns / PANEL * PANEL, PANEL);
    const int64_t rows = steps >= whole.k ? whole.m : MOST_SUMS / columns / GROUP_ROWS * GROUP_ROWS;
    float *panels = scratch, *strips = panels + PANEL_FLOATS;
    float(*tiles)[STRIP][PANEL] =
        (float(*)[STRIP][PANEL])(void *)(strips + 2 * GROUP * STRIP_FLOATS);

    for (int64_t j = 0; j < whole.n; j += columns) {
        for (int64_t i = 0; i < whole.m; i += rows) {
            for (int64_t r = 0; r < whole.k; r += steps) {
                product part = whole;

                part.m = least(rows, whole.m - i);
                part.n = least(columns, whole.n - j);
                part.k = least(steps, whole.k - r);
                part.a = part_of(&whole.a, i, r);
                part.b = part_of(&whole.b, j, r);
                part.c += i * whole.c_outer_a + j * whole.c_outer_b;
                pack_panels(&part.b, part.n, part.k, panels);
                if (part.a.along == 1) {
                    multiply_panels(&part, along_layout, panels, strips, tiles, r == 0,
                                    r + steps >= whole.k);
                } else {
                    multiply_panels(&part, across_layout, panels, strips, tiles, r == 0,
                                    r + steps >= whole.k);
                }
            }
        }
    }
    finish_far_stores();
}

const tsr_own_gemm tsr_avx512_gemm_f32 = {
    .run = run,
    .scratch_bytes = (PANEL_FLOATS + 2 * GROUP * STRIP_FLOATS + MOST_SUMS) * sizeof(float),
    .rows = STRIP,
};
