/* Owners for the loads of all layers, and whether moving to them pays. */
#include "parallel/placement/placement_impl.h"

#include <string.h>

/* ---- Algorithm 2 ----------------------------------------------------------------------------- */

/* While owners are dealt: p->copies [P] and p->node_free [N] are free places, p->trial_load [P]
 * and p->left [N] the layer's load so far. */

/* a carries less than b, per rank; equal ones: has fewer free places, or more if so wanted. */
static bool is_better(int64_t load_a, int64_t load_b, int free_a, int free_b, bool wants_more)
{
    if (load_a != load_b) {
        return load_a < load_b;
    }
    return wants_more ? free_a > free_b : free_a < free_b;
}

static int choose_owner(const tsr_planner *p, bool wants_more)
{
    int node = -1, rank = -1;

    for (int n = 0; n < p->nodes; ++n) {
        const int64_t size = p->node_begin[n + 1] - p->node_begin[n];
        const int64_t best = node < 0 ? 0 : p->node_begin[node + 1] - p->node_begin[node];

        if (p->node_free[n] > 0 &&
            (node < 0 || is_better(p->left[n] * best, p->left[node] * size, p->node_free[n],
                                   p->node_free[node], wants_more))) {
            node = n;
        }
    }
    for (int r = p->node_begin[node]; r < p->node_begin[node + 1]; ++r) {
        if (p->copies[r] > 0 &&
            (rank < 0 || is_better(p->trial_load[r], p->trial_load[rank], p->copies[r],
                                   p->copies[rank], wants_more))) {
            rank = r;
        }
    }
    return rank;
}

/* Deal experts p->order[from .. to) of one layer, each weighing its load, or 1 if they are hot:
 * those get copies anyway, so it is their number that is to be even. */
static void deal(tsr_planner *p, const int64_t *loads, int from, int to, bool are_hot,
                 int32_t *owner_out)
{
    memset(p->trial_load, 0, (size_t)p->options.ranks * sizeof *p->trial_load);
    memset(p->left, 0, (size_t)p->nodes * sizeof *p->left);
    for (int i = from; i < to; ++i) {
        const int e = p->order[i], rank = choose_owner(p, are_hot);
        const int64_t weight = are_hot ? 1 : loads[e];

        owner_out[e] = rank;
        p->trial_load[rank] += weight;
        p->left[p->node[rank]] += weight;
        --p->copies[rank];
        --p->node_free[p->node[rank]];
    }
}

void owners_heterogeneous(tsr_planner *p, const int64_t *loads, const int32_t *owner,
                          int32_t *owner_out)
{
    const int experts = p->options.experts, layers = p->options.layers;
    const int hot = p->options.budget < experts ? p->options.budget : experts;

    memset(p->copies, 0, (size_t)p->options.ranks * sizeof *p->copies);
    memset(p->node_free, 0, (size_t)p->nodes * sizeof *p->node_free);
    for (int64_t i = 0; i < (int64_t)layers * experts; ++i) {
        ++p->copies[owner[i]];
        ++p->node_free[p->node[owner[i]]];
    }
    for (int layer = 0; layer < layers; ++layer) {
        plan_order(p, loads + (int64_t)layer * experts, experts);
        p->layer_key[layer] = hot < experts ? loads[(int64_t)layer * experts + p->order[hot]] : 0;
    }
    plan_order(p, p->layer_key, layers);
    memcpy(p->layer_order, p->order, (size_t)layers * sizeof *p->layer_order);
    for (int pass = 0; pass < 2; ++pass) { /* the cold of all layers, then the hot */
        for (int i = 0; i < layers; ++i) {
            const int64_t first = (int64_t)p->layer_order[i] * experts;

            plan_order(p, loads + first, experts);
            deal(p, loads + first, pass == 0 ? hot : 0, pass == 0 ? experts : hot, pass == 1,
                 owner_out + first);
        }
    }
}

/* ---- SmartMoE -------------------------------------------------------------------------------- */

/* The swap between two ranks that lowers the larger of their loads most; false: none does. */
static bool best_swap(const tsr_planner *p, const int64_t *loads, const int32_t *owner, int high,
                      int low, int *high_expert, int *low_expert)
{
    const int64_t gap = p->trial_load[high] - p->trial_load[low];
    int64_t best = 0;

    for (int e = 0; e < p->options.experts; ++e) {
        for (int f = 0; owner[e] == high && f < p->options.experts; ++f) {
            const int64_t moved = loads[e] - loads[f];
            const int64_t lowered = moved < gap - moved ? moved : gap - moved;

            if (owner[f] == low && lowered > best) {
                best = lowered;
                *high_expert = e;
                *low_expert = f;
            }
        }
    }
    return best > 0;
}

