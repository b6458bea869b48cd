/* Hecate's FSSDP: sparse materialisation by Algorithm 1, and calibration.
 *
 * Source: arXiv:2502.02581, section 4. The paper leaves assignSlotsByLoad open; here an expert gets
 * the part of the slots not yet given that its load is of the loads not yet served, rounded. */
#include "parallel/placement/placement_impl.h"

/* The rank that gets the next copy of e: in the node with fewest holders of e, then with most free
 * slots, then the rank with most; -1: none can. */
static int next_rank(const tsr_planner *p, int e, int slots)
{
    int best = -1;

    for (int r = 0; r < p->options.ranks; ++r) {
        if (p->copies[r] >= slots || holders_has(p, e, r)) {
            continue;
        }
        if (best < 0) {
            best = r;
            continue;
        }
        const int n = p->node[r], b = p->node[best];
        int order = *holders_in_node(p, e, n) - *holders_in_node(p, e, b);

        order = order != 0 ? order : p->node_free[b] - p->node_free[n];
        order = order != 0 ? order : p->copies[r] - p->copies[best];
        best = order < 0 ? r : best;
    }
    return best;
}

static int count_holders(tsr_planner *p, int e, int slots)
{
    int count = 0;

    for (int n = 0; n < p->nodes; ++n) {
        p->node_free[n] = 0;
    }
    for (int r = 0; r < p->options.ranks; ++r) {
        count += holders_has(p, e, r);
        p->node_free[p->node[r]] += slots > p->copies[r] ? slots - p->copies[r] : 0;
    }
    return count;
}

/* The memory-bound branch: free slots are spread over the hottest `count` experts by load. */
static void spread(tsr_planner *p, const int64_t *loads, int count, int slots)
{
    int64_t free = 0, load = 0;

    for (int r = 0; r < p->options.ranks; ++r) {
        free += slots > p->copies[r] ? slots - p->copies[r] : 0;
    }
    for (int i = 0; i < count; ++i) {
        load += loads[p->order[i]];
    }
    for (int i = 0; i < count && load > 0; ++i) {
        const int e = p->order[i];
        const int room = p->options.ranks - count_holders(p, e, slots);
        int64_t copies = (2 * free * loads[e] + load) / (2 * load);

        for (copies = copies < room ? copies : room; copies > 0; --copies) {
            const int rank = next_rank(p, e, slots);

            if (rank < 0) {
                break;
            }
            holders_add(p, e, rank);
            --p->node_free[p->node[rank]];
            --free;
        }
        load -= loads[e];
    }
}

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

/* Algorithm 1 on top of what is held: slots in all, of which every rank has `room` left. */
static void materialise(tsr_planner *p, const int64_t *loads, int slots, int room)
{
    const int count = smaller(p->options.budget, p->options.experts);

    plan_order(p, loads, p->options.experts);
    if (count > room) {
        spread(p, loads, count, slots);
        return;
    }
    for (int i = 0; i < count; ++i) {
        for (int r = 0; r < p->options.ranks; ++r) {
            if (!holders_has(p, p->order[i], r)) {
                holders_add(p, p->order[i], r);
            }
        }
    }
}

static void fssdp_holdings(tsr_planner *p, const int64_t *predicted)
{
    materialise(p, predicted, p->hidden_slots, p->hidden_slots);
}

/* Algorithm 1 again with the true counts and the slots that are left; kept if the layer gets
 * faster although nothing hides the weights' way. */
static void fssdp_spill(tsr_planner *p, const int64_t *counts, const tsr_holding *holding)
{
    int fullest = 0;

    (void)holding;
    if (!p->options.calibrates) {
        return;
    }
    for (int r = 0; r < p->options.ranks; ++r) {
        fullest = p->copies[r] > fullest ? p->copies[r] : fullest;
    }
    materialise(p, p->expert_load, p->options.slots, p->options.slots - fullest);
    if (!plan_pays(p, p->max_load - try_nearest(p, counts))) {
        holders_undo(p, 0);
    }
}

const placement_ops placement_fssdp = {
    .name = "fssdp",
    .holdings = fssdp_holdings,
    .amounts = amounts_nearest,
    .spill = fssdp_spill,
    .owners = owners_heterogeneous,
};
