/* The kernel for bf16: blocks of 32 x 32 results in AMX tiles, over rows of a and panels of b.
 * Rows of a whose elements are neighbours along the sum are read where they lie, others packed. */
#include "runtime/cpu/simd/gemm_bf16_pack.h"
#include "runtime/cpu/simd/own_gemm.h"

/* Steps of a sum in one pass. Elements of b packed at once: 512 KiB, half of a second-level cache
 * or less. Sums that wait for the next pass: 1 MiB. */
enum { MOST_STEPS = 2048, MOST_PACKED = 256 * 1024, MOST_SUMS = 256 * 1024 };

enum { LINE = 64, SUMS = BLOCK * BLOCK, ROWS_WORDS = BLOCK * MOST_STEPS / 2 };

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* `whole` cut into as few equal parts of at most `most` as possible, rounded up to BLOCK */
static int64_t even_part(int64_t whole, int64_t most)
{
    const int64_t parts = (whole + most - 1) / most;

    return ((whole + parts - 1) / parts + BLOCK - 1) / BLOCK * BLOCK;
}

/* ---- results --------------------------------------------------------------------------------- */

/* Where a block of sums goes: rows x columns of c, or less than a block at its edges. */
typedef struct target {
    char *c; /* of element (0, 0) */
    size_t element;
    int64_t row, column; /* bytes from row to row and from column to column */
    int64_t rows, columns;
    bool accumulate, is_far;
} target;

