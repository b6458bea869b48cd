/* Attention forward: online softmax over tiles of keys, as in FlashAttention.
 *
 * Work is shared out by (sequence, key-value head) and, where these are fewer than threads, also by
 * tile of queries. Every query is handled by one thread in one order. Tiles above the diagonal are
 * never visited; strips on it stop at the last key that they see. */
#include "runtime/cpu/cpu_impl.h"
#include "runtime/cpu/simd/attention_tile.h"

#include <omp.h>

/* Running softmax of the queries of a tile. */
typedef struct softmax_state {
    float top[TILE];        /* largest score so far */
    float sum[TILE][VEC_N]; /* of exp(score - top), lane by lane */
} softmax_state;

/* scores[columns] become probabilities times exp(lse - top); out is rescaled when top rises. */
VEC_INLINE void softmax_row(float *scores, int64_t columns, int64_t visible, float *top_inout,
                            float *lane_sums, float *out, int64_t pad)
{
    const vec_int lane = {VEC_IOTA};
    vec highest = vec_set(-INFINITY), sum = vec_load(lane_sums);

    if (visible <= 0) {
        memset(scores, 0, (size_t)columns * sizeof *scores);
        return;
    }
    if (visible < columns) {
        for (int64_t col = 0; col < columns; col += VEC_N) {
            const vec_int is_seen = lane < (int32_t)(visible - col);

            vec_store(scores + col,
                      vec_select(is_seen, vec_load(scores + col), vec_set(-INFINITY)));
        }
    }
    for (int64_t col = 0; col < columns; col += VEC_N) {
        highest = vec_max(highest, vec_load(scores + col));
    }
    const float before = *top_inout, now = vec_max_lane(highest);
    const float top = now > before ? now : before;
    if (now > before) {
        const vec factor = vec_exp(vec_set(before - top));

        sum *= factor;
        for (int64_t col = 0; col < pad; col += VEC_N) {
            vec_store(out + col, vec_load(out + col) * factor);
        }
        *top_inout = top;
    }
    for (int64_t col = 0; col < columns; col += VEC_N) {
        const vec p = vec_exp(vec_load(scores + col) - top);

        vec_store(scores + col, p);
        sum += p;
    }
    vec_store(lane_sums, sum);
}

/* One strip against one tile of keys; row r of the tile sees its first r + offset + 1 keys. */
static void forward_strip(const tsr_attention_args *args, const attention_scratch *s, int64_t first,
                          int64_t key, int64_t offset, softmax_state *state)
{
    const int64_t pad = s->pad, seen = smaller(TILE, first + STRIP + offset);
    const int64_t columns = round_up(seen, VEC_N);
    float *out = s->out + first * pad;
    float p[STRIP * TILE] __attribute__((aligned(64)));

    if (seen <= 0) {
        return;
    }
    strip_product(s->q + first * pad, pad, 1, s->k_t + key * pad, TILE, args->head_dim, p, TILE,
                  columns, false);
    for (int64_t r = 0; r < STRIP; ++r) {
        softmax_row(p + r * TILE, columns, first + r + offset + 1, &state->top[first + r],
                    state->sum[first + r], out + r * pad, pad);
    }
    strip_product(p, TILE, 1, s->v + key * pad, pad, seen, out, pad, pad, true);
}

static void forward_tile(const tsr_attention_args *args, const attention_scratch *s, int64_t batch,
                         int64_t head, int64_t first)
{
    const int64_t rows = smaller(TILE, args->q_len - first), padded = round_up(rows, STRIP);
    const int64_t position = args->kv_len - args->q_len + first; /* of the first query */
    softmax_state state;

    load_rows(args->dtype, args->q, query_at(args, batch, first, head), args->q_stride, rows,
              args->head_dim, args->scale, padded, s->pad, s->q);
    memset(s->out, 0, (size_t)(padded * s->pad) * sizeof *s->out);
    memset(state.sum, 0, sizeof state.sum);
    for (int64_t row = 0; row < padded; ++row) {
        state.top[row] = -INFINITY;
    }
    for (int64_t key = 0; key < position + rows; key += TILE) {
        for (int64_t row = 0; row < padded; row += STRIP) {
            forward_strip(args, s, row, key, position - key, &state);
        }
    }
    for (int64_t row = 0; row < rows; ++row) {
        const float sum = vec_sum(vec_load(state.sum[row]));

        store_rows(args->dtype, s->out + row * s->pad, s->pad, 1, args->head_dim, 1.0f / sum,
                   args->out, out_at(args, batch, first + row, head), 0);
        if (args->lse != NULL) {
            args->lse[(batch * args->heads + head) * args->q_len + first + row] =
                state.top[row] + logf(sum);
        }
    }
}

/* All queries of one key-value head, or every `parts`-th tile of them. */
static void forward_head(const tsr_attention_args *args, const attention_scratch *s, int64_t batch,
                         int64_t kv_head, int64_t part, int64_t parts)
{
    const int64_t group = args->heads / args->kv_heads, at = key_at(args, batch, 0, kv_head);

    load_rows(args->dtype, args->k, at, args->kv_stride, args->kv_len, args->head_dim, 1.0f,
              s->keys, s->pad, s->v);
    transpose_tiles(s->v, s->keys, s->pad, s->k_t);
    load_rows(args->dtype, args->v, at, args->kv_stride, args->kv_len, args->head_dim, 1.0f,
              s->keys, s->pad, s->v);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t first = part * TILE; first < args->q_len; first += parts * TILE) {
            forward_tile(args, s, batch, head, first);
        }
    }
}

tsr_status TSR_SIMD(attention_forward)(tsr_device *device, const tsr_attention_args *args,
                                       tsr_stream *stream)
{
    const tsr_cpu_device *cpu = (const tsr_cpu_device *)device;
    const int64_t heads = args->batch * args->kv_heads;
    const int64_t tiles = round_up(args->q_len, TILE) / TILE;
    const int64_t parts = smaller(tiles, round_up(device->threads, heads) / heads);
    const size_t thread_bytes = scratch_bytes(args);

    (void)stream;
    TSR_TRY(TSR_SIMD(attention_reserve)(device, args));
#pragma omp parallel for num_threads(device->threads) schedule(dynamic)
    for (int64_t item = 0; item < heads * parts; ++item) {
        char *base = (char *)cpu->scratch + (size_t)omp_get_thread_num() * thread_bytes;
        const attention_scratch s = scratch_of_thread(args, (float *)(void *)base);
        const int64_t head = item / parts;

        forward_head(args, &s, head / args->kv_heads, head % args->kv_heads, item % parts, parts);
    }
    return TSR_OK;
}

tsr_status TSR_SIMD(attention_reserve)(tsr_device *device, const tsr_attention_args *args)
{
    return tsr_cpu_scratch_reserve(device, (size_t)device->threads * scratch_bytes(args));
}
