#include "launch/imbalance_gate.h"

#include <string.h>

/* Far above logits, and exp(-FORCE) is 0 beside 1 in f32 while sums of two of them stay exact to
 * 2^-18, which is near enough for a mixing weight. */
#define FORCE 32.0f

tsr_status imbalance_gate_create(const tsr_load_options *load, const tsr_model_config *config,
                                 tsr_comm *comm, int64_t tokens, imbalance_gate *out)
{
    tsr_load_options options = *load;
    imbalance_gate gate = {.layers = (int)config->num_hidden_layers,
                           .experts = (int)config->num_experts,
                           .ranks = tsr_comm_size(comm),
                           .rank = tsr_comm_rank(comm),
                           .top_k = (int)config->num_experts_per_tok,
                           .tokens = tokens};
    const int64_t cells = gate.layers * tokens * gate.experts;
    tsr_status st = TSR_OK;

    options.layers = gate.layers;
    options.experts = gate.experts;
    options.ranks = gate.ranks;
    gate.bytes = (size_t)cells * sizeof *gate.bias;
    TSR_TRY(tsr_loads_create(&options, &gate.loads));
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, (int64_t)gate.ranks * gate.experts,
                                     sizeof *gate.counts, (void **)&gate.counts),
                 err_destroy);
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, tokens * gate.top_k, sizeof *gate.choice,
                                     (void **)&gate.choice),
                 err_destroy);
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, cells, sizeof *gate.bias, (void **)&gate.bias),
                 err_destroy);
    *out = gate;
    return TSR_OK;

err_destroy:
    imbalance_gate_destroy(&gate);
    return st;
}

void imbalance_gate_destroy(imbalance_gate *gate)
{
    tsr_loads_destroy(&gate->loads);
    tsr_mem_free(gate->counts);
    tsr_mem_free(gate->choice);
    tsr_mem_free(gate->bias);
    *gate = (imbalance_gate){0};
}

/* A token goes to an expert once at most. */
static void limit(int64_t *count, int experts, int64_t tokens)
{
    int64_t over = 0;

    for (int e = 0; e < experts; ++e) {
        const int64_t cut = count[e] > tokens ? count[e] - tokens : 0;

        count[e] -= cut;
        over += cut;
    }
    for (int e = 0; over > 0; e = (e + 1) % experts) { /* K <= E: there is room */
        const int64_t one = count[e] < tokens;

        count[e] += one;
        over -= one;
    }
}

static bool has(const imbalance_gate *g, int64_t token, int32_t expert)
{
    for (int k = 0; k < g->top_k; ++k) {
        if (g->choice[token * g->top_k + k] == expert) {
            return true;
        }
    }
    return false;
}

/* Experts in turn to tokens in turn: no token meets one twice, for none has more turns than there
 * are tokens. Then tokens exchange choices at random, so that which experts meet is random too. */
static void deal(imbalance_gate *g, const int64_t *count, uint64_t key)
{
    const int64_t all = g->tokens * g->top_k;
    int64_t turn = 0;

    for (int32_t e = 0; e < g->experts; ++e) {
        for (int64_t i = 0; i < count[e]; ++i, ++turn) {
            g->choice[turn % g->tokens * g->top_k + turn / g->tokens] = e;
        }
    }
    for (int64_t i = 0; i < all; ++i) {
        uint32_t words[4];

        tsr_rng_words(key, (uint64_t)i, words);
        int32_t *const mine = &g->choice[i];
        int32_t *const other = &g->choice[words[0] % (uint64_t)all];
        if (!has(g, i / g->top_k, *other) && !has(g, (other - g->choice) / g->top_k, *mine)) {
            const int32_t kept = *mine;
            *mine = *other;
            *other = kept;
        }
    }
}

void imbalance_gate_draw(imbalance_gate *g, int64_t step)
{
    memset(g->bias, 0, g->bytes);
    for (int layer = 0; layer < g->layers; ++layer) {
        float *bias = g->bias + (int64_t)layer * g->tokens * g->experts;
        int64_t *count = g->counts + (int64_t)g->rank * g->experts;
        const int64_t seed = (step * g->layers + layer) * g->ranks + g->rank;

        tsr_loads_counts(g->loads, layer, step, g->tokens * g->top_k, g->counts);
        limit(count, g->experts, g->tokens);
        deal(g, count, tsr_rng_key((uint64_t)seed, "imbalance/tokens"));
        for (int64_t i = 0; i < g->tokens * g->top_k; ++i) {
            bias[i / g->top_k * g->experts + g->choice[i]] = FORCE;
        }
    }
}
