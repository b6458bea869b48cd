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
    float scale;              /* of all scores */
    float lse[TILE], d[TILE]; /* zero in padding, where q and dout are zero too */
} query_stats;

/* The p and ds of `pack` rows from their scores and dp, into scratch; zero beyond visible keys. */
VEC_INLINE void gradient_rows(int pack, const attention_scratch *s, const float *scores,
                              const float *dp, int64_t row, int64_t offset,
                              const query_stats *stats)
{
    const vec_int lane = {VEC_IOTA};
    const int64_t visible = row + offset + 1, at = row / pack * TILE;
    const int64_t columns = round_up(smaller(TILE, row / STRIP * STRIP + STRIP + offset), VEC_N);
    tsr_bf16 *ds_rows = (tsr_bf16 *)(void *)(s->ds_rows + row * (TILE / pack));

    for (int64_t col = 0; col < columns; col += VEC_N) {
        vec p[2], ds[2];

#pragma GCC unroll 2
        for (int r = 0; r < pack; ++r) {
            const vec score = vec_load(scores + r * TILE + col);

            p[r] = vec_exp(score * stats->scale - stats->lse[row + r]);
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
VEC_INLINE void score_tile(int pack, const attention_scratch *s, int64_t rows, int64_t key,
                           int64_t offset, const query_stats *stats)
{
    const int64_t words = s->pad / pack; /* of a row */
    const matrix k = {s->k_transposed + key * words, TILE};
    const matrix v = {s->v_transposed + key * words, TILE};
    float scores[STRIP * TILE] __attribute__((aligned(64)));
    float dp[STRIP * TILE] __attribute__((aligned(64)));

    for (int64_t row = 0; row < rows; row += STRIP) {
        const int64_t columns = round_up(smaller(TILE, row + STRIP + offset), VEC_N);
        const left_factor q = {s->q_rows + row * words, words, 1};
        const left_factor dout = {s->dout_rows + row * words, words, 1};

        strip_product(pack, q, k, s->head_dim, (matrix){scores, TILE}, columns, false);
        strip_product(pack, dout, v, s->head_dim, (matrix){dp, TILE}, columns, false);
        for (int64_t r = 0; r < STRIP; r += pack) {
            gradient_rows(pack, s, scores + r * TILE, dp + r * TILE, row + r, offset, stats);
        }
    }
}

/* Add the tile's part of dv, dk and (in s->out) dq. */
VEC_INLINE void add_tile(int pack, const attention_scratch *s, int64_t rows, int64_t key,
                         int64_t offset)
{
    const int64_t pad = s->pad;
    const matrix k = {s->k_columns + key / pack * pad, pad};

    for (int64_t col = 0; col < TILE; col += STRIP) {
        const int64_t first = larger(0, col - offset); /* query that sees key `col` */
        const int64_t at = first / pack * TILE + col, below = first / pack * pad;
        const left_factor p = {s->p_columns + at, 1, TILE}, ds = {s->ds_columns + at, 1, TILE};
        const matrix dout = {s->dout_columns + below, pad}, q = {s->q_columns + below, pad};

        if (first < rows) {
            strip_product(pack, p, dout, rows - first, (matrix){s->dv + (key + col) * pad, pad},
                          s->width, true);
            strip_product(pack, ds, q, rows - first, (matrix){s->dk + (key + col) * pad, pad},
                          s->width, true);
        }
    }
    for (int64_t row = 0; row < rows; row += STRIP) {
        const left_factor ds = {s->ds_rows + row * (TILE / pack), TILE / pack, 1};

        strip_product(pack, ds, k, smaller(TILE, row + STRIP + offset),
                      (matrix){s->out + row * pad, pad}, s->width, true);
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
    const head_rows q = query_rows(args, args->q, batch, head, first, rows);
    const head_rows dout = out_rows(args, args->dout, batch, head, first, rows);
    query_stats stats = {.scale = args->scale};

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
        score_tile(pack, s, padded, key, first - key, &stats);
        add_tile(pack, s, padded, key, first - key);
    }
    store_rows(s->out, s->pad, args->scale, &q, args->dq);
}

/* Bring the rows of one head of k or v into scratch; `rows` is free memory if pack is 2. */
VEC_INLINE void load_keys(int pack, const head_rows *from, const attention_scratch *s, float *rows,
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
    const int64_t group = args->heads / args->kv_heads;
    const size_t bytes = (size_t)(s.keys * s.pad) * sizeof(float);
    const head_rows k = key_rows(args, args->k, batch, kv_head);
    const head_rows v = key_rows(args, args->v, batch, kv_head);

    load_keys(pack, &k, &s, s.dk, s.k_columns, s.k_transposed);
    load_keys(pack, &v, &s, s.dk, s.v_columns, s.v_transposed);
    memset(s.dk, 0, bytes);
    memset(s.dv, 0, bytes);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t first = 0; first < args->q_len; first += TILE) {
            backward_tile(pack, args, &s, batch, head, first);
        }
    }
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
