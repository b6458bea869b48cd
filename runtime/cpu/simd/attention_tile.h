/* What both directions of attention share: f32 tiles in scratch and products of their strips.
 *
 * A tile is TILE queries or keys. Tiles of queries are taken a strip of STRIP rows at a time; the
 * keys of one key-value head are converted once and kept, as they are and transposed. Rows of a
 * head are padded with zeros to whole vectors (`pad` elements), tiles with zero rows. */
#ifndef TSR_RUNTIME_CPU_ATTENTION_TILE_H
#define TSR_RUNTIME_CPU_ATTENTION_TILE_H

#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

enum {
    TILE = 64,
    STRIP = 4,
    STRIP_VECTORS = VEC_N == 16 ? 4 : 2 /* STRIP x this many sums fit the registers */
};

/* One thread's scratch; sizes in floats, all multiples of 16. */
typedef struct attention_scratch {
    float *k, *v, *dk, *dv; /* [keys, pad] */
    float *k_t, *v_t;       /* [keys / TILE][pad, TILE] */
    float *q, *dout, *out;  /* [TILE, pad] */
    float *p, *ds;          /* [TILE, TILE] */
    int64_t pad, keys;      /* rounded up to VEC_N and to TILE */
} attention_scratch;

VEC_INLINE int64_t round_up(int64_t value, int64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

VEC_INLINE int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

VEC_INLINE int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Bytes that one thread needs for these sizes, in either direction. */
VEC_INLINE size_t scratch_bytes(const tsr_attention_args *args)
{
    const int64_t pad = round_up(args->head_dim, VEC_N), keys = round_up(args->kv_len, TILE);

    return (size_t)(6 * keys * pad + 3 * TILE * pad + 2 * TILE * TILE) * sizeof(float);
}

VEC_INLINE attention_scratch scratch_of_thread(const tsr_attention_args *args, float *base)
{
    attention_scratch s = {.pad = round_up(args->head_dim, VEC_N),
                           .keys = round_up(args->kv_len, TILE)};

    s.k = base;
    s.v = s.k + s.keys * s.pad;
    s.dk = s.v + s.keys * s.pad;
    s.dv = s.dk + s.keys * s.pad;
    s.k_t = s.dv + s.keys * s.pad;
    s.v_t = s.k_t + s.keys * s.pad;
    s.q = s.v_t + s.keys * s.pad;
    s.dout = s.q + TILE * s.pad;
    s.out = s.dout + TILE * s.pad;
    s.p = s.out + TILE * s.pad;
    s.ds = s.p + TILE * TILE;
    return s;
}

/* Where head `head` of token `token` starts in tensors laid out as q, out and k. */
VEC_INLINE int64_t query_at(const tsr_attention_args *args, int64_t batch, int64_t token,
                            int64_t head)
{
    return batch * args->q_batch_stride + token * args->q_stride + head * args->head_dim;
}

VEC_INLINE int64_t out_at(const tsr_attention_args *args, int64_t batch, int64_t token,
                          int64_t head)
{
    return batch * args->out_batch_stride + token * args->out_stride + head * args->head_dim;
}

VEC_INLINE int64_t key_at(const tsr_attention_args *args, int64_t batch, int64_t token,
                          int64_t kv_head)
{
    return batch * args->kv_batch_stride + token * args->kv_stride + kv_head * args->head_dim;
}

/* to[rows, pad] = factor * the rows at `at`, stride apart; zeros up to padded_rows. */
VEC_INLINE void load_rows(tsr_dtype dtype, const void *from, int64_t at, int64_t stride,
                          int64_t rows, int64_t width, float factor, int64_t padded_rows,
                          int64_t pad, float *to)
{
    for (int64_t row = 0; row < rows; ++row, at += stride, to += pad) {
        int64_t col = 0;

        for (; col + VEC_N <= width; col += VEC_N) {
            vec_store(to + col, vec_load_as(dtype, from, at + col) * factor);
        }
        if (col < width) {
            vec_store(to + col, vec_load_as_part(dtype, from, at + col, width - col) * factor);
        }
    }
    memset(to, 0, (size_t)((padded_rows - rows) * pad) * sizeof *to);
}

VEC_INLINE void store_rows(tsr_dtype dtype, const float *from, int64_t pad, int64_t rows,
                           int64_t width, float factor, void *to, int64_t at, int64_t stride)
{
    for (int64_t row = 0; row < rows; ++row, at += stride, from += pad) {
        int64_t col = 0;

        for (; col + VEC_N <= width; col += VEC_N) {
            vec_store_as(dtype, to, at + col, vec_load(from + col) * factor);
        }
        if (col < width) {
            vec_store_as_part(dtype, to, at + col, vec_load(from + col) * factor, width - col);
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

/* [keys, pad] to [keys / TILE][pad, TILE] */
VEC_INLINE void transpose_tiles(const float *from, int64_t keys, int64_t pad, float *to)
{
    for (int64_t tile = 0; tile < keys; tile += TILE) {
        for (int64_t col = 0; col < pad; col += VEC_N) {
            for (int64_t key = 0; key < TILE; key += VEC_N) {
                transpose_square(from + (tile + key) * pad + col, pad,
                                 to + tile * pad + col * TILE + key, TILE);
            }
        }
    }
}

/* c[STRIP, vectors] (+)= a[STRIP, depth] b[depth, vectors], all sums in registers. */
VEC_INLINE void strip_panel(int vectors, const float *a, int64_t a_row, int64_t a_col,
                            const float *b, int64_t b_row, int64_t depth, float *c, int64_t c_row,
                            bool add)
{
    vec sum[STRIP][STRIP_VECTORS];

#pragma GCC unroll 4
    for (int r = 0; r < STRIP; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            sum[r][v] = add ? vec_load(c + r * c_row + v * VEC_N) : (vec){0};
        }
    }
    for (int64_t i = 0; i < depth; ++i, a += a_col, b += b_row) {
        vec line[STRIP_VECTORS];

#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            line[v] = vec_load(b + v * VEC_N);
        }
#pragma GCC unroll 4
        for (int r = 0; r < STRIP; ++r) {
            const vec factor = vec_set(a[r * a_row]);

#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) {
                sum[r][v] += factor * line[v];
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < STRIP; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            vec_store(c + r * c_row + v * VEC_N, sum[r][v]);
        }
    }
}

/* The same for any multiple of VEC_N columns. Element (r, i) of a is a[r * a_row + i * a_col], so
 * that it may be read transposed. */
VEC_INLINE void strip_product(const float *a, int64_t a_row, int64_t a_col, const float *b,
                              int64_t b_row, int64_t depth, float *c, int64_t c_row,
                              int64_t columns, bool add)
{
    int64_t col = 0;

    for (; col + STRIP_VECTORS * VEC_N <= columns; col += STRIP_VECTORS * VEC_N) {
        strip_panel(STRIP_VECTORS, a, a_row, a_col, b + col, b_row, depth, c + col, c_row, add);
    }
    if (STRIP_VECTORS > 2 && col + 2 * VEC_N <= columns) {
        strip_panel(2, a, a_row, a_col, b + col, b_row, depth, c + col, c_row, add);
        col += 2 * VEC_N;
    }
    if (col < columns) {
        strip_panel(1, a, a_row, a_col, b + col, b_row, depth, c + col, c_row, add);
    }
}

#endif
