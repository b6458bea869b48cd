/* Attention backward: probabilities are computed anew, tile by tile, from the kept log-sum-exp.
 *
 * With p = exp(scale q k^T - lse), dp = dout v^T and d = rowsum(dout out):
 * ds = p (dp - d), dv = p^T dout, dk = scale ds^T q, dq = scale ds k.
 * Keys are the rows of p^T and ds^T here: these are left factors as they are computed, and dq is
 * summed as its transpose, k^T ds^T.
 * Work is shared out by (sequence, key-value head): one thread sums dk and dv over the queries of
 * its group of heads, in their order, so no sum depends on the number of threads. */
#include "runtime/cpu/cpu_impl.h"
#include "runtime/cpu/simd/attention_tile.h"

#include <omp.h>

/* What is known of each query of a tile. */
typedef struct query_stats {
    float scale;              /* of all scores */
    float lse[TILE], d[TILE]; /* zero in padding, where q and dout are zero too */
} query_stats;

/* The p and ds of `pack` keys from their scores and dp, into scratch, for queries from column
 * `first` on; key `row` is seen from column `seen` on. Left of `first`, ds_columns are cleared. */
VEC_INLINE void gradient_rows(int pack, const attention_scratch *s, const float *scores,
                              const float *dp, int64_t row, int64_t first, int64_t seen,
                              int64_t columns, const query_stats *stats)
{
    const vec_int lane = {VEC_IOTA};
    float *p_rows = s->p_rows + row * (TILE / pack), *ds_rows = s->ds_rows + row * (TILE / pack);
    float *ds_columns = s->ds_columns + row / pack * TILE;

    memset(ds_columns, 0, (size_t)first * sizeof *ds_columns);
    for (int64_t col = first; col < columns; col += VEC_N) {
        const vec lse = vec_load(stats->lse + col), d = vec_load(stats->d + col);
        vec ds[2];

#pragma GCC unroll 2
        for (int r = 0; r < pack; ++r) {
            vec p = vec_exp(vec_load(scores + r * TILE + col) * stats->scale - lse);

            if (col < seen + r) {
                p = vec_select(lane >= (int32_t)(seen + r - col), p, (vec){0});
            }
            ds[r] = p * (vec_load(dp + r * TILE + col) - d);
            vec_store_as(pack == 1 ? TSR_F32 : TSR_BF16, p_rows + r * (TILE / pack), col, p);
            vec_store_as(pack == 1 ? TSR_F32 : TSR_BF16, ds_rows + r * (TILE / pack), col, ds[r]);
        }
        if (pack == 2) {
            vec_store(ds_columns + col, vec_pair_bf16(vec_to_bf16(ds[0]), vec_to_bf16(ds[1])));
        }
    }
}

/* A tile of `columns` queries, of which column c sees the keys of this tile up to c + offset. */
typedef struct tile_pair {
    int64_t key, offset, columns;
} tile_pair;

/* A strip of keys: its p and ds, and its part of dv and dk. */
VEC_INLINE void key_strip(int pack, const attention_scratch *s, const tile_pair *t, int64_t row,
                          const query_stats *stats)
{
    const int64_t pad = s->pad, words = pad / pack; /* of a row */
    const int64_t seen = row - t->offset, first = larger(0, seen) / GRAIN * GRAIN;
    const int64_t wide = t->columns - first, at = row * (TILE / pack) + first / pack;
    const matrix k = {s->k_rows + (t->key + row) * words, words};
    const matrix v = {s->v_rows + (t->key + row) * words, words};
    const matrix q = {s->q_columns + first / pack * pad, pad};
    const matrix dout = {s->dout_columns + first / pack * pad, pad};
    const int64_t sums = (t->key + row) * pad;
    float scores[STRIP * TILE] __attribute__((aligned(64)));
    float dp[STRIP * TILE] __attribute__((aligned(64)));

    strip_product(pack, k, (matrix){s->q_transposed + first, TILE}, s->head_dim,
                  (matrix){scores + first, TILE}, wide, false);
    strip_product(pack, v, (matrix){s->dout_transposed + first, TILE}, s->head_dim,
                  (matrix){dp + first, TILE}, wide, false);
    for (int64_t r = 0; r < STRIP; r += pack) {
        gradient_rows(pack, s, scores + r * TILE, dp + r * TILE, row + r, first, seen + r,
                      t->columns, stats);
    }
    strip_product(pack, (matrix){s->p_rows + at, TILE / pack}, dout, wide,
                  (matrix){s->dv + sums, pad}, pad, true);
    strip_product(pack, (matrix){s->ds_rows + at, TILE / pack}, q, wide,
                  (matrix){s->dk + sums, pad}, pad, true);
}