VEC_INLINE vec narrow(vec low, vec high)
{
    return (vec)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

static bool is_far(const target *t, const char *to, int64_t wide)
{
    return t->is_far && wide >= BLOCK && (uintptr_t)to % LINE == 0;
}

static void put_f32(const target *t, float *to, vec low, vec high, int64_t wide)
{
    const __mmask16 first = first_lanes(wide), last = first_lanes(wide - VEC_N);

    if (t->accumulate) {
        low += load_lanes(to, first);
        high += load_lanes(to + VEC_N, last);
    } else if (is_far(t, (const char *)to, wide)) {
        store_past_caches(to, low);
        store_past_caches(to + VEC_N, high);
        return;
    }
    store_lanes(to, low, first);
    store_lanes(to + VEC_N, high, last);
}

static void put_bf16(const target *t, char *to, vec both, int64_t wide)
{
    if (is_far(t, to, wide)) {
        store_past_caches((float *)(void *)to, both);
    } else {
        _mm512_mask_storeu_epi16(to, first_halves(wide), (__m512i)both);
    }
}

/* A block as it is: its rows are rows of c. */
static void put_rows(const float *sums, const target *t)
{
    for (int64_t i = 0; i < least(t->rows, BLOCK); ++i, sums += BLOCK) {
        char *to = t->c + i * t->row;
        const vec low = vec_load(sums), high = vec_load(sums + VEC_N);

        if (t->element == sizeof(float)) {
            put_f32(t, (float *)(void *)to, low, high, t->columns);
        } else {
            put_bf16(t, to, narrow(low, high), t->columns);
        }
    }
}

/* A block transposed: its columns are rows of c. Of bf16 words are turned, two rows in one. */
static void put_columns(const float *sums, const target *t)
{
    for (int64_t j = 0; j < least(t->columns, BLOCK); j += VEC_N) {
        vec v[2][VEC_N];

#pragma GCC unroll 16
        for (int i = 0; i < VEC_N; ++i) {
            if (t->element == sizeof(float)) {
                v[0][i] = vec_load(sums + i * BLOCK + j);
                v[1][i] = vec_load(sums + (VEC_N + i) * BLOCK + j);
            } else {
                v[0][i] = vec_pair_bf16(vec_to_bf16(vec_load(sums + 2 * i * BLOCK + j)),
                                        vec_to_bf16(vec_load(sums + (2 * i + 1) * BLOCK + j)));
            }
        }
        transpose(v[0]);
        if (t->element == sizeof(float)) {
            transpose(v[1]);
        }
        for (int64_t i = 0; i < least(t->columns - j, VEC_N); ++i) {
            char *to = t->c + (j + i) * t->column;

            if (t->element == sizeof(float)) {
                put_f32(t, (float *)(void *)to, v[0][i], v[1][i], t->rows);
            } else {
                put_bf16(t, to, v[0][i], t->rows);
            }
        }
    }
}

/* ---- products -------------------------------------------------------------------------------- */

/* One pass over a part of c: a[m, steps] times the packed b, sums from and to the scratch. */
typedef struct pass {
    side a;
    const float *b;
    float *rows, *sums;
    target c;
    int64_t m, n, steps;
    bool is_first, is_last;
} pass;

/* A share of the rows that will be read where they lie next. */
static void fetch_rows(const side *a, int64_t steps, int64_t share, int64_t shares)
{
    const int64_t lines = (steps + LANES - 1) / LANES, all = BLOCK * lines;

    for (int64_t at = share * all / shares; at < (share + 1) * all / shares; ++at) {
        __builtin_prefetch(a->at + at / lines * a->outer + at % lines * LANES, 0, 2);
    }
}

static void multiply_rows(const pass *p, int64_t i)
{
    const side a = {p->a.at + i * p->a.outer, p->a.outer, p->a.along};
    const side next = {a.at + BLOCK * a.outer, a.outer, a.along};
    const int64_t words = (p->steps + LANES - 1) / LANES * AMX_WORDS;
    const bool in_place = a.along == 1 && p->m - i >= BLOCK && p->steps % LANES == 0 &&
                          a.outer % 2 == 0 && (uintptr_t)a.at % sizeof(float) == 0;
    const bool is_alone = p->is_first && p->is_last, fetches = in_place && p->m - i >= 2 * BLOCK;
    const float *rows = in_place ? (const float *)(const void *)a.at : p->rows;

    if (!in_place) {
        pack_rows_of(&a, p->m - i, p->steps, p->rows);
    }
    for (int64_t j = 0; j < p->n; j += BLOCK) {
        float *sums = p->sums + (is_alone ? 0 : i * p->n + j * BLOCK); /* n: a multiple of BLOCK */
        target c = p->c;

        if (fetches) {
            fetch_rows(&next, p->steps, j / BLOCK, p->n / BLOCK);
        }
        amx_block(rows, in_place ? a.outer / 2 : AMX_WORDS,
                  in_place ? AMX_WORDS : BLOCK * AMX_WORDS, p->b + j * words, BLOCK, words, sums,
                  BLOCK, !p->is_first);
        if (p->is_last) {
            c.c += i * c.row + j * c.column;
            c.rows -= i;
            c.columns -= j;
            (c.column == (int64_t)c.element ? put_rows : put_columns)(sums, &c);
        }
    }
}

static target target_of(const tsr_own_gemm_args *p, int64_t i, int64_t j)
{
    const size_t element = tsr_dtype_bytes(p->c_dtype);
    target t = {.element = element,
                .row = p->c_outer_a * (int64_t)element,
                .column = p->c_outer_b * (int64_t)element,
                .accumulate = p->accumulate,
                .is_far = p->is_far};

    t.c = (char *)p->c + i * t.row + j * t.column;
    return t;
}

static side part_of(const tsr_gemm_side *whole, int64_t i, int64_t r)
{
    return (side){(const tsr_bf16 *)whole->at + i * whole->outer + r * whole->along, whole->outer,
                  whole->along};
}

static void run(const tsr_own_gemm_args *args, void *scratch)
{
    const int64_t steps = even_part(args->k, MOST_STEPS);
    const int64_t columns =
        even_part(args->n, least(MOST_PACKED / steps, MOST_SUMS / BLOCK) / BLOCK * BLOCK);
    const int64_t rows = steps >= args->k ? args->m : MOST_SUMS / columns / BLOCK * BLOCK;
    float *packed = scratch, *rows_words = packed + MOST_PACKED / 2;

    amx_begin();
    for (int64_t j = 0; j < args->n; j += columns) {
        const int64_t wide = least(columns, args->n - j);

        for (int64_t i = 0; i < args->m; i += rows) {
            for (int64_t r = 0; r < args->k; r += steps) {
                const side b = part_of(&args->b, j, r);
                pass p = {.a = part_of(&args->a, i, r),
                          .b = packed,
                          .rows = rows_words,
                          .sums = rows_words + ROWS_WORDS,
                          .c = target_of(args, i, j),
                          .m = least(rows, args->m - i),
                          .n = (wide + BLOCK - 1) / BLOCK * BLOCK,
                          .steps = least(steps, args->k - r),
                          .is_first = r == 0,
                          .is_last = r + steps >= args->k};

                p.c.rows = p.m;
                p.c.columns = wide;
                pack_columns_of(&b, wide, p.steps, packed);
                for (int64_t row = 0; row < p.m; row += BLOCK) {
                    multiply_rows(&p, row);
                }
            }
        }
    }
    amx_end();
    finish_far_stores();
}

const tsr_own_gemm tsr_amx_gemm_bf16 = {
    .run = run,
    .scratch_bytes = (MOST_PACKED / 2 + ROWS_WORDS + MOST_SUMS) * sizeof(float),
    .rows = BLOCK,
};
