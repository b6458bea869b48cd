/* The kernels for AMX: blocks of 32 x 32 sums in tiles, over rows of a and packed columns of b.
 *
 * Factors of f32 are three bf16 each, and of their nine products the six larger are added up
 * (Henry, Tang, Heinecke 2019, arXiv 1904.06376): what is left out is below 2^-25 of a product.
 * Sums of CHUNK steps are added up by themselves, so that small terms are not rounded at the size
 * of the whole: from two terms on, errors are below those of fused multiply-adds. What differs:
 * a factor that is infinite or above 3.39e38 makes NaN of its products, and parts and products
 * below 2^-126 are lost, so that factors below 2^-110 lose digits.
 * Rows of bf16 whose elements are neighbours along the sum are read where they lie. */
#include "runtime/cpu/simd/amx_target.h"
#include "runtime/cpu/simd/own_gemm.h"

/* Elements of a sum in one pass: few of f32, whose sums go to memory after each chunk of steps of
 * tiles anyway. Words of b packed at once: 1 MiB, half of a second-level cache. Sums that wait for
 * the next pass: 1 MiB. Words of rows of a. */
enum {
    MOST_ELEMENTS = 2048,
    MOST_ELEMENTS_F32 = 512,
    CHUNK = 4,
    MOST_PACKED = 256 * 1024,
    MOST_SUMS = 256 * 1024,
    MOST_ROWS = MOST_ELEMENTS / BLOCK * STEP
};
_Static_assert(CHUNK *PARTS_F32 *STEP <= MOST_ROWS, "a chunk of f32 fits");

/* One pass over a part of c: a[m, elements] times the packed b, sums from and to the scratch. */
typedef struct pass {
    side a;
    const float *b;
    float *rows, *sums;
    target c;
    int64_t m, n, elements; /* n: a multiple of BLOCK */
    bool is_first, is_last, is_exchanged;
} pass;

/* The products of parts that count, of a and of b, the largest last. Neighbours share a factor,
 * which is loaded once: three times one of a, the larger side, and four times one of b. */
static const struct {
    int a, b;
} products[] = {{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 2}, {0, 0}};

enum { PRODUCTS = sizeof products / sizeof *products };

/* The block += these products. Exchanged factors give the same sums, to the bit. */
VEC_INLINE void add_parts(amx_factor a, amx_factor b, int64_t steps, bool is_exchanged)
{
    for (int64_t i = 0; i < steps; ++i, a.at += a.next, b.at += b.next) {
        int part_a = -1, part_b = -1;

#pragma GCC unroll 6
        for (int p = 0; p < PRODUCTS; ++p) {
            const int next_a = is_exchanged ? products[p].b : products[p].a;
            const int next_b = is_exchanged ? products[p].a : products[p].b;

            if (next_a != part_a) {
                amx_load_a(a.at + next_a * STEP, a.row);
            }
            if (next_b != part_b) {
                /* a stays, b passes by; where it is the one loaded less, it may push a out */
                (is_exchanged ? amx_load_b : amx_stream_b)(b.at + next_b * STEP, b.row);
            }
            amx_multiply();
            part_a = next_a;
            part_b = next_b;
        }
    }
}

static void add_sums(const float *more, float *sums)
{
    for (int64_t i = 0; i < BLOCK * BLOCK; i += VEC_N) {
        vec_store(sums + i, vec_load(sums + i) + vec_load(more + i));
    }
}

/* One of `shares` parts of the next rows of a, to the second-level cache: they come from memory. */
static void fetch_rows(const side *a, int64_t elements, int64_t share, int64_t shares)
{
    const int64_t per_line = LINE / a->element;
    const bool is_along = a->along == a->element;
    const int64_t lines = ((is_along ? elements : BLOCK) + per_line - 1) / per_line;
    const int64_t all = lines * (is_along ? BLOCK : elements);
    const int64_t row = is_along ? a->outer : a->along;
    int64_t at = share * all / shares, line = at % lines;
    const char *to = a->at + at / lines * row;

    for (const int64_t end = (share + 1) * all / shares; at < end; ++at) {
        __builtin_prefetch(to + line * LINE, 0, 2);
        if (++line == lines) {
            line = 0;
            to += row;
        }
    }
}

