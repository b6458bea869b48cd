/* Ours: copies for the predicted load, exact shares for the true one, and a spill for the rest.
 *
 * Before the gate, copies are chosen so that the predicted largest load is the least possible; the
 * slots left over take the hottest experts, so that tokens stay on their ranks and the shares have
 * more to choose from when the prediction was wrong. After the gate, amounts_level() makes the
 * best of the copies, and where that is not enough the true excess spills into free slots. */
#include "parallel/placement/placement_impl.h"

#include <string.h>

/* A largest load that is not worth a copy: half of what the spill lets pass. */
static int64_t most_tolerated(const tsr_planner *p, int64_t mean)
{
    return mean + (int64_t)((p->options.target - 1.0) / 2.0 * (double)mean);
}

/* Does it pay to bring e into one more node, even if nothing hides its way? Its rows come and go
 * twice in a step; the node has its part of them. */
static bool import_pays(const tsr_planner *p, int64_t tokens)
{
    const tsr_plan_costs *c = &p->options.costs;

    return 4.0 * c->row_s * (double)tokens / p->nodes > c->trips * c->copy_s && c->row_s > 0.0;
}

/* Does it pay to keep one part in `parts` of an expert's tokens where they are? */
static bool fill_pays(const tsr_planner *p, int64_t tokens, int parts)
{
    return (double)tokens > p->options.fill_tokens * parts;
}

/* Who takes a second copy of e without need: the emptiest rank with a slot; -1: none. */
static int second_holder(const tsr_planner *p, int e)
{
    int best = -1;

    for (int r = 0; r < p->options.ranks; ++r) {
        if (p->copies[r] < p->hidden_slots && r != p->owner[e] && holders_may_import(p, e, r) &&
            (best < 0 || p->trial_load[r] < p->trial_load[best])) {
            best = r;
        }
    }
    return best;
}

/* What of e only its owner holds, in sums of the owner: sign 1 or -1. */
static void count_alone(tsr_planner *p, int e, const int64_t *predicted, int sign)
{
    const int owner = p->owner[e];

    p->left[owner] += sign * predicted[e];
    for (int s = 0; s < p->past.steps; ++s) {
        p->alone[(int64_t)owner * p->options.window + s] +=
            sign * p->past.tokens[(int64_t)s * p->options.experts + e];
    }
}

/* Have the experts that only their owner holds made more than that on a rank, or are they expected
 * to? */
static bool is_tight(const tsr_planner *p, int rank, int64_t most)
{
    for (int s = 0; s < p->past.steps; ++s) {
        if (p->alone[(int64_t)rank * p->options.window + s] > most) {
            return true;
        }
    }
    return p->left[rank] > most;
}

/* What a rank has alone it cannot give away if the prediction is wrong: so that it be no more than
 * the mean, as far as past steps tell, the heaviest experts get a second holder. Where no past is
 * known, or a copy pays anyway, three quarters: they may grow by a third. p->order: by falling
 * load. */
static void loosen(tsr_planner *p, const int64_t *predicted, int64_t mean)
{
    const int64_t careful = mean / 4 * 3, tolerated = most_tolerated(p, mean);

    memset(p->left, 0, (size_t)p->options.ranks * sizeof *p->left);
    memset(p->alone, 0, (size_t)p->options.ranks * (size_t)p->options.window * sizeof *p->alone);
    memset(p->unplaced, 0, (size_t)p->options.experts * sizeof *p->unplaced); /* has copies */
    for (int64_t i = 0; i < p->added_count; ++i) {
        p->unplaced[p->added[i].expert] = 1;
    }
    for (int e = 0; e < p->options.experts; ++e) {
        if (p->unplaced[e] == 0) {
            count_alone(p, e, predicted, 1);
        }
    }
    for (int i = 0; i < p->options.experts; ++i) {
        const int e = p->order[i];
        const bool is_careful = p->past.steps == 0 || fill_pays(p, predicted[e], p->options.ranks);

        if (p->unplaced[e] != 0 || !is_tight(p, p->owner[e], is_careful ? careful : tolerated)) {
            continue;
        }
        const int rank = second_holder(p, e);
        if (rank >= 0) {
            holders_add(p, e, rank);
            p->trial_load[rank] += predicted[e] / 2;
            count_alone(p, e, predicted, -1);
        }
    }
}

