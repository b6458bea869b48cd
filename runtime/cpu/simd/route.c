/* The router. Tokens are shared out among threads, then sequences for the balancing sums.
 * The derivation of the gradient is in the plain twin. */
#include "runtime/cpu/simd/simd.h"
#include "runtime/cpu/simd/vec.h"

#include <math.h>

#define TINY 1e-20f /* as in the plain twin: keeps sums of underflowed sigmoids from zero */

_Static_assert(TSR_EXPERTS_MAX % VEC_N == 0, "a row of experts is padded to whole vectors");

/* Copy a row of experts and fill it up to whole vectors; returns how many elements that is. */
VEC_INLINE int64_t pad_row(const float *from, int64_t experts, float filler, float *to)
{
    const int64_t padded = (experts + VEC_N - 1) / VEC_N * VEC_N;

    if (padded > experts) {
        vec_store(to + padded - VEC_N, vec_set(filler));
    }
    memcpy(to, from, (size_t)experts * sizeof *to);
    return padded;
}

/* row[e] = exp(row[e] - max); returns max + log of their sum, and the sum. */
VEC_INLINE float exponentials(float *row, int64_t padded, float *sum_out)
{
    vec top = vec_load(row), sum = {0};

    for (int64_t e = VEC_N; e < padded; e += VEC_N) {
        top = vec_max(top, vec_load(row + e));
    }
    const float max = vec_max_lane(top);
    for (int64_t e = 0; e < padded; e += VEC_N) {
        const vec v = vec_exp(vec_load(row + e) - max);

        vec_store(row + e, v);
        sum += v;
    }
    *sum_out = vec_sum(sum);
    return max + logf(*sum_out);
}

VEC_INLINE void scale_row(float *row, int64_t padded, float factor)
{
    for (int64_t e = 0; e < padded; e += VEC_N) {
        vec_store(row + e, vec_load(row + e) * factor);
    }
}

VEC_INLINE void sigmoids(float *row, int64_t padded)
{
    for (int64_t e = 0; e < padded; e += VEC_N) {
        vec_store(row + e, 1.0f / (1.0f + vec_exp(-vec_load(row + e))));
    }
}

/* The best few of what has been offered, best first; equal keys stay in the order of offers. */
typedef struct best_list {
    float *keys;
    int32_t *items;
    int count, limit;
} best_list;

VEC_INLINE void offer(best_list *list, float key, int32_t item)
{
    int place = list->count;

    if (place < list->limit) {
        ++list->count;
    } else if (key > list->keys[place - 1]) {
        --place;
    } else {
        return;
    }
    for (; place > 0 && key > list->keys[place - 1]; --place) {
        list->keys[place] = list->keys[place - 1];
        list->items[place] = list->items[place - 1];
    }
    list->keys[place] = key;
    list->items[place] = item;
}

/* What choices go by; NaN ranks below all. */
VEC_INLINE float choice_key(const tsr_route_args *args, const float *scores, int e)
{
    const float sum = args->bias != NULL ? scores[e] + args->bias[e] : scores[e];

    return isnan(sum) ? -INFINITY : sum;
}

/* The groups that experts may be chosen from: best key, or sum of the two best, of each. */
static void keep_groups(const tsr_route_args *args, const float *scores, bool *is_kept)
{
    const int size = args->experts / args->groups;
    float keys[TSR_EXPERTS_MAX];
    int32_t kept[TSR_EXPERTS_MAX];
    best_list list = {keys, kept, 0, args->kept_groups};

    for (int g = 0; g < args->groups; ++g) {
        float top[2];
        int32_t experts[2];
        best_list best = {top, experts, 0, args->gate == TSR_GATE_SOFTMAX ? 1 : 2};

        for (int e = g * size; e < (g + 1) * size; ++e) {
            offer(&best, choice_key(args, scores, e), e);
        }
        const float sum = best.count == 1 ? top[0] : top[0] + top[1];
        offer(&list, isnan(sum) ? -INFINITY : sum, g);
    }
    for (int g = 0; g < args->groups; ++g) {
        is_kept[g] = false;
    }
    for (int i = 0; i < list.count; ++i) {
        is_kept[kept[i]] = true;
    }
}