/* Rows of a of f32 times all columns, a chunk of the sums at a time: its rows stay in the
 * first-level cache. */
static void multiply_chunks(const pass *p, side a, int64_t rows, float *sums)
{
    const int64_t steps = (p->elements + BLOCK - 1) / BLOCK, step = PARTS_F32 * STEP;
    float more[BLOCK * BLOCK] __attribute__((aligned(64)));

    for (int64_t at = 0; at < steps; at += CHUNK) {
        const int64_t now = least(CHUNK, steps - at), left = p->elements - at * BLOCK;
        const bool is_end = left <= CHUNK * BLOCK;
        side next = a; /* the same rows further on, or the next ones */

        pack_rows_of(PARTS_F32, &a, rows, least(left, CHUNK * BLOCK), p->rows);
        a.at += CHUNK * BLOCK * a.along;
        next.at = is_end ? next.at + BLOCK * a.outer - at * BLOCK * a.along : a.at;
        for (int64_t j = 0; j < p->n; j += BLOCK) {
            const amx_factor b = {p->b + (j / BLOCK * steps + at) * step, BLOCK, step};
            const amx_factor packed = {p->rows, AMX_WORDS, step};
            float *to = p->is_first && at == 0 ? sums + j * BLOCK : more;

            if (!is_end || rows >= 2 * BLOCK) {
                fetch_rows(&next, CHUNK * BLOCK, j / BLOCK, p->n / BLOCK);
            }
            amx_zero();
            if (p->is_exchanged) {
                add_parts(packed, b, now, true);
            } else {
                add_parts(packed, b, now, false);
            }
            amx_store(to, BLOCK);
            if (to == more) {
                add_sums(more, sums + j * BLOCK);
            }
        }
    }
}

static void put_block(const pass *p, int64_t i, int64_t j, const float *sums)
{
    target c = p->c;

    c.c += i * c.row + j * c.column;
    c.rows -= i;
    c.columns -= j;
    (c.column == (int64_t)c.element ? put_rows : put_columns)(sums, &c);
}

static void multiply_rows_f32(const pass *p, int64_t i)
{
    float *sums = p->sums + (p->is_first && p->is_last ? 0 : i * p->n);
    side a = p->a;

    a.at += i * a.outer;
    multiply_chunks(p, a, p->m - i, sums);
    for (int64_t j = 0; p->is_last && j < p->n; j += BLOCK) {
        put_block(p, i, j, sums + j * BLOCK);
    }
}

