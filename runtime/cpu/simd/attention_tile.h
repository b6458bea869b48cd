/* What both directions of attention share: tiles in scratch and products of their strips.
 *
 * A tile is TILE queries or keys, of which a strip of STRIP rows is multiplied at a time; the keys
 * of one key-value head are brought into scratch once. Products are of 32-bit words: one f32, or
 * two bf16 (`pack` = 2) where the processor multiplies such pairs. Pairs lie along the summed
 * index, so a matrix is kept packed by rows (neighbours in a row share a word) as a left factor and
 * packed by columns as a right one; both are the same memory if pack is 1. Sums are f32.
 * Rows are padded with zeros to `pad` elements, tiles with zero rows. Where AMX multiplies pairs,
 * rows and columns of products and the elements summed over are multiples of 32, zeros included. */
#ifndef TSR_RUNTIME_CPU_ATTENTION_TILE_H
#define TSR_RUNTIME_CPU_ATTENTION_TILE_H

#include "runtime/cpu/simd/amx.h"
#include "runtime/cpu/simd/cut.h"
#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

#if defined(__AVX512BF16__)
#define BF16_PACK                     2
#define MULTIPLY_ADD_PAIRS(sum, a, b) ((vec)_mm512_dpbf16_ps((sum), (__m512bh)(a), (__m512bh)(b)))
#else
#define BF16_PACK                     1
#define MULTIPLY_ADD_PAIRS(sum, a, b) ((sum) + (a) * (b)) /* never reached */
#endif

enum {
    SUM_ROWS = 4,
    SUM_VECTORS = VEC_N == 16 ? 4 : 2 /* SUM_ROWS x this many sums fit the registers */
};

#if defined(__AMX_BF16__)
enum { STRIP = AMX_BLOCK, GRAIN = AMX_BLOCK, LEAST_PACK = 2 };
#else
enum { STRIP = SUM_ROWS, GRAIN = VEC_N, LEAST_PACK = 1 };
#endif

enum {
    TILE = 64, /* a multiple of STRIP and of GRAIN, of which columns of products are multiples */
};

/* One thread's scratch. Sizes in words; offsets are multiples of 16. */
typedef struct attention_scratch {
    float *k_rows, *v_rows;                /* [keys, pad / pack] */
    float *k_transposed;                   /* [keys / TILE][pad / pack, TILE] */
    float *k_columns, *v_columns;          /* [keys / pack, pad] */
    float *k_across;                       /* [pad, keys / pack], packed by rows */
    float *dk, *dv;                        /* [keys, pad] f32 */
    float *q_rows, *q_columns;             /* [TILE, pad / pack], [TILE / pack, pad] */
    float *dout_rows, *dout_columns;       /* the same */
    float *q_transposed, *dout_transposed; /* [pad / pack, TILE] */
    float *out, *dq_across;                /* [TILE, pad], [pad, TILE] f32 */
    float *p_rows, *ds_rows, *ds_columns;  /* [TILE, TILE / pack], [TILE / pack, TILE] */
    int64_t head_dim, pad, keys;           /* pad, keys: head_dim and kv_len, rounded up */
} attention_scratch;

VEC_INLINE int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Elements in a word of these tensors. On AMX there are only pairs. */
VEC_INLINE int pack_of(const tsr_attention_args *args)
{
    return args->dtype == TSR_BF16 ? BF16_PACK : LEAST_PACK;
}

/* Bytes that one thread needs for these sizes, in either direction. */
VEC_INLINE size_t scratch_bytes(const tsr_attention_args *args)
{
    const int64_t pad = round_up(args->head_dim, VEC_N * pack_of(args));
    const int64_t keys = round_up(args->kv_len, TILE);

    return (size_t)(6 * keys * pad + 8 * TILE * pad + 3 * TILE * TILE) * sizeof(float);
}

/* Rows and columns share memory if pack is 1, and so does what only one direction uses. */
VEC_INLINE attention_scratch scratch_of_thread(const tsr_attention_args *args, int pack,
                                               float *base)
{
    const int64_t pad = round_up(args->head_dim, VEC_N * pack);
    const int64_t keys = round_up(args->kv_len, TILE), all = keys * pad, tile = TILE * pad;
    attention_scratch s = {.head_dim = args->head_dim, .pad = pad, .keys = keys};

    s.k_rows = base;
    s.v_rows = base + all;
    s.k_columns = pack == 1 ? s.k_rows : base + 2 * all;
    s.v_columns = pack == 1 ? s.v_rows : base + 2 * all;
    s.k_transposed = s.k_across = base + 3 * all;
    s.dk = base + 4 * all;
    s.dv = base + 5 * all;
    base += 6 * all;
    s.q_rows = base;
    s.dout_rows = base + tile;
    s.q_columns = pack == 1 ? s.q_rows : base + 2 * tile;
    s.dout_columns = pack == 1 ? s.dout_rows : base + 3 * tile;
    s.q_transposed = base + 4 * tile;
    s.dout_transposed = base + 5 * tile;
    s.out = base + 6 * tile;
    s.dq_across = base + 7 * tile;
    base += 8 * tile;
    s.p_rows = base;
    s.ds_rows = base + TILE * TILE;
    s.ds_columns = pack == 1 ? s.ds_rows : base + 2 * TILE * TILE;
    return s;
}