/* Add a pair's part of dv, dk and dq. */
VEC_INLINE void add_pair(int pack, const attention_scratch *s, const tile_pair *t,
                         const query_stats *stats)
{
    const int64_t seen = round_up(least(TILE, t->columns + t->offset), STRIP); /* keys */

    for (int64_t row = 0; row < seen; row += STRIP) {
        key_strip(pack, s, t, row, stats);
    }
    for (int64_t dim = 0; dim < s->pad; dim += STRIP) {
        const matrix k = {s->k_across + (dim * s->keys + t->key) / pack, s->keys / pack};

        strip_product(pack, k, (matrix){s->ds_columns, TILE}, seen,
                      (matrix){s->dq_across + dim * TILE, TILE}, t->columns, true);
    }
}

/* sum of a b over a row of two tensors */
VEC_INLINE float row_dot(tsr_dtype dtype, const void *a, const void *b, int64_t at, int64_t width)
{
    vec sum = {0};
    int64_t col = 0;

    for (; col + VEC_N <= width; col += VEC_N) {
        sum += vec_load_as(dtype, a, at + col) * vec_load_as(dtype, b, at + col);
    }
    if (col < width) {
        sum += vec_load_as_part(dtype, a, at + col, width - col) *
               vec_load_as_part(dtype, b, at + col, width - col);
    }
    return vec_sum(sum);
}

/* Rows of queries into scratch: packed by columns for dv and dk, transposed for the scores. */
VEC_INLINE void load_queries(int pack, const head_rows *from, int64_t columns,
                             const attention_scratch *s, float *rows, float *by_columns,
                             float *transposed)
{
    load_rows(pack, from, TILE, s->pad, rows);
    pack_columns(pack, rows, columns, s->pad, by_columns);
    transpose_words(rows, TILE, s->pad / pack, transposed);
}

VEC_INLINE void backward_tile(int pack, const tsr_attention_args *args, const attention_scratch *s,
                              int64_t batch, int64_t head, int64_t first)
{
    const int64_t rows = least(TILE, args->q_len - first), columns = round_up(rows, GRAIN);
    const head_rows q = query_rows(args, args->q, batch, head, first, rows);
    const head_rows dout = out_rows(args, args->dout, batch, head, first, rows);
    query_stats stats = {.scale = args->scale};

    load_queries(pack, &q, columns, s, s->q_rows, s->q_columns, s->q_transposed);
    load_queries(pack, &dout, columns, s, s->dout_rows, s->dout_columns, s->dout_transposed);
    for (int64_t row = 0; row < rows; ++row) {
        stats.d[row] = row_dot(args->dtype, args->dout, args->out, dout.at + row * dout.stride,
                               args->head_dim);
        stats.lse[row] = args->lse[(batch * args->heads + head) * args->q_len + first + row];
    }
    memset(s->dq_across, 0, (size_t)(s->pad * TILE) * sizeof *s->dq_across);
    for (int64_t key = 0; key < first + rows; key += TILE) {
        add_pair(pack, s, &(tile_pair){key, first - key, columns}, &stats);
    }
    transpose_words(s->dq_across, s->pad, TILE, s->out);
    store_rows(s->out, s->pad, args->scale, &q, args->dq);
}

VEC_INLINE void backward_head(int pack, const tsr_attention_args *args, float *base, int64_t batch,
                              int64_t kv_head)
{
    const attention_scratch s = scratch_of_thread(args, pack, base);
    const int64_t group = args->heads / args->kv_heads;
    const size_t bytes = (size_t)(s.keys * s.pad) * sizeof(float);
    const head_rows k = key_rows(args, args->k, batch, kv_head);
    const head_rows v = key_rows(args, args->v, batch, kv_head);

    load_rows(pack, &k, s.keys, s.pad, s.k_rows);
    load_rows(pack, &v, s.keys, s.pad, s.v_rows);
    pack_columns(pack, s.k_rows, s.keys, s.pad, s.k_columns);
    transpose_words(s.k_columns, s.keys / pack, s.pad, s.k_across);
    memset(s.dk, 0, bytes);
    memset(s.dv, 0, bytes);
    products_begin();
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t first = 0; first < args->q_len; first += TILE) {
            backward_tile(pack, args, &s, batch, head, first);
        }
    }
    products_end();
    store_rows(s.dk, s.pad, args->scale, &k, args->dk);
    store_rows(s.dv, s.pad, 1.0f, &v, args->dv);
}

tsr_status TSR_SIMD(attention_backward)(tsr_device *device, const tsr_attention_args *args,
                                        tsr_stream *stream)
{
    const tsr_cpu_device *cpu = (const tsr_cpu_device *)device;
    const size_t thread_bytes = scratch_bytes(args);

    (void)stream;
    TSR_TRY(TSR_SIMD(attention_reserve)(device, args));
#pragma omp parallel for num_threads(device->threads) schedule(dynamic)
    for (int64_t item = 0; item < args->batch * args->kv_heads; ++item) {
        char *base = (char *)cpu->scratch + (size_t)omp_get_thread_num() * thread_bytes;
        const int64_t batch = item / args->kv_heads, kv_head = item % args->kv_heads;

        if (pack_of(args) == 1) {
            backward_head(1, args, (float *)(void *)base, batch, kv_head);
        } else {
            backward_head(BF16_PACK, args, (float *)(void *)base, batch, kv_head);
        }
    }
    return TSR_OK;
}
