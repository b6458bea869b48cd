/* Attention backward: probabilities are computed anew, tile by tile, from the kept log-sum-exp.
 *
 * With p = exp(scale q k^T - lse), dp = dout v^T and d = rowsum(dout out):
 * ds = p (dp - d), dv = p^T dout, dk = scale ds^T q, dq = scale ds k.
 * Work is shared out by (sequence, key-value head): one thread sums dk and dv over the queries of
 * its group of heads, in their order, so no sum depends on the number of threads. */
#include "runtime/cpu/cpu_impl.h"
#include "runtime/cpu/simd/attention_tile.h"

#include <omp.h>

/* What is known of each query of a tile. */
typedef struct query_stats {
    float lse[TILE], d[TILE]; /* zero in padding, where q and dout are zero too */
} query_stats;

/* The p and ds of `pack` rows from their scores and dp, into scratch; zero beyond visible keys. */
VEC_INLINE void gradient_rows(int pack, const attention_scratch *s, const float *scores,
                              const float *dp, int64_t row, int64_t columns, int64_t visible,
                              float scale, const query_stats *stats)
{
    const vec_int lane = {VEC_IOTA};
    const int64_t at = row / pack * TILE;
    tsr_bf16 *ds_rows = (tsr_bf16 *)(void *)(s->ds_rows + row * (TILE / pack));

    for (int64_t col = 0; col < columns; col += VEC_N) {
        vec p[2], ds[2];

#pragma GCC unroll 2
        for (int r = 0; r < pack; ++r) {
            const vec score = vec_load(scores + r * TILE + col);

            p[r] = vec_exp(score * scale - stats->lse[row + r]);
            if (visible + r < col + VEC_N) {
                p[r] = vec_select(lane < (int32_t)(visible + r - col), p[r], (vec){0});
            }
            ds[r] = p[r] * (vec_load(dp + r * TILE + col) - stats->d[row + r]);
        }
        if (pack == 1) {
            vec_store(s->p_columns + at + col, p[0]);
            vec_store(s->ds_columns + at + col, ds[0]);
        } else {
            const vec_half low = vec_to_bf16(ds[0]), high = vec_to_bf16(ds[1]);

            vec_store(s->p_columns + at + col, vec_pair_bf16(vec_to_bf16(p[0]), vec_to_bf16(p[1])));
            vec_store(s->ds_columns + at + col, vec_pair_bf16(low, high));
            memcpy(ds_rows + col, &low, sizeof low);
            memcpy(ds_rows + TILE + col, &high, sizeof high);
        }
    }
}

/* p and ds of one tile of queries and one of keys; row r sees its first r + offset + 1 keys. */
VEC_INLINE void score_tile(int pack, const tsr_attention_args *args, const attention_scratch *s,
                           int64_t rows, int64_t key, int64_t offset, const query_stats *stats)
{
    const int64_t words = s->pad / pack; /* of a row */
    float scores[STRIP * TILE] __attribute__((aligned(64)));
    float dp[STRIP * TILE] __attribute__((aligned(64)));

    for (int64_t row = 0; row < rows; row += STRIP) {
        const int64_t columns = round_up(smaller(TILE, row + STRIP + offset), VEC_N);

        strip_product(pack, s->q_rows + row * words, words, 1, s->k_transposed + key * words, TILE,
                      args->head_dim, scores, TILE, columns, false);
        strip_product(pack, s->dout_rows + row * words, words, 1, s->v_transposed + key * words,
                      TILE, args->head_dim, dp, TILE, columns, false);
        for (int64_t r = 0; r < STRIP; r += pack) {
            gradient_rows(pack, s, scores + r * TILE, dp + r * TILE, row + r, columns,
                          row + r + offset + 1, args->scale, stats);
        }
    }
}