/* Rows of one head in a tensor. */
typedef struct head_rows {
    const void *base;
    tsr_dtype dtype;
    int64_t at, stride, rows, width; /* first element, elements from row to row, size */
} head_rows;

/* Rows of a head from token `first` on, in a tensor laid out as q. */
VEC_INLINE head_rows query_rows(const tsr_attention_args *args, const void *base, int64_t batch,
                                int64_t head, int64_t first, int64_t rows)
{
    return (head_rows){
        .base = base,
        .dtype = args->dtype,
        .at = batch * args->q_batch_stride + first * args->q_stride + head * args->head_dim,
        .stride = args->q_stride,
        .rows = rows,
        .width = args->head_dim,
    };
}

/* The same as out. */
VEC_INLINE head_rows out_rows(const tsr_attention_args *args, const void *base, int64_t batch,
                              int64_t head, int64_t first, int64_t rows)
{
    return (head_rows){
        .base = base,
        .dtype = args->dtype,
        .at = batch * args->out_batch_stride + first * args->out_stride + head * args->head_dim,
        .stride = args->out_stride,
        .rows = rows,
        .width = args->head_dim,
    };
}

/* All rows of a key-value head in a tensor laid out as k. */
VEC_INLINE head_rows key_rows(const tsr_attention_args *args, const void *base, int64_t batch,
                              int64_t kv_head)
{
    return (head_rows){
        .base = base,
        .dtype = args->dtype,
        .at = batch * args->kv_batch_stride + kv_head * args->head_dim,
        .stride = args->kv_stride,
        .rows = args->kv_len,
        .width = args->head_dim,
    };
}

/* to[padded_rows, pad / pack] = the rows, packed by rows. */
VEC_INLINE void load_rows(int pack, const head_rows *from, int64_t padded_rows, int64_t pad,
                          float *to)
{
    const int64_t width = from->width;

    for (int64_t row = 0; row < from->rows; ++row, to += pad / pack) {
        const int64_t at = from->at + row * from->stride;
        int64_t col = 0;

        if (pack == 2) {
            memset(to + pad / 2 - VEC_N, 0, VEC_N * sizeof *to);
            memcpy(to, (const tsr_bf16 *)from->base + at, (size_t)width * sizeof(tsr_bf16));
            continue;
        }
        for (; col + VEC_N <= width; col += VEC_N) {
            vec_store(to + col, vec_load_as(from->dtype, from->base, at + col));
        }
        if (col < width) {
            vec_store(to + col, vec_load_as_part(from->dtype, from->base, at + col, width - col));
        }
    }
    memset(to, 0, (size_t)((padded_rows - from->rows) * (pad / pack)) * sizeof *to);
}

/* Sums [rows, pad] times factor into tensor `to`, which is laid out as that of `like`. */
VEC_INLINE void store_rows(const float *sums, int64_t pad, float factor, const head_rows *like,
                           void *to)
{
    const int64_t width = like->width;

    for (int64_t row = 0; row < like->rows; ++row, sums += pad) {
        const int64_t at = like->at + row * like->stride;
        int64_t col = 0;

        for (; col + VEC_N <= width; col += VEC_N) {
            vec_store_as(like->dtype, to, at + col, vec_load(sums + col) * factor);
        }
        if (col < width) {
            vec_store_as_part(like->dtype, to, at + col, vec_load(sums + col) * factor,
                              width - col);
        }
    }
}

/* rows[count, pad / 2] to columns[count / 2, pad]; nothing to do where both are the same. */
VEC_INLINE void pack_columns(int pack, const float *rows, int64_t count, int64_t pad,
                             float *columns)
{
    const tsr_bf16 *half = (const tsr_bf16 *)(const void *)rows;

    for (int64_t row = 0; row < count && pack == 2; row += 2, half += 2 * pad, columns += pad) {
        for (int64_t col = 0; col < pad; col += VEC_N) {
            vec_half low, high;

            memcpy(&low, half + col, sizeof low);
            memcpy(&high, half + pad + col, sizeof high);
            vec_store(columns + col, vec_pair_bf16(low, high));
        }
    }
}

