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

/* Scores times scale, -infinity where the row does not see the key; returns the largest. */
VEC_INLINE float scale_and_mask(float *scores, int64_t columns, int64_t visible, float scale)
{
    const vec_int lane = {VEC_IOTA};
    vec highest = vec_set(-INFINITY);

    for (int64_t col = 0; col < columns; col += VEC_N) {
        vec score = vec_load(scores + col) * scale;

        if (visible < col + VEC_N) {
            score = vec_select(lane < (int32_t)(visible - col), score, vec_set(-INFINITY));
        }
        vec_store(scores + col, score);
        highest = vec_max(highest, score);
    }
    return vec_max_lane(highest);
}

/* Scores become probabilities times exp(lse - top), packed by rows in place; the sums so far and
 * out, whose row this is, are rescaled when top rises. */
VEC_INLINE void softmax_row(int pack, float *scores, int64_t columns, int64_t visible, float scale,
                            float *top_inout, float *lane_sums, float *out, int64_t width)
{
    const float before = *top_inout;
    vec sum = vec_load(lane_sums);

    if (visible <= 0) {
        memset(scores, 0, (size_t)columns * sizeof *scores);
        return;
    }
    const float now = scale_and_mask(scores, columns, visible, scale);
    const float top = now > before ? now : before;
    if (now > before) {
        const vec factor = vec_exp(vec_set(before - top));

        sum *= factor;
        for (int64_t col = 0; col < width; col += VEC_N) {
            vec_store(out + col, vec_load(out + col) * factor);
        }
        *top_inout = top;
    }
    for (int64_t col = 0; col < columns; col += VEC_N) {
        const vec p = vec_exp(vec_load(scores + col) - top);

        vec_store_as(pack == 2 ? TSR_BF16 : TSR_F32, scores, col, p); /* never ahead of the load */
        sum += p;
    }
    vec_store(lane_sums, sum);
}

/* One strip against one tile of keys; row r of the tile sees its first r + offset + 1 keys. */
VEC_INLINE void forward_strip(int pack, const tsr_attention_args *args, const attention_scratch *s,
                              int64_t first, int64_t key, int64_t offset, softmax_state *state)
{
    const int64_t pad = s->pad, seen = smaller(TILE, first + STRIP + offset);
    const int64_t columns = round_up(seen, VEC_N);
    float *out = s->out + first * pad;
    float p[STRIP * TILE] __attribute__((aligned(64)));

    if (seen <= 0) {
        return;
    }
    strip_product(pack, s->q_rows + first * (pad / pack), pad / pack, 1,
                  s->k_transposed + key * (pad / pack), TILE, args->head_dim, p, TILE, columns,
                  false);
    for (int64_t r = 0; r < STRIP; ++r) {
        softmax_row(pack, p + r * TILE, columns, first + r + offset + 1, args->scale,
                    &state->top[first + r], state->sum[first + r], out + r * pad, s->width);
    }
    strip_product(pack, p, TILE, 1, s->v_columns + key / pack * pad, pad, seen, out, pad, s->width,
                  true);
}

VEC_INLINE void forward_tile(int pack, const tsr_attention_args *args, const attention_scratch *s,
                             int64_t batch, int64_t head, int64_t first)
{
    const int64_t rows = smaller(TILE, args->q_len - first), padded = round_up(rows, STRIP);
    const int64_t position = args->kv_len - args->q_len + first; /* of the first query */
    const row_source q = {args->q,        args->dtype, query_at(args, batch, first, head),
                          args->q_stride, rows,        args->head_dim};
    softmax_state state;

    load_rows(pack, &q, padded, s->pad, s->q_rows);
    memset(s->out, 0, (size_t)(padded * s->pad) * sizeof *s->out);
    memset(state.sum, 0, sizeof state.sum);
    for (int64_t row = 0; row < padded; ++row) {
        state.top[row] = -INFINITY;
    }
    for (int64_t key = 0; key < position + rows; key += TILE) {
        for (int64_t row = 0; row < padded; row += STRIP) {
            forward_strip(pack, args, s, row, key, position - key, &state);
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
VEC_INLINE void forward_head(int pack, const tsr_attention_args *args, float *base, int64_t batch,
                             int64_t kv_head, int64_t part, int64_t parts)
{
    const attention_scratch s = scratch_of_thread(args, pack, base);
    const int64_t group = args->heads / args->kv_heads;
    row_source keys = {args->k,         args->dtype,  key_at(args, batch, 0, kv_head),
                       args->kv_stride, args->kv_len, args->head_dim};
    float *rows = pack == 1 ? s.v_columns : s.dv; /* dv: free in this direction */

    load_rows(pack, &keys, s.keys, s.pad, rows);
    transpose_tiles(rows, s.keys, s.pad / pack, s.k_transposed);
    keys.base = args->v;
    load_rows(pack, &keys, s.keys, s.pad, rows);
    pack_columns(pack, rows, s.keys, s.pad, s.v_columns);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t first = part * TILE; first < args->q_len; first += parts * TILE) {
            forward_tile(pack, args, &s, batch, head, first);
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
        const int64_t batch = item / parts / args->kv_heads;
        const int64_t kv_head = item / parts % args->kv_heads;

        if (pack_of(args) == 1) {
            forward_head(1, args, (float *)(void *)base, batch, kv_head, item % parts, parts);
        } else {
            forward_head(BF16_PACK, args, (float *)(void *)base, batch, kv_head, item % parts,
                         parts);
        }
    }
    return TSR_OK;
}

tsr_status TSR_SIMD(attention_reserve)(tsr_device *device, const tsr_attention_args *args)
{
    return tsr_cpu_scratch_reserve(device, (size_t)device->threads * scratch_bytes(args));
}
