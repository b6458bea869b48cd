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
    float scale;            /* of all scores */
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

/* Scores of query `row` become probabilities times exp(lse - top), packed by rows in place; the
 * row's sums so far, in state and in out, are rescaled when top rises. */
VEC_INLINE void softmax_row(int pack, const attention_scratch *s, float *scores, int64_t columns,
                            int64_t visible, int64_t row, softmax_state *state)
{
    const float before = state->top[row];
    float *out = s->out + row * s->pad;
    vec sum = vec_load(state->sum[row]);

    if (visible <= 0) {
        memset(scores, 0, (size_t)columns * sizeof *scores);
        return;
    }
    const float now = scale_and_mask(scores, columns, visible, state->scale);
    const float top = now > before ? now : before;
    if (now > before) {
        const vec factor = vec_exp(vec_set(before - top));

        sum *= factor;
        for (int64_t col = 0; col < s->pad; col += VEC_N) {
            vec_store(out + col, vec_load(out + col) * factor);
        }
        state->top[row] = top;
    }
    for (int64_t col = 0; col < columns; col += VEC_N) {
        const vec p = vec_exp(vec_load(scores + col) - top);

        vec_store_as(pack == 2 ? TSR_BF16 : TSR_F32, scores, col, p); /* never ahead of the load */
        sum += p;
    }
    vec_store(state->sum[row], sum);
}

/* One strip against one tile of keys; row r of the tile sees its first r + offset + 1 keys. */
VEC_INLINE void forward_strip(int pack, const attention_scratch *s, int64_t first, int64_t key,
                              int64_t offset, softmax_state *state)
{
    const int64_t words = s->pad / pack, seen = least(TILE, first + STRIP + offset);
    const int64_t columns = round_up(seen, GRAIN);
    const matrix q = {s->q_rows + first * words, words};
    const matrix k = {s->k_transposed + key * words, TILE};
    const matrix v = {s->v_columns + key / pack * s->pad, s->pad};
    float p[STRIP * TILE] __attribute__((aligned(64)));

    if (seen <= 0) {
        return;
    }
    strip_product(pack, q, k, s->head_dim, (matrix){p, TILE}, columns, false);
    for (int64_t r = 0; r < STRIP; ++r) {
        softmax_row(pack, s, p + r * TILE, columns, first + r + offset + 1, first + r, state);
    }
    strip_product(pack, (matrix){p, TILE}, v, seen, (matrix){s->out + first * s->pad, s->pad},
                  s->pad, true);
}

VEC_INLINE void forward_tile(int pack, const tsr_attention_args *args, const attention_scratch *s,
                             int64_t batch, int64_t head, int64_t first)
{
    const int64_t rows = least(TILE, args->q_len - first), padded = round_up(rows, STRIP);
    const int64_t position = args->kv_len - args->q_len + first; /* of the first query */
    const head_rows q = query_rows(args, args->q, batch, head, first, rows);
    head_rows out = out_rows(args, args->out, batch, head, first, 1);
    softmax_state state = {.scale = args->scale};

    load_rows(pack, &q, padded, s->pad, s->q_rows);
    memset(s->out, 0, (size_t)(padded * s->pad) * sizeof *s->out);
    for (int64_t row = 0; row < padded; ++row) {
        state.top[row] = -INFINITY;
    }
    for (int64_t key = 0; key < position + rows; key += TILE) {
        for (int64_t row = 0; row < padded; row += STRIP) {
            forward_strip(pack, s, row, key, position - key, &state);
        }
    }
    for (int64_t row = 0; row < rows; ++row, out.at += out.stride) {
        const float sum = vec_sum(vec_load(state.sum[row]));

        store_rows(s->out + row * s->pad, s->pad, 1.0f / sum, &out, args->out);
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
    head_rows keys = key_rows(args, args->k, batch, kv_head);
    const int64_t words = s.pad / pack;

    load_rows(pack, &keys, s.keys, s.pad, s.k_rows);
    for (int64_t key = 0; key < s.keys; key += TILE) {
        transpose_words(s.k_rows + key * words, TILE, words, s.k_transposed + key * words);
    }
    keys.base = args->v;
    load_rows(pack, &keys, s.keys, s.pad, s.v_rows);
    pack_columns(pack, s.v_rows, s.keys, s.pad, s.v_columns);
    products_begin();
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int64_t first = part * TILE; first < args->q_len; first += parts * TILE) {
            forward_tile(pack, args, &s, batch, head, first);
        }
    }
    products_end();
}

tsr_status TSR_SIMD(attention_forward)(tsr_device *device, const tsr_attention_args *args,
                                       tsr_stream *stream)
{
    const tsr_cpu_device *cpu = (const tsr_cpu_device *)device;
    const int64_t heads = args->batch * args->kv_heads;
    const int64_t tiles = round_up(args->q_len, TILE) / TILE;
    const int64_t parts = least(tiles, round_up(device->threads, heads) / heads);
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