void owners_swapped(tsr_planner *p, const int64_t *loads, const int32_t *owner, int32_t *owner_out)
{
    const int experts = p->options.experts, ranks = p->options.ranks;

    memcpy(owner_out, owner, (size_t)p->options.layers * (size_t)experts * sizeof *owner);
    for (int layer = 0; layer < p->options.layers; ++layer) {
        int e = 0, f = 0, high, low;

        memset(p->trial_load, 0, (size_t)ranks * sizeof *p->trial_load);
        for (int i = 0; i < experts; ++i) {
            p->trial_load[owner_out[i]] += loads[i];
        }
        for (int swaps = 0; swaps < experts; ++swaps) {
            high = low = 0;
            for (int r = 1; r < ranks; ++r) {
                high = p->trial_load[r] > p->trial_load[high] ? r : high;
                low = p->trial_load[r] < p->trial_load[low] ? r : low;
            }
            if (!best_swap(p, loads, owner_out, high, low, &e, &f)) {
                break;
            }
            p->trial_load[high] -= loads[e] - loads[f];
            p->trial_load[low] += loads[e] - loads[f];
            owner_out[e] = low;
            owner_out[f] = high;
        }
        loads += experts;
        owner_out += experts;
    }
}

/* ---- does it pay ----------------------------------------------------------------------------- */

tsr_status tsr_plan_owners(tsr_planner *p, const int64_t *loads, const int32_t *owner,
                           int32_t *owner_out)
{
    const int64_t cells = (int64_t)p->options.layers * p->options.experts;

    for (int64_t i = 0; i < cells; ++i) {
        TSR_TRY(plan_check(p, i, owner[i], loads[i]));
    }
    p->quoted = NULL;
    if (p->ops->owners == NULL) {
        memcpy(owner_out, owner, (size_t)cells * sizeof *owner);
    } else {
        p->ops->owners(p, loads, owner, owner_out);
    }
    return TSR_OK;
}

/* Tokens on the fullest rank, all layers together, if the loads come evenly from all ranks. */
static tsr_status sum_of_largest(tsr_planner *p, const int64_t *loads, const int32_t *owner,
                                 int64_t *sum_out)
{
    const int experts = p->options.experts, ranks = p->options.ranks;

    *sum_out = 0;
    for (int layer = 0; layer < p->options.layers; ++layer) {
        const int64_t first = (int64_t)layer * experts;
        tsr_quotas quotas;

        for (int r = 0; r < ranks; ++r) {
            for (int e = 0; e < experts; ++e) {
                const int64_t load = loads[first + e];

                p->even_counts[(int64_t)r * experts + e] = load / ranks + (r < load % ranks);
            }
        }
        TSR_TRY(tsr_plan_holdings(p, owner + first, loads + first, NULL, &p->trial));
        TSR_TRY(tsr_plan_quotas(p, p->even_counts, &p->trial, &quotas));
        *sum_out += quotas.max_load;
    }
    return TSR_OK;
}

tsr_status tsr_plan_weigh(tsr_planner *p, const int64_t *loads, const int32_t *owner,
                          const int32_t *better, int steps, double move_s, tsr_move *move_out)
{
    tsr_move move = {.experts = 0};
    int64_t now = 0, then = 0;

    TSR_TRY(sum_of_largest(p, loads, owner, &now));
    TSR_TRY(sum_of_largest(p, loads, better, &then));
    p->quoted = NULL;
    memset(p->left, 0, (size_t)p->options.ranks * sizeof *p->left);             /* sent */
    memset(p->trial_load, 0, (size_t)p->options.ranks * sizeof *p->trial_load); /* received */
    for (int64_t i = 0; i < (int64_t)p->options.layers * p->options.experts; ++i) {
        if (owner[i] == better[i]) {
            continue;
        }
        const int64_t sent = ++p->left[owner[i]], received = ++p->trial_load[better[i]];

        ++move.experts;
        move.largest = sent > move.largest ? sent : move.largest;
        move.largest = received > move.largest ? received : move.largest;
    }
    const double token_s = plan_token_s(p) > 0.0 ? plan_token_s(p) : 1.0;
    move.gain_s = steps * token_s * (double)(now - then);
    move.cost_s = move_s * (double)move.largest;
    move.pays = move.gain_s > move.cost_s;
    *move_out = move;
    return TSR_OK;
}
