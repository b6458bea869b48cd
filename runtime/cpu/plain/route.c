/* The router: scores, top-k choice, weights, balancing sums, and the gradient of all of them.
 *
 * Backward, for one token of sequence b with logits l, scores s, chosen experts i_k and weights
 * w_k. First g = d loss / d s, the choice itself and f being constants: weights  w_k = scale s[i_k]
 * / N, N = sum_j s[i_j] if renormalised, else 1: g[i_k] += scale / N (dw_k - sum_j dw_j s[i_j] /
 * N), or scale dw_k; balance  a_e = aux_factor E f[b,e] / S is the gradient of a token's normalised
 * score n_e. softmax: n = s, so g_e += a_e; sigmoid: n_e = s_e / M, M = sum_j s_j, so g_e += (a_e -
 * sum_j a_j n_j) / M. Then the scores: softmax  dl_e = s_e (g_e - sum_j g_j s_j);      sigmoid dl_e
 * = g_e s_e (1 - s_e). Last z = logsumexp(l), dz/dl_e = exp(l_e - z):  dl_e += 2 z_factor z exp(l_e
 * - z). N and M get TINY added, which matters only when all sigmoids underflow. */
#include "runtime/cpu/plain/plain.h"

#include <math.h>

#define TINY 1e-20

static double log_sum_exp(const float *logits, int experts)
{
    double top = -INFINITY, sum = 0.0;

    for (int e = 0; e < experts; ++e) {
        top = fmax(top, (double)logits[e]);
    }
    for (int e = 0; e < experts; ++e) {
        sum += exp((double)logits[e] - top);
    }
    return top + log(sum);
}

/* The best of those that are not out; puts it out. Ties go to the lower. */
static int take_best(const double *keys, int count, bool *is_out)
{
    int best = -1;

    for (int i = 0; i < count; ++i) {
        if (!is_out[i] && (best < 0 || keys[i] > keys[best])) {
            best = i;
        }
    }
    is_out[best] = true;
    return best;
}

static double number_or_lowest(double key)
{
    return isnan(key) ? -INFINITY : key;
}

/* Best key of a group, or sum of the two best. */
static double group_key(const tsr_route_args *args, const double *keys, int size)
{
    double first = -INFINITY, second = -INFINITY;

    for (int i = 0; i < size; ++i) {
        second = fmax(second, fmin(first, keys[i]));
        first = fmax(first, keys[i]);
    }
    return args->gate == TSR_GATE_SOFTMAX || size == 1 ? first : number_or_lowest(first + second);
}

/* Put out the experts of all groups but the best. */
static void limit_groups(const tsr_route_args *args, const double *keys, bool *is_out)
{
    const int size = args->experts / args->groups;
    double group_keys[TSR_EXPERTS_MAX] = {0};
    bool is_kept[TSR_EXPERTS_MAX] = {false};

    for (int g = 0; g < args->groups; ++g) {
        group_keys[g] = group_key(args, keys + (ptrdiff_t)g * size, size);
    }
    for (int i = 0; i < args->kept_groups; ++i) {
        (void)take_best(group_keys, args->groups, is_kept);
    }
    for (int g = 0; g < args->groups; ++g) {
        for (int i = 0; i < size; ++i) {
            is_out[g * size + i] = !is_kept[g];
        }
    }
}

/* A score that is no number ranks below all. */
static void choose(const tsr_route_args *args, const float *scores, int32_t *index)
{
    double keys[TSR_EXPERTS_MAX] = {0};
    bool is_out[TSR_EXPERTS_MAX] = {false};

    for (int e = 0; e < args->experts; ++e) {
        const double bias = args->bias != NULL ? (double)args->bias[e] : 0.0;

        keys[e] = number_or_lowest((double)scores[e] + bias);
    }
    if (args->groups > 1) {
        limit_groups(args, keys, is_out);
    }
    for (int k = 0; k < args->top_k; ++k) {
        index[k] = take_best(keys, args->experts, is_out);
    }
}

static double chosen_sum(const tsr_route_args *args, const float *scores, const int32_t *index)
{
    double sum = TINY;

    for (int k = 0; k < args->top_k; ++k) {
        sum += (double)scores[index[k]];
    }
    return args->renormalize ? sum : 1.0;
}