/* A square of VEC_N x VEC_N: rows i and i + distance swap their halves, for halving distances. */
VEC_INLINE void transpose_square(const float *from, int64_t from_stride, float *to,
                                 int64_t to_stride)
{
    const vec_int lane = {VEC_IOTA};
    vec row[VEC_N];

#pragma GCC unroll 16
    for (int i = 0; i < VEC_N; ++i) {
        row[i] = vec_load(from + i * from_stride);
    }
#pragma GCC unroll 4
    for (int32_t distance = VEC_N / 2; distance > 0; distance /= 2) {
        const vec_int is_low = (lane & distance) == 0, other = lane ^ distance;
        const vec_int upper_half = (is_low & lane) | (~is_low & (other + VEC_N));
        const vec_int lower_half = (is_low & other) | (~is_low & (lane + VEC_N));

#pragma GCC unroll 16
        for (int i = 0; i < VEC_N; ++i) {
            if ((i & distance) == 0) {
                const vec upper = row[i], lower = row[i + distance];

                row[i] = __builtin_shuffle(upper, lower, upper_half);
                row[i + distance] = __builtin_shuffle(upper, lower, lower_half);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < VEC_N; ++i) {
        vec_store(to + i * to_stride, row[i]);
    }
}

/* from[rows, columns] to [columns, rows]; both multiples of VEC_N */
VEC_INLINE void transpose_words(const float *from, int64_t rows, int64_t columns, float *to)
{
    for (int64_t col = 0; col < columns; col += VEC_N) {
        for (int64_t row = 0; row < rows; row += VEC_N) {
            transpose_square(from + row * columns + col, columns, to + col * rows + row, rows);
        }
    }
}

/* Words or sums, `row` of them from row to row. */
typedef struct matrix {
    float *at;
    int64_t row;
} matrix;

/* c[SUM_ROWS, vectors] (+)= a[SUM_ROWS, words] b[words, vectors], all sums in registers. */
VEC_INLINE void strip_panel(int pack, int vectors, matrix a, matrix b, int64_t words, matrix c,
                            bool add)
{
    vec sum[SUM_ROWS][SUM_VECTORS];

#pragma GCC unroll 4
    for (int r = 0; r < SUM_ROWS; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            sum[r][v] = add ? vec_load(c.at + r * c.row + v * VEC_N) : (vec){0};
        }
    }
    for (int64_t i = 0; i < words; ++i, ++a.at, b.at += b.row) {
        vec line[SUM_VECTORS];

#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            line[v] = vec_load(b.at + v * VEC_N);
        }
#pragma GCC unroll 4
        for (int r = 0; r < SUM_ROWS; ++r) {
            const vec factor = vec_set(a.at[r * a.row]);

#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                sum[r][v] = pack == 2 ? MULTIPLY_ADD_PAIRS(sum[r][v], factor, line[v])
                                      : sum[r][v] + factor * line[v];
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < SUM_ROWS; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            vec_store(c.at + r * c.row + v * VEC_N, sum[r][v]);
        }
    }
}

/* c[STRIP, columns] (+)= a[STRIP, depth] b[depth, columns]; depth in elements, columns a multiple
 * of GRAIN. Between products_begin() and products_end(), which a thread calls. */
#if defined(__AMX_BF16__)
VEC_INLINE void strip_product(int pack, matrix a, matrix b, int64_t depth, matrix c,
                              int64_t columns, bool add)
{
    const int64_t steps = round_up(depth, AMX_BLOCK) / AMX_BLOCK;

    (void)pack;
    for (int64_t col = 0; col < columns; col += AMX_BLOCK) {
        if (add) {
            amx_load(c.at + col, c.row);
        } else {
            amx_zero();
        }
        amx_add((amx_factor){a.at, a.row, AMX_WORDS},
                (amx_factor){b.at + col, b.row, AMX_WORDS * b.row}, steps);
        amx_store(c.at + col, c.row);
    }
}

VEC_INLINE void products_begin(void)
{
    amx_begin();
}

VEC_INLINE void products_end(void)
{
    amx_end();
}
#else
VEC_INLINE void strip_product(int pack, matrix a, matrix b, int64_t depth, matrix c,
                              int64_t columns, bool add)
{
    const int64_t words = (depth + pack - 1) / pack;
    float *const end = c.at + columns;

    while (c.at + SUM_VECTORS * VEC_N <= end) {
        strip_panel(pack, SUM_VECTORS, a, b, words, c, add);
        b.at += SUM_VECTORS * VEC_N;
        c.at += SUM_VECTORS * VEC_N;
    }
    if (SUM_VECTORS > 2 && c.at + 2 * VEC_N <= end) {
        strip_panel(pack, 2, a, b, words, c, add);
        b.at += 2 * VEC_N;
        c.at += 2 * VEC_N;
    }
    if (c.at < end) {
        strip_panel(pack, 1, a, b, words, c, add);
    }
}

VEC_INLINE void products_begin(void)
{
}

VEC_INLINE void products_end(void)
{
}
#endif

#endif