static void choose(const tsr_route_args *args, const float *scores, int32_t *index)
{
    const int groups = args->groups > 1 ? args->groups : 1, size = args->experts / groups;
    float keys[TSR_TOP_K_MAX];
    bool is_kept[TSR_EXPERTS_MAX] = {true};
    best_list list = {keys, index, 0, args->top_k};

    if (groups > 1) {
        keep_groups(args, scores, is_kept);
    }
    for (int g = 0; g < groups; ++g) {
        for (int e = g * size; e < (g + 1) * size && is_kept[g]; ++e) {
            offer(&list, choice_key(args, scores, e), e);
        }
    }
}

static float chosen_sum(const tsr_route_args *args, const float *scores, const int32_t *index)
{
    float sum = TINY;

    for (int k = 0; k < args->top_k; ++k) {
        sum += scores[index[k]];
    }
    return args->renormalize ? sum : 1.0f;
}

static void route_token(const tsr_route_args *args, int64_t token)
{
    const int64_t experts = args->experts;
    const float *logits = args->logits + token * experts;
    float *weight = args->weight + token * args->top_k;
    int32_t *index = args->index + token * args->top_k;
    float row[TSR_EXPERTS_MAX], sum;
    const int64_t padded = pad_row(logits, experts, -INFINITY, row);

    if (args->gate == TSR_GATE_SOFTMAX || args->z != NULL) {
        const float z = exponentials(row, padded, &sum);

        if (args->z != NULL) {
            args->z[token] = z;
        }
        scale_row(row, padded, 1.0f / sum);
    }
    if (args->gate == TSR_GATE_SIGMOID) {
        (void)pad_row(logits, experts, -INFINITY, row);
        sigmoids(row, padded);
    }
    memcpy(args->scores + token * experts, row, (size_t)experts * sizeof *row);
    choose(args, row, index);
    const float factor = args->scale / chosen_sum(args, row, index);
    for (int k = 0; k < args->top_k; ++k) {
        weight[k] = row[index[k]] * factor;
    }
}

/* What the scores of a token are multiplied by to make them sum to one. */
static float score_factor(const tsr_route_args *args, const float *scores)
{
    float sum = TINY;

    if (args->gate == TSR_GATE_SOFTMAX) {
        return 1.0f;
    }
    for (int e = 0; e < args->experts; ++e) {
        sum += scores[e];
    }
    return 1.0f / sum;
}

static void sum_sequence(const tsr_route_args *args, int64_t sequence)
{
    const int counted = args->aux == TSR_AUX_SWITCH ? args->top_k : 1;
    const int64_t first = sequence * args->seq_len, experts = args->experts;
    const float per_token = 1.0f / (float)args->seq_len;
    const float per_choice = 1.0f / (float)(args->seq_len * counted);
    double total[TSR_EXPERTS_MAX];
    int64_t counts[TSR_EXPERTS_MAX];

    memset(total, 0, (size_t)experts * sizeof *total);
    memset(counts, 0, (size_t)experts * sizeof *counts);
    for (int64_t token = first; token < first + args->seq_len; ++token) {
        const float *scores = args->scores + token * experts;
        const float factor = score_factor(args, scores);

        for (int64_t e = 0; e < experts; ++e) {
            total[e] += (double)(scores[e] * factor);
        }
        for (int k = 0; k < counted; ++k) {
            ++counts[args->index[token * args->top_k + k]];
        }
    }
    for (int64_t e = 0; e < experts; ++e) {
        args->balance[sequence * experts + e] = (float)counts[e] * per_choice;
        args->score_means[sequence * experts + e] = (float)total[e] * per_token;
    }
}

