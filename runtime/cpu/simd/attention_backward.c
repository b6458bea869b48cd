/* Attention backward: probabilities are computed anew, tile by tile, from the kept log-sum-exp.
 *
 * With s = scale q k^T, p = exp(s - lse), dp = dout v^T and d = rowsum(dout out):
 * ds = p (dp - d), dv = p^T dout, dk = ds^T (scale q), dq = scale ds k.
 * Work is shared out by (sequence, key-value head): one thread sums dk and dv over the queries of
 * its group of heads, in their order, so no sum depends on the number of threads. */
#include "runtime/cpu/cpu_impl.h"
#include "runtime/cpu/simd/attention_tile.h"

#include <omp.h>

/* What is known of each query of a tile. */
typedef struct query_stats {
    float lse[TILE], d[TILE]; /* zero in padding, where q and dout are zero too */
} query_stats;

/* Scores become p, dp becomes ds; both are zero beyond the visible keys. */
VEC_INLINE void gradient_row(float *p, float *ds, int64_t columns, int64_t visible, float lse,
                             float d)
{
    const vec_int lane = {VEC_IOTA};

    for (int64_t col = 0; col < columns; col += VEC_N) {
        vec probability = vec_exp(vec_load(p + col) - lse);

        if (visible < col + VEC_N) {
            const vec_int is_seen = lane < (int32_t)(visible - col);

            probability = vec_select(is_seen, probability, (vec){0});
        }
        vec_store(p + col, probability);
        vec_store(ds + col, probability * (vec_load(ds + col) - d));
    }
}

/* p and ds of one tile of queries and one of keys; row r sees its first r + offset + 1 keys. */
static void score_tile(const tsr_attention_args *args, const attention_scratch *s, int64_t rows,
                       int64_t key, int64_t offset, const query_stats *stats)
{
    const int64_t pad = s->pad;

    for (int64_t row = 0; row < rows; row += STRIP) {
        const int64_t columns = round_up(smaller(TILE, row + STRIP + offset), VEC_N);
        float *p = s->p + row * TILE, *ds = s->ds + row * TILE;

        strip_product(s->q + row * pad, pad, 1, s->k_t + key * pad, TILE, args->head_dim, p, TILE,
                      columns, false);
        strip_product(s->dout + row * pad, pad, 1, s->v_t + key * pad, TILE, args->head_dim, ds,
                      TILE, columns, false);
        for (int64_t r = 0; r < STRIP; ++r) {
            gradient_row(p + r * TILE, ds + r * TILE, columns, row + r + offset + 1,
                         stats->lse[row + r], stats->d[row + r]);
        }
    }
}

/* Add the tile's part of dv, dk and (in s->out) dq. */
static void add_tile(const attention_scratch *s, int64_t rows, int64_t key, int64_t offset)
{
    const int64_t pad = s->pad;

    for (int64_t col = 0; col < TILE; col += STRIP) {
        const int64_t first = larger(0, col - offset); /* query that sees key `col` */
        const int64_t at = first * TILE + col;

        if (first < rows) {
            strip_product(s->p + at, 1, TILE, s->dout + first * pad, pad, rows - first,
                          s->dv + (key + col) * pad, pad, pad, true);
            strip_product(s->ds + at, 1, TILE, s->q + first * pad, pad, rows - first,
                          s->dk + (key + col) * pad, pad, pad, true);
        }
    }
    for (int64_t row = 0; row < rows; row += STRIP) {
        strip_product(s->ds + row * TILE, TILE, 1, s->k + key * pad, pad,
                      smaller(TILE, row + STRIP + offset), s->out + row * pad, pad, pad, true);
    }
}

static void backward_tile(const tsr_attention_args *args, const attention_scratch *s, int64_t batch,
                          int64_t head, int64_t first)
{
    const int64_t rows = smaller(TILE, args->q_len - first), padded = round_up(rows, STRIP);
    const int64_t at_q = query_at(args, batch, first, head), pad = s->pad;
    const int64_t at_out = out_at(args, batch, first, head);
    query_stats stats = {{0}, {0}};

    load_rows(args->dtype, args->q, at_q, args->q_stride, rows, args->head_dim, args->scale, padded,
              pad, s->q);
    load_rows(args->dtype, args->dout, at_out, args->out_stride, rows, args->head_dim, 1.0f, padded,
              pad, s->dout);
    load_rows(args->dtype, args->out, at_out, args->out_stride, rows, args->head_dim, 1.0f, padded,
              pad, s->out);
    for (int64_t row = 0; row < rows; ++row) {
        vec d = {0};

        for (int64_t col = 0; col < pad; col += VEC_N) {
            d += vec_load(s->dout + row * pad + col) * vec_load(s->out + row * pad + col);
        }
        stats.d[row] = vec_sum(d);
        stats.lse[row] = args->lse[(batch * args->heads + head) * args->q_len + first + row];
    }
    memset(s->out, 0, (size_t)(padded * pad) * sizeof *s->out);
    for (int64_t key = 0; key < first + rows; key += TILE) {
        score_tile(args, s, padded, key, first - key, &stats);
        add_tile(s, padded, key, first - key);
    }
    store_rows(args->dtype, s->out, pad, rows, args->head_dim, args->scale, args->dq, at_q,
               args->q_stride);
}

static void backward_head(const tsr_attention_args *args, const attention_scratch *s, int64_t batch,
                          int64_t kv_head)
{
    const int64_t group = args->heads / args->kv_heads, at = key_at(args, batch, 0, kv_head);
    const size_t bytes = (size_t)(s->keys * s->pad) * sizeof(float);

    load_rows(args->dtype, args->k, at, args->kv_stride, args->kv_len, args->head_dim, 1.0f,
              s->keys, s->pad, s->k);
    load_rows(args->dtype, args->v, at, args->kv_stride, args->kv_len, args->head_dim, 1.0f,
              s->keys, s->pad, s->v);
    transpose_tiles(s->k, s->keys, s->pad, s->k_t);
    transpose_tiles(s->v, s->keys, s->pad, s->v_t);
    memset(s->dk, 0, bytes);
    memset(s->dv, 0, bytes);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t first = 0; first < args->q_len; first += TILE) {
            backward_tile(args, s, batch, head, first);
        }
    }
    store_rows(args->dtype, s->dk, s->pad, args->kv_len, args->head_dim, 1.0f, args->dk, at,
               args->kv_stride);
    store_rows(args->dtype, s->dv, s->pad, args->kv_len, args->head_dim, 1.0f, args->dv, at,
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
        const attention_scratch s = scratch_of_thread(args, (float *)(void *)base);

        backward_head(args, &s, item / args->kv_heads, item % args->kv_heads);
    }
    return TSR_OK;
}