static void multiply_rows_bf16(const pass *p, int64_t i)
{
    const int64_t steps = (p->elements + BLOCK - 1) / BLOCK;
    const bool in_place = p->a.along == p->a.element && p->m - i >= BLOCK &&
                          p->elements % BLOCK == 0 && p->a.outer % (int64_t)sizeof(float) == 0;
    const bool is_alone = p->is_first && p->is_last, fetches = in_place && p->m - i >= 2 * BLOCK;
    amx_factor rows = {p->rows, AMX_WORDS, STEP};
    side a = p->a, next = p->a;

    a.at += i * a.outer;
    next.at = a.at + BLOCK * a.outer;
    if (in_place) {
        rows = (amx_factor){(const float *)(const void *)a.at, a.outer / (int64_t)sizeof(float),
                            AMX_WORDS};
    } else {
        pack_rows_of(1, &a, p->m - i, p->elements, p->rows);
    }
    for (int64_t j = 0; j < p->n; j += BLOCK) {
        float *sums = p->sums + (is_alone ? 0 : i * p->n + j * BLOCK);

        if (fetches) {
            fetch_rows(&next, p->elements, j / BLOCK, p->n / BLOCK);
        }
        if (p->is_first) {
            amx_zero();
        } else {
            amx_load(sums, BLOCK);
        }
        amx_add(rows, (amx_factor){p->b + j * steps * AMX_WORDS, BLOCK, STEP}, steps);
        amx_store(sums, BLOCK);
        if (p->is_last) {
            put_block(p, i, j, sums);
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

static side part_of(const tsr_gemm_side *whole, int64_t element, int64_t i, int64_t r)
{
    const side s = {whole->at, whole->outer * element, whole->along * element, element};

    return (side){element_at(&s, i, r), s.outer, s.along, element};
}

/* Columns of b that are packed at once. */
static int64_t most_columns(int parts, int64_t deep)
{
    return least(2 * MOST_PACKED / (parts * deep), MOST_SUMS / BLOCK) / BLOCK * BLOCK;
}

/* Elements of a sum in one pass; half as many where not all columns fit, since the rows of a are
 * split into parts again for each part of the columns. Whole chunks, so that n does not change the
 * order of a sum. */
static int64_t deep_f32(const tsr_own_gemm_args *args)
{
    const int64_t chunk = CHUNK * BLOCK, most = MOST_ELEMENTS_F32, half = most / 2;
    const bool is_wide = args->n > most_columns(PARTS_F32, most);

    return even_part(args->k, is_wide ? half : most, chunk);
}

VEC_INLINE void run(int parts, const tsr_own_gemm_args *args, float *packed)
{
    const int64_t element = parts == 1 ? sizeof(tsr_bf16) : sizeof(float);
    const int64_t deep = parts == 1 ? even_part(args->k, MOST_ELEMENTS, BLOCK) : deep_f32(args);
    const int64_t columns = even_part(args->n, most_columns(parts, deep), BLOCK);
    const int64_t rows = deep >= args->k ? args->m : MOST_SUMS / columns / BLOCK * BLOCK;

    amx_begin();
    for (int64_t j = 0; j < args->n; j += columns) {
        const int64_t wide = least(columns, args->n - j);

        for (int64_t i = 0; i < args->m; i += rows) {
            for (int64_t r = 0; r < args->k; r += deep) {
                const side b = part_of(&args->b, element, j, r);
                pass p = {.a = part_of(&args->a, element, i, r),
                          .b = packed,
                          .rows = packed + MOST_PACKED,
                          .sums = packed + MOST_PACKED + MOST_ROWS,
                          .c = target_of(args, i, j),
                          .m = least(rows, args->m - i),
                          .n = round_up(wide, BLOCK),
                          .elements = least(deep, args->k - r),
                          .is_first = r == 0,
                          .is_last = r + deep >= args->k,
                          .is_exchanged = args->is_exchanged};

                p.c.rows = p.m;
                p.c.columns = wide;
                pack_columns_of(parts, &b, wide, p.elements, packed);
                for (int64_t row = 0; row < p.m; row += BLOCK) {
                    (parts == 1 ? multiply_rows_bf16 : multiply_rows_f32)(&p, row);
                }
            }
        }
    }
    amx_end();
    finish_far_stores();
}

static void run_bf16(const tsr_own_gemm_args *args, void *scratch)
{
    run(1, args, scratch);
}

static void run_f32(const tsr_own_gemm_args *args, void *scratch)
{
    run(PARTS_F32, args, scratch);
}

enum { SCRATCH_WORDS = MOST_PACKED + MOST_ROWS + MOST_SUMS };

const tsr_own_gemm tsr_amx_gemm_bf16 = {run_bf16, .scratch_bytes = SCRATCH_WORDS * sizeof(float),
                                        .rows = BLOCK, .turns_words = true};
const tsr_own_gemm tsr_amx_gemm_f32 = {run_f32, .scratch_bytes = SCRATCH_WORDS * sizeof(float),
                                       .rows = BLOCK, .turns_words = true};