tsr_status TSR_SIMD(route_forward)(tsr_device *device, const tsr_route_args *args,
                                   tsr_stream *stream)
{
    const int64_t choices = args->tokens * args->top_k;

    (void)stream;
#pragma omp parallel num_threads(device->threads)
    {
#pragma omp for
        for (int64_t token = 0; token < args->tokens; ++token) {
            route_token(args, token);
        }
#pragma omp for
        for (int64_t sequence = 0; sequence < args->tokens / args->seq_len; ++sequence) {
            sum_sequence(args, sequence);
        }
    }
    memset(args->counts, 0, (size_t)args->experts * sizeof *args->counts);
    for (int64_t choice = 0; choice < choices; ++choice) {
        ++args->counts[args->index[choice]];
    }
    return TSR_OK;
}

/* g = gradient of the scores, of whole vectors with zeros behind the experts. */
static void score_gradient(const tsr_route_args *args, int64_t token, const float *scores, float *g)
{
    const int64_t experts = args->experts;
    const int32_t *index = args->index + token * args->top_k;
    const float *dweight = args->dweight + token * args->top_k;
    const float n = 1.0f / chosen_sum(args, scores, index), m = score_factor(args, scores);
    const float a = args->aux_factor * (float)experts / (float)args->seq_len;
    const int64_t padded =
        pad_row(args->balance + token / args->seq_len * experts, experts, 0.0f, g);
    float weight_mean = 0.0f;
    vec balance_sum = {0};

    for (int k = 0; k < args->top_k && args->renormalize; ++k) {
        weight_mean += dweight[k] * scores[index[k]] * n;
    }
    for (int64_t e = 0; e < padded && args->gate == TSR_GATE_SIGMOID; e += VEC_N) {
        balance_sum += vec_load(g + e) * vec_load(scores + e);
    }
    const float balance_mean = vec_sum(balance_sum) * m;
    for (int64_t e = 0; e < padded; e += VEC_N) {
        vec_store(g + e, (vec_load(g + e) - balance_mean) * (a * m));
    }
    for (int k = 0; k < args->top_k; ++k) {
        g[index[k]] += args->scale * n * (dweight[k] - weight_mean);
    }
}

static void backward_token(const tsr_route_args *args, int64_t token)
{
    const int64_t experts = args->experts;
    float scores[TSR_EXPERTS_MAX], logits[TSR_EXPERTS_MAX], g[TSR_EXPERTS_MAX];
    const int64_t padded = pad_row(args->scores + token * experts, experts, 0.0f, scores);
    vec sum = {0};

    score_gradient(args, token, scores, g);
    if (args->gate == TSR_GATE_SOFTMAX) {
        for (int64_t e = 0; e < padded; e += VEC_N) {
            sum += vec_load(g + e) * vec_load(scores + e);
        }
        const float mean = vec_sum(sum);
        for (int64_t e = 0; e < padded; e += VEC_N) {
            vec_store(g + e, vec_load(scores + e) * (vec_load(g + e) - mean));
        }
    } else {
        for (int64_t e = 0; e < padded; e += VEC_N) {
            const vec s = vec_load(scores + e);

            vec_store(g + e, vec_load(g + e) * s * (1.0f - s));
        }
    }
    if (args->z_factor != 0.0f) {
        const float z = args->z[token], factor = 2.0f * args->z_factor * z;

        (void)pad_row(args->logits + token * experts, experts, 0.0f, logits);
        for (int64_t e = 0; e < padded; e += VEC_N) {
            vec_store(g + e, vec_load(g + e) + vec_exp(vec_load(logits + e) - z) * factor);
        }
    }
    memcpy(args->dlogits + token * experts, g, (size_t)experts * sizeof *g);
}

tsr_status TSR_SIMD(route_backward)(tsr_device *device, const tsr_route_args *args,
                                    tsr_stream *stream)
{
    (void)stream;
#pragma omp parallel for num_threads(device->threads)
    for (int64_t token = 0; token < args->tokens; ++token) {
        backward_token(args, token);
    }
    return TSR_OK;
}