static void route_token(const tsr_route_args *args, int64_t token)
{
    const float *logits = args->logits + token * args->experts;
    float *scores = args->scores + token * args->experts;
    int32_t *index = args->index + token * args->top_k;
    const double z = log_sum_exp(logits, args->experts);

    for (int e = 0; e < args->experts; ++e) {
        const double l = (double)logits[e];

        scores[e] = (float)(args->gate == TSR_GATE_SOFTMAX ? exp(l - z) : 1.0 / (1.0 + exp(-l)));
    }
    choose(args, scores, index);
    const double sum = chosen_sum(args, scores, index);
    for (int k = 0; k < args->top_k; ++k) {
        args->weight[token * args->top_k + k] =
            (float)((double)args->scale * (double)scores[index[k]] / sum);
    }
    if (args->z != NULL) {
        args->z[token] = (float)z;
    }
}

/* What the scores of a token are divided by to make them sum to one. */
static double score_sum(const tsr_route_args *args, const float *scores)
{
    double sum = TINY;

    for (int e = 0; e < args->experts; ++e) {
        sum += (double)scores[e];
    }
    return args->gate == TSR_GATE_SOFTMAX ? 1.0 : sum;
}

static void sum_sequence(const tsr_route_args *args, int64_t sequence)
{
    const int counted = args->aux == TSR_AUX_SWITCH ? args->top_k : 1;
    const int64_t first = sequence * args->seq_len, experts = args->experts;
    double score_total[TSR_EXPERTS_MAX] = {0};
    int64_t count[TSR_EXPERTS_MAX] = {0};

    for (int64_t token = first; token < first + args->seq_len; ++token) {
        const float *scores = args->scores + token * experts;
        const int32_t *index = args->index + token * args->top_k;
        const double sum = score_sum(args, scores);

        for (int64_t e = 0; e < experts; ++e) {
            score_total[e] += (double)scores[e] / sum;
        }
        for (int k = 0; k < args->top_k; ++k) {
            ++args->counts[index[k]];
            count[index[k]] += k < counted;
        }
    }
    for (int64_t e = 0; e < experts; ++e) {
        const int64_t at = sequence * experts + e;

        args->balance[at] = (float)((double)count[e] / (double)(args->seq_len * counted));
        args->score_means[at] = (float)(score_total[e] / (double)args->seq_len);
    }
}

tsr_status tsr_plain_route_forward(tsr_device *device, const tsr_route_args *args,
                                   tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t token = 0; token < args->tokens; ++token) {
        route_token(args, token);
    }
    memset(args->counts, 0, (size_t)args->experts * sizeof *args->counts);
    for (int64_t sequence = 0; sequence * args->seq_len < args->tokens; ++sequence) {
        sum_sequence(args, sequence);
    }
    return TSR_OK;
}

/* g of the head of this file. */
static void score_gradient(const tsr_route_args *args, int64_t token, double *g)
{
    const float *scores = args->scores + token * args->experts;
    const float *balance = args->balance + token / args->seq_len * args->experts;
    const int32_t *index = args->index + token * args->top_k;
    const float *dweight = args->dweight + token * args->top_k;
    const double n = chosen_sum(args, scores, index), m = score_sum(args, scores);
    const double a = (double)args->aux_factor * args->experts / (double)args->seq_len;
    double weight_mean = 0.0, balance_mean = 0.0;

    for (int k = 0; k < args->top_k && args->renormalize; ++k) {
        weight_mean += (double)dweight[k] * (double)scores[index[k]] / n;
    }
    for (int e = 0; e < args->experts && args->gate == TSR_GATE_SIGMOID; ++e) {
        balance_mean += a * (double)balance[e] * (double)scores[e] / m;
    }
    for (int e = 0; e < args->experts; ++e) {
        g[e] = (a * (double)balance[e] - balance_mean) / m;
    }
    for (int k = 0; k < args->top_k; ++k) {
        g[index[k]] += (double)args->scale / n * ((double)dweight[k] - weight_mean);
    }
}

tsr_status tsr_plain_route_backward(tsr_device *device, const tsr_route_args *args,
                                    tsr_stream *stream)
{
    (void)device;
    (void)stream;
    for (int64_t token = 0; token < args->tokens; ++token) {
        const float *logits = args->logits + token * args->experts;
        const float *scores = args->scores + token * args->experts;
        double g[TSR_EXPERTS_MAX], mean = 0.0;

        score_gradient(args, token, g);
        for (int e = 0; e < args->experts; ++e) {
            mean += g[e] * (double)scores[e];
        }
        for (int e = 0; e < args->experts; ++e) {
            const double s = (double)scores[e];
            double dlogit =
                args->gate == TSR_GATE_SOFTMAX ? s * (g[e] - mean) : g[e] * s * (1.0 - s);

            if (args->z_factor != 0.0f) {
                const double z = (double)args->z[token];

                dlogit += 2.0 * (double)args->z_factor * z * exp((double)logits[e] - z);
            }
            args->dlogits[token * args->experts + e] = (float)dlogit;
        }
    }
    return TSR_OK;
}