/* Add the tile's part of dv, dk and (in s->out) dq. */
VEC_INLINE void add_tile(int pack, const attention_scratch *s, int64_t rows, int64_t key,
                         int64_t offset)
{
    const int64_t pad = s->pad, width = s->width;

    for (int64_t col = 0; col < TILE; col += STRIP) {
        const int64_t first = larger(0, col - offset); /* query that sees key `col` */
        const int64_t at = first / pack * TILE + col, below = first / pack * pad;

        if (first < rows) {
            strip_product(pack, s->p_columns + at, 1, TILE, s->dout_columns + below, pad,
                          rows - first, s->dv + (key + col) * pad, pad, width, true);
            strip_product(pack, s->ds_columns + at, 1, TILE, s->q_columns + below, pad,
                          rows - first, s->dk + (key + col) * pad, pad, width, true);
        }
    }
    for (int64_t row = 0; row < rows; row += STRIP) {
        strip_product(pack, s->ds_rows + row * (TILE / pack), TILE / pack, 1,
                      s->k_columns + key / pack * pad, pad, smaller(TILE, row + STRIP + offset),
                      s->out + row * pad, pad, width, true);
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

VEC_INLINE void backward_tile(int pack, const tsr_attention_args *args, const attention_scratch *s,
                              int64_t batch, int64_t head, int64_t first)
{
    const int64_t rows = smaller(TILE, args->q_len - first), padded = round_up(rows, STRIP);
    const row_source q = {args->q,        args->dtype, query_at(args, batch, first, head),
                          args->q_stride, rows,        args->head_dim};
    const row_source dout = {args->dout,       args->dtype, out_at(args, batch, first, head),
                             args->out_stride, rows,        args->head_dim};
    query_stats stats = {{0}, {0}};

    load_rows(pack, &q, padded, s->pad, s->q_rows);
    pack_columns(pack, s->q_rows, padded, s->pad, s->q_columns);
    load_rows(pack, &dout, padded, s->pad, s->dout_rows);
    pack_columns(pack, s->dout_rows, padded, s->pad, s->dout_columns);
    for (int64_t row = 0; row < rows; ++row) {
        stats.d[row] = row_dot(args->dtype, args->dout, args->out, dout.at + row * dout.stride,
                               args->head_dim);
        stats.lse[row] = args->lse[(batch * args->heads + head) * args->q_len + first + row];
    }
    memset(s->out, 0, (size_t)(padded * s->pad) * sizeof *s->out);
    for (int64_t key = 0; key < first + rows; key += TILE) {
        score_tile(pack, args, s, padded, key, first - key, &stats);
        add_tile(pack, s, padded, key, first - key);
    }
    store_rows(args->dtype, s->out, s->pad, rows, args->head_dim, args->scale, args->dq, q.at,
               q.stride);
}

/* Bring the rows of one head of k or v into scratch; `rows` is free memory if pack is 2. */
VEC_INLINE void load_keys(int pack, const row_source *from, const attention_scratch *s, float *rows,
                          float *columns, float *transposed)
{
    float *to = pack == 1 ? columns : rows;

    load_rows(pack, from, s->keys, s->pad, to);
    transpose_tiles(to, s->keys, s->pad / pack, transposed);
    pack_columns(pack, to, s->keys, s->pad, columns);
}

VEC_INLINE void backward_head(int pack, const tsr_attention_args *args, float *base, int64_t batch,
                              int64_t kv_head)
{
    const attention_scratch s = scratch_of_thread(args, pack, base);
    const int64_t group = args->heads / args->kv_heads, at = key_at(args, batch, 0, kv_head);
    const size_t bytes = (size_t)(s.keys * s.pad) * sizeof(float);
    row_source keys = {args->k, args->dtype, at, args->kv_stride, args->kv_len, args->head_dim};

    load_keys(pack, &keys, &s, s.dk, s.k_columns, s.k_transposed);
    keys.base = args->v;
    load_keys(pack, &keys, &s, s.dk, s.v_columns, s.v_transposed);
    memset(s.dk, 0, bytes);
    memset(s.dv, 0, bytes);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t first = 0; first < args->q_len; first += TILE) {
            backward_tile(pack, args, &s, batch, head, first);
        }
    }
    store_rows(args->dtype, s.dk, s.pad, args->kv_len, args->head_dim, args->scale, args->dk, at,
               args->kv_stride);
    store_rows(args->dtype, s.dv, s.pad, args->kv_len, args->head_dim, 1.0f, args->dv, at,
               args->kv_stride);
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
