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

void imbalance_gate_draw(imbalance_gate *g, int64_t step)
{
    const uint64_t tokens = (uint64_t)g->tokens;
    const uint64_t key = tsr_rng_key((uint64_t)(step * g->ranks + g->rank), "imbalance/tokens");

    memset(g->bias, 0, g->bytes);
    for (int layer = 0; layer < g->layers; ++layer) {
        float *bias = g->bias + (int64_t)layer * g->tokens * g->experts;
        int64_t *count = g->counts + (int64_t)g->rank * g->experts;
        uint64_t turn = 0;

        tsr_loads_counts(g->loads, layer, step, g->tokens * g->top_k, g->counts);
        limit(count, g->experts, g->tokens);
        /* experts in turn to tokens in turn: no token meets one twice, for none has more turns
         * than there are tokens */
        for (int e = 0; e < g->experts; ++e) {
            for (int64_t i = 0; i < count[e]; ++i, ++turn) {
                const uint64_t token = tsr_rng_permute(key, turn % tokens, tokens);

                bias[(int64_t)token * g->experts + e] = FORCE;
            }
        }
    }
}