/* The node's slots that are left: experts that it does not hold, so that tokens need not leave it,
 * then on each rank those that the node holds. The hottest first. */
static void fill_node(tsr_planner *p, const int64_t *predicted, int n)
{
    const int begin = p->node_begin[n], end = p->node_begin[n + 1];

    for (int i = 0; i < p->options.experts; ++i) {
        const int e = p->order[i];
        int best = begin;

        if (!fill_pays(p, predicted[e], p->nodes) ||
            (p->imports[n] >= p->options.node_budget && !import_pays(p, predicted[e]))) {
            break; /* later ones are no hotter */
        }
        for (int r = begin; r < end; ++r) {
            best = p->copies[r] < p->copies[best] ? r : best;
        }
        if (predicted[e] > 0 && *holders_in_node(p, e, n) == 0 &&
            p->copies[best] < p->hidden_slots) {
            holders_add(p, e, best);
        }
    }
    for (int r = begin; r < end; ++r) {
        for (int i = 0; i < p->options.experts && p->copies[r] < p->hidden_slots; ++i) {
            const int e = p->order[i];

            if (fill_pays(p, predicted[e], p->options.ranks) && *holders_in_node(p, e, n) > 0 &&
                !holders_has(p, e, r)) {
                holders_add(p, e, r);
            }
        }
    }
}

static void quota_holdings(tsr_planner *p, const int64_t *predicted)
{
    const int experts = p->options.experts, ranks = p->options.ranks;
    int64_t total = 0, largest = 0;
    int parts = 0;

    memset(p->load, 0, (size_t)ranks * sizeof *p->load);
    for (int e = 0; e < experts; ++e) {
        p->load[p->owner[e]] += predicted[e];
        largest = p->load[p->owner[e]] > largest ? p->load[p->owner[e]] : largest;
        total += predicted[e];
        if (predicted[e] > 0) {
            p->parts[parts++] =
                (plan_part){.tokens = predicted[e], .expert = e, .rank = p->owner[e]};
        }
    }
    const int64_t mean = (total + ranks - 1) / ranks;
    const int64_t goal = largest > most_tolerated(p, mean) ? mean : largest;
    (void)relieve(p, parts, goal, p->hidden_slots, RELIEF_SPREADS);
    plan_order(p, predicted, experts);
    loosen(p, predicted, mean);
    for (int n = 0; n < p->nodes; ++n) {
        fill_node(p, predicted, n);
    }
}

static void quota_spill(tsr_planner *p, const int64_t *counts, const tsr_holding *holding)
{
    const int64_t mean = (p->total + p->options.ranks - 1) / p->options.ranks;
    const int64_t aim = (int64_t)(p->options.target * (double)p->total / p->options.ranks);
    const int64_t goal = aim > mean ? aim : mean; /* of few tokens no part can be moved */
    int parts = 0;

    if (p->max_load <= goal) {
        return;
    }
    amounts_excess(p, counts, holding, goal);
    for (int e = 0; e < p->options.experts; ++e) {
        for (int32_t at = holding->begin[e]; at < holding->begin[e + 1]; ++at) {
            if (p->amount[at] > 0) {
                p->parts[parts++] =
                    (plan_part){.tokens = p->amount[at], .expert = e, .rank = holding->rank[at]};
            }
        }
    }
    if (!plan_pays(p, p->max_load - relieve(p, parts, goal, p->options.slots, RELIEF_STAYS_NEAR))) {
        holders_undo(p, 0);
        amounts_level(p, counts, holding); /* the quotas given out stay true */
    }
}

const placement_ops placement_quota = {
    .name = "quota",
    .holdings = quota_holdings,
    .amounts = amounts_level,
    .spill = quota_spill,
    .owners = owners_heterogeneous,
};
