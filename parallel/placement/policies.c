/* The policies that Tessera is compared with: ep, shadow, swap, eplb. */
#include "parallel/placement/placement_impl.h"

const placement_ops placement_ep = {
    .name = "ep",
    .amounts = amounts_nearest,
};

/* FasterMoE (He and others 2022, PPoPP; shadow_policy.py of its code): the fullest expert is
 * taken for the bottleneck, and experts are copied everywhere while the model's cost falls. */
static void shadow_spill(tsr_planner *p, const int64_t *counts, const tsr_holding *holding)
{
    const int experts = p->options.experts;
    const double token_s = plan_token_s(p) > 0.0 ? plan_token_s(p) : 1.0;
    int count = 0;

    (void)counts;
    (void)holding;
    plan_order(p, p->expert_load, experts);
    while (count + 1 < experts && count < p->options.slots) {
        const double before = token_s * (double)p->expert_load[p->order[count]];
        const double after = token_s * (double)p->expert_load[p->order[count + 1]];

        if (after + p->options.costs.copy_s >= before) {
            break;
        }
        ++count;
    }
    for (int i = 0; i < count; ++i) {
        for (int r = 0; r < p->options.ranks; ++r) {
            if (!holders_has(p, p->order[i], r)) {
                holders_add(p, p->order[i], r);
            }
        }
    }
}

const placement_ops placement_shadow = {
    .name = "shadow",
    .amounts = amounts_nearest,
    .spill = shadow_spill,
};

const placement_ops placement_swap = {
    .name = "swap",
    .amounts = amounts_nearest,
    .owners = owners_swapped,
};

/* How often each expert is there: the next copy goes to the one with most load per copy. */
static void count_copies(tsr_planner *p, const int64_t *loads, int32_t *count)
{
    const int experts = p->options.experts;

    for (int e = 0; e < experts; ++e) {
        count[e] = 1;
    }
    for (int64_t i = (int64_t)p->options.ranks * p->hidden_slots; i > 0; --i) {
        int best = -1;

        for (int e = 0; e < experts; ++e) {
            if (count[e] < p->options.ranks &&
                (best < 0 || loads[e] * count[best] > loads[best] * count[e])) {
                best = e;
            }
        }
        if (best < 0) {
            break;
        }
        ++count[best];
    }
}

/* DeepSeek's EPLB (eplb.py, its global form), with one change: what owns an expert stays where it
 * is, since here only copies move from step to step. Copies are packed by falling load onto the
 * lightest rank with a free slot and without the expert. */
static void eplb_holdings(tsr_planner *p, const int64_t *predicted)
{
    const int experts = p->options.experts, ranks = p->options.ranks;
    int32_t *count = p->shared; /* [E] */

    count_copies(p, predicted, count);
    for (int r = 0; r < ranks; ++r) {
        p->trial_load[r] = 0;
    }
    for (int e = 0; e < experts; ++e) {
        p->unplaced[e] = predicted[e] / count[e];
        p->trial_load[p->owner[e]] += p->unplaced[e];
    }
    plan_order(p, p->unplaced, experts);
    for (int i = 0; i < experts; ++i) {
        const int e = p->order[i];

        for (int copy = 1; copy < count[e]; ++copy) {
            int best = -1;

            for (int r = 0; r < ranks; ++r) {
                if (p->copies[r] < p->hidden_slots && !holders_has(p, e, r) &&
                    (best < 0 || p->trial_load[r] < p->trial_load[best])) {
                    best = r;
                }
            }
            if (best < 0) {
                break;
            }
            holders_add(p, e, best);
            p->trial_load[best] += p->unplaced[e];
        }
    }
}

const placement_ops placement_eplb = {
    .name = "eplb",
    .holdings = eplb_holdings,
    .amounts = amounts_even,
};
