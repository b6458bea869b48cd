/* What the next step's loads will be, and how many experts fit under other work. */
#include "parallel/placement.h"

#include <math.h>
#include <string.h>

struct tsr_load_history {
    int layers, experts, window;
    tsr_prediction kind;
    int64_t *pushes; /* [L] */
    int64_t *past;   /* window: [L, window, E] */
    int64_t *sum;    /* window: [L, E] */
    double *mean;    /* ema: [L, E] */
};

tsr_status tsr_load_history_create(int layers, int experts, tsr_prediction kind, int window,
                                   tsr_load_history **out)
{
    tsr_load_history *h = NULL;
    tsr_status st = TSR_OK;

    TSR_CHECK(layers >= 1 && experts >= 1 && window >= 1, TSR_ERR_ARG,
              "load history: %d layers, %d experts, window %d: must be at least 1", layers, experts,
              window);
    const int64_t cells = (int64_t)layers * experts;
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *h, (void **)&h));
    *h = (tsr_load_history){.layers = layers, .experts = experts, .window = window, .kind = kind};
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, layers, sizeof *h->pushes, (void **)&h->pushes),
                 err);
    if (kind == TSR_PREDICT_EMA) {
        TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, cells, sizeof *h->mean, (void **)&h->mean),
                     err);
    } else {
        TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, cells, sizeof *h->sum, (void **)&h->sum),
                     err);
        TSR_TRY_GOTO(
            tsr_mem_alloc_array(TSR_MEM_OTHER, cells * window, sizeof *h->past, (void **)&h->past),
            err);
    }
    *out = h;
    return TSR_OK;
err:
    tsr_load_history_destroy(&h);
    return st;
}

void tsr_load_history_destroy(tsr_load_history **history_p)
{
    if (*history_p == NULL) {
        return;
    }
    tsr_mem_free((*history_p)->pushes);
    tsr_mem_free((*history_p)->past);
    tsr_mem_free((*history_p)->sum);
    tsr_mem_free((*history_p)->mean);
    tsr_mem_free(*history_p);
    *history_p = NULL;
}

void tsr_load_history_push(tsr_load_history *h, int layer, const int64_t *tokens)
{
    const int64_t number = h->pushes[layer]++, first = (int64_t)layer * h->experts;

    if (h->kind == TSR_PREDICT_EMA) {
        const double part = number == 0 ? 1.0 : 2.0 / (h->window + 1.0);

        for (int e = 0; e < h->experts; ++e) {
            h->mean[first + e] += part * ((double)tokens[e] - h->mean[first + e]);
        }
        return;
    }
    int64_t *oldest = h->past + (layer * (int64_t)h->window + number % h->window) * h->experts;
    for (int e = 0; e < h->experts; ++e) {
        h->sum[first + e] += tokens[e] - oldest[e]; /* zero before the window is full */
        oldest[e] = tokens[e];
    }
}

static int known_steps(const tsr_load_history *h, int layer)
{
    return h->pushes[layer] < h->window ? (int)h->pushes[layer] : h->window;
}

void tsr_load_history_predict(const tsr_load_history *h, int layer, int64_t *tokens_out)
{
    const int64_t first = (int64_t)layer * h->experts, known = known_steps(h, layer);
    const int64_t steps = known > 0 ? known : 1;

    for (int e = 0; e < h->experts; ++e) {
        tokens_out[e] = h->kind == TSR_PREDICT_EMA ? (int64_t)llround(h->mean[first + e])
                                                   : (h->sum[first + e] + steps / 2) / steps;
    }
}

tsr_load_past tsr_load_history_past(const tsr_load_history *h, int layer)
{
    if (h->kind == TSR_PREDICT_EMA) {
        return (tsr_load_past){.steps = 0};
    }
    return (tsr_load_past){.tokens = h->past + (int64_t)layer * h->window * h->experts,
                           .steps = known_steps(h, layer)};
}

/* ---- as numbers: steps [L], then the tokens [L, window, E] or the means [L,E] ---------------- */

int64_t tsr_load_history_size(const tsr_load_history *h)
{
    const int64_t depth = h->kind == TSR_PREDICT_EMA ? 1 : h->window;

    return h->layers * (1 + depth * h->experts);
}

void tsr_load_history_export(const tsr_load_history *h, double *values_out)
{
    const int64_t cells = tsr_load_history_size(h) - h->layers;

    for (int layer = 0; layer < h->layers; ++layer) {
        *values_out++ = (double)h->pushes[layer];
    }
    for (int64_t i = 0; i < cells; ++i) {
        values_out[i] = h->kind == TSR_PREDICT_EMA ? h->mean[i] : (double)h->past[i];
    }
}

tsr_status tsr_load_history_import(tsr_load_history *h, const double *values)
{
    static const double most = 9007199254740992.0; /* 2^53: all integers up to it are exact */
    const int64_t size = tsr_load_history_size(h), cells = size - h->layers;

    for (int64_t i = 0; i < size; ++i) {
        const bool may_be_mean = h->kind == TSR_PREDICT_EMA && i >= h->layers;
        const bool is_whole = may_be_mean || floor(values[i]) == values[i];
        TSR_CHECK(values[i] >= 0.0 && values[i] <= most && is_whole, TSR_ERR_FORMAT,
                  "load history: value %lld is %g, must be a count", (long long)i, values[i]);
    }
    for (int layer = 0; layer < h->layers; ++layer) {
        h->pushes[layer] = (int64_t)values[layer];
    }
    values += h->layers;
    if (h->kind == TSR_PREDICT_EMA) {
        memcpy(h->mean, values, (size_t)cells * sizeof *h->mean);
        return TSR_OK;
    }
    memset(h->sum, 0, (size_t)h->layers * (size_t)h->experts * sizeof *h->sum);
    for (int64_t i = 0; i < cells; ++i) {
        const int64_t layer = i / ((int64_t)h->window * h->experts);

        h->past[i] = (int64_t)values[i];
        h->sum[layer * h->experts + i % h->experts] += h->past[i];
    }
    return TSR_OK;
}

int tsr_overlap_budget(double free_s, double bytes_per_s, double expert_bytes, int experts)
{
    const double fits = free_s * bytes_per_s / expert_bytes;

    return !(fits >= 1.0) ? 0 : fits >= experts ? experts : (int)fits;
}
