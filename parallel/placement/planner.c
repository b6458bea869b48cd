/* The planner's memory, its checks, and the calls of a layer. */
#include "parallel/placement/placement_impl.h"

#include <inttypes.h>
#include <string.h>

static const placement_ops *const policies[TSR_PLACEMENT_POLICIES] = {
    [TSR_PLACEMENT_EP] = &placement_ep,       [TSR_PLACEMENT_SHADOW] = &placement_shadow,
    [TSR_PLACEMENT_SWAP] = &placement_swap,   [TSR_PLACEMENT_EPLB] = &placement_eplb,
    [TSR_PLACEMENT_FSSDP] = &placement_fssdp, [TSR_PLACEMENT_QUOTA] = &placement_quota,
};

const char *tsr_placement_name(tsr_placement_policy policy)
{
    return policies[policy]->name;
}

tsr_status tsr_placement_find(const char *name, tsr_placement_policy *out)
{
    for (int i = 0; i < TSR_PLACEMENT_POLICIES; ++i) {
        if (strcmp(policies[i]->name, name) == 0) {
            *out = (tsr_placement_policy)i;
            return TSR_OK;
        }
    }
    return TSR_FAIL(TSR_ERR_ARG, "placement = %s, must be ep, shadow, swap, eplb, fssdp or quota",
                    name);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static tsr_status check_options(const tsr_plan_options *o)
{
    TSR_CHECK(o->layers >= 1 && o->ranks >= 1 && o->experts >= 1, TSR_ERR_ARG,
              "placement: %d layers, %d ranks, %d experts: must be at least 1", o->layers, o->ranks,
              o->experts);
    TSR_CHECK(o->spill_slots >= 0 && o->spill_slots <= o->slots && o->slots <= o->experts &&
                  o->budget >= 0 && o->node_budget >= 0,
              TSR_ERR_ARG,
              "placement: %d slots, %d of them for spill, budgets %d and %d: must be 0 <= spill <= "
              "slots <= %d experts, budgets >= 0",
              o->slots, o->spill_slots, o->budget, o->node_budget, o->experts);
    TSR_CHECK(o->target >= 1.0, TSR_ERR_ARG, "placement: target = %g, must be >= 1", o->target);
    TSR_CHECK(o->window >= 0, TSR_ERR_ARG, "placement: window = %d, must be >= 0", o->window);
    for (int r = 0; r < o->ranks; ++r) {
        const int32_t before = r == 0 ? 0 : o->node[r - 1];

        TSR_CHECK(
            o->node[r] == before || (r > 0 && o->node[r] == before + 1), TSR_ERR_ARG,
            "placement: rank %d is on node %d after %d: nodes must ascend from 0 without gaps", r,
            (int)o->node[r], (int)before);
    }
    return TSR_OK;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Every array of the planner in one block: sizes follow from the options. */
static tsr_status take_memory(tsr_planner *p)
{
    enum { ALIGNED = 64 };
    const int64_t ranks = p->options.ranks, experts = p->options.experts;
    const int64_t layers = p->options.layers, nodes = p->nodes, cells = experts * ranks;
    const int64_t most = larger(larger(p->capacity, ranks), layers);
    const struct {
        void *out; /* the pointer to set */
        int64_t count;
        size_t size;
    } arrays[] = {
        {&p->node, ranks, sizeof *p->node},
        {&p->node_begin, nodes + 1, sizeof *p->node_begin},
        {&p->owner, experts, sizeof *p->owner},
        {&p->holds, cells, sizeof *p->holds},
        {&p->copies, ranks, sizeof *p->copies},
        {&p->added, p->capacity, sizeof *p->added},
        {&p->node_holders, nodes * experts, sizeof *p->node_holders},
        {&p->imports, nodes, sizeof *p->imports},
        {&p->node_free, nodes, sizeof *p->node_free},
        {&p->node_holding, nodes, sizeof *p->node_holding},
        {&p->node_seen, nodes, sizeof *p->node_seen},
        {&p->expert_load, experts, sizeof *p->expert_load},
        {&p->alone, ranks * p->options.window, sizeof *p->alone},
        {&p->load, ranks, sizeof *p->load},
        {&p->amount, p->capacity, sizeof *p->amount},
        {&p->even_counts, cells, sizeof *p->even_counts},
        {&p->layer_key, layers, sizeof *p->layer_key},
        {&p->layer_order, layers, sizeof *p->layer_order},
        {&p->node_count, nodes * experts, sizeof *p->node_count},
        {&p->fixed_load, ranks, sizeof *p->fixed_load},
        {&p->unplaced, experts, sizeof *p->unplaced},
        {&p->shared, experts, sizeof *p->shared},
        {&p->entry_expert, p->capacity, sizeof *p->entry_expert},
        {&p->rank_begin, ranks + 1, sizeof *p->rank_begin},
        {&p->rank_entry, p->capacity, sizeof *p->rank_entry},
        {&p->rank_parent, ranks, sizeof *p->rank_parent},
        {&p->expert_parent, experts, sizeof *p->expert_parent},
        {&p->queue, experts + ranks, sizeof *p->queue},
        {&p->items, most, sizeof *p->items},
        {&p->items_scratch, most, sizeof *p->items_scratch},
        {&p->order, most, sizeof *p->order},
        {&p->parts, p->capacity, sizeof *p->parts},
        {&p->parts_sorted, p->capacity, sizeof *p->parts_sorted},
        {&p->trial_load, ranks, sizeof *p->trial_load},
        {&p->left, ranks, sizeof *p->left},
        {&p->room, p->capacity, sizeof *p->room},
        {&p->at, ranks, sizeof *p->at},
        {&p->quota_begin, experts + 1, sizeof *p->quota_begin},
        {&p->quota, cells + p->capacity, sizeof *p->quota},
    };

    const size_t array_count = sizeof arrays / sizeof *arrays;
    size_t bytes = 0;

    for (size_t i = 0; i < array_count; ++i) {
        bytes += ((size_t)arrays[i].count * arrays[i].size + ALIGNED - 1) / ALIGNED * ALIGNED;
    }
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, bytes, &p->memory));
    bytes = 0;
    for (size_t i = 0; i < array_count; ++i) {
        void *at = (char *)p->memory + bytes;

        memcpy(arrays[i].out, &at, sizeof at);
        bytes += ((size_t)arrays[i].count * arrays[i].size + ALIGNED - 1) / ALIGNED * ALIGNED;
    }
    return tsr_plan_create(p, &p->trial);
}

void tsr_planner_set_budget(tsr_planner *planner, int budget)
{
    const int hidden = planner->options.slots - planner->options.spill_slots;

    planner->options.budget = budget;
    planner->hidden_slots = hidden < budget ? hidden : budget;
}

tsr_status tsr_planner_create(const tsr_plan_options *options, tsr_planner **out)
{
    tsr_planner *p = NULL;

    TSR_TRY(check_options(options));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *p, (void **)&p));
    p->options = *options;
    p->ops = policies[options->policy];
    p->nodes = options->node[options->ranks - 1] + 1;
    tsr_planner_set_budget(p, options->budget);
    p->capacity = options->experts + (int64_t)options->ranks * options->slots;
    const tsr_status st = take_memory(p);
    if (st != TSR_OK) {
        tsr_planner_destroy(&p);
        return st;
    }
    for (int r = 0; r < options->ranks; ++r) {
        p->node[r] = options->node[r];
        p->node_begin[p->node[r] + 1] = r + 1;
    }
    p->options.node = p->node;
    *out = p;
    return TSR_OK;
}

void tsr_planner_destroy(tsr_planner **planner_p)
{
    if (*planner_p != NULL) {
        tsr_plan_destroy(&(*planner_p)->trial);
        tsr_mem_free((*planner_p)->memory);
        tsr_mem_free(*planner_p);
        *planner_p = NULL;
    }
}

tsr_status tsr_plan_create(const tsr_planner *p, tsr_plan *plan_out)
{
    tsr_plan plan = {.copies = 0};

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, 2 * (p->options.experts + 1 + p->capacity),
                                sizeof *plan.memory, (void **)&plan.memory));
    *plan_out = plan;
    return TSR_OK;
}

void tsr_plan_destroy(tsr_plan *plan)
{
    tsr_mem_free(plan->memory);
    *plan = (tsr_plan){.copies = 0};
}

/* ---- what policies share --------------------------------------------------------------------- */

/* Merging runs of 1, 2, 4 ...: qsort() may allocate, and does not keep the order of equal keys. */
void plan_sort(tsr_planner *p, int count)
{
    plan_item *from = p->items, *to = p->items_scratch;

    for (int run = 1; run < count; run *= 2) {
        for (int begin = 0; begin < count; begin += 2 * run) {
            const int middle = begin + run < count ? begin + run : count;
            const int end = middle + run < count ? middle + run : count;
            int a = begin, b = middle;

            for (int i = begin; i < end; ++i) {
                const bool takes_a = a < middle && (b >= end || from[a].key <= from[b].key);

                to[i] = takes_a ? from[a] : from[b];
                a += takes_a;
                b += !takes_a;
            }
        }
        plan_item *const sorted = to;
        to = from;
        from = sorted;
    }
    p->items = from;
    p->items_scratch = to;
}

void plan_order(tsr_planner *p, const int64_t *keys, int count)
{
    for (int i = 0; i < count; ++i) {
        p->items[i] = (plan_item){.key = -keys[i], .id = i};
    }
    plan_sort(p, count);
    for (int i = 0; i < count; ++i) {
        p->order[i] = p->items[i].id;
    }
}

double plan_token_s(const tsr_planner *p)
{
    return 3.0 * p->options.costs.token_s + 4.0 * p->options.costs.row_s;
}

bool plan_pays(tsr_planner *p, int64_t saved)
{
    const double token_s = plan_token_s(p);
    int64_t most = 0; /* additions on one rank */

    memset(p->left, 0, (size_t)p->options.ranks * sizeof *p->left);
    for (int64_t i = 0; i < p->added_count; ++i) {
        most = larger(most, ++p->left[p->added[i].rank]);
    }
    return token_s > 0.0 ? token_s * (double)saved > p->options.costs.copy_s * (double)most
                         : saved > 0;
}

/* ---- a layer --------------------------------------------------------------------------------- */

/* So many tokens on every pair would be added up without overflow. */
static int64_t most_tokens(const tsr_planner *p)
{
    return INT64_MAX / 4 / ((int64_t)p->options.experts * p->options.ranks * p->options.layers);
}

tsr_status plan_check(const tsr_planner *p, int64_t i, int32_t owner, int64_t load)
{
    const int64_t experts = p->options.experts;

    TSR_CHECK(owner >= 0 && owner < p->options.ranks, TSR_ERR_ARG,
              "layer %" PRId64 ", expert %" PRId64 ": owner = %d, must be in [0, %d)", i / experts,
              i % experts, (int)owner, p->options.ranks);
    TSR_CHECK(load >= 0 && load <= most_tokens(p), TSR_ERR_ARG,
              "layer %" PRId64 ", expert %" PRId64 ": load = %" PRId64 ", must be in [0, %" PRId64
              "]",
              i / experts, i % experts, load, most_tokens(p));
    return TSR_OK;
}

tsr_status tsr_plan_holdings(tsr_planner *p, const int32_t *owner, const int64_t *predicted,
                             const tsr_load_past *past, tsr_plan *plan)
{
    p->past = past != NULL ? *past : (tsr_load_past){.steps = 0};
    TSR_CHECK(p->past.steps >= 0 && p->past.steps <= p->options.window, TSR_ERR_ARG,
              "placement: %d past steps, must be in [0, %d]", p->past.steps, p->options.window);
    for (int e = 0; e < p->options.experts; ++e) {
        TSR_TRY(plan_check(p, e, owner[e], predicted[e]));
    }
    p->quoted = NULL;
    holders_from_owners(p, owner);
    if (p->ops->holdings != NULL && p->hidden_slots > 0) {
        p->ops->holdings(p, predicted);
    }
    holders_write(p, plan);
    plan->copies_added = 0;
    return TSR_OK;
}

/* The exact loads; gives whether every count is in range. */
static bool add_up(tsr_planner *p, const int64_t *counts)
{
    const int64_t most = most_tokens(p);
    bool is_right = true;

    memset(p->expert_load, 0, (size_t)p->options.experts * sizeof *p->expert_load);
    for (int r = 0; r < p->options.ranks; ++r) {
        for (int e = 0; e < p->options.experts; ++e) {
            const int64_t tokens = *counts++;

            is_right = is_right && tokens >= 0 && tokens <= most;
            p->expert_load[e] += is_right ? tokens : 0;
        }
    }
    p->total = 0;
    for (int e = 0; e < p->options.experts; ++e) {
        p->total += p->expert_load[e];
    }
    return is_right;
}

tsr_status tsr_plan_quotas(tsr_planner *p, const int64_t *counts, const tsr_plan *plan,
                           tsr_quotas *quotas_out)
{
    p->quoted = NULL;
    TSR_CHECK(plan->holding.chunks == p->options.experts, TSR_ERR_STATE,
              "the plan has no holders yet: tsr_plan_holdings() comes first");
    TSR_CHECK(add_up(p, counts), TSR_ERR_ARG, "counts of tokens: one is below 0 or above %" PRId64,
              most_tokens(p));
    p->ops->amounts(p, counts, &plan->holding);
    p->max_load = loads_from_amounts(p, &plan->holding, p->load);
    quotas_write(p, counts, &plan->holding);
    p->quoted = plan;
    *quotas_out = (tsr_quotas){
        .begin = p->quota_begin,
        .quota = p->quota,
        .load = p->load,
        .max_load = p->max_load,
        .total = p->total,
    };
    return TSR_OK;
}

tsr_status tsr_plan_spill(tsr_planner *p, const int64_t *counts, tsr_plan *plan)
{
    TSR_CHECK(p->quoted == plan, TSR_ERR_STATE,
              "a spill follows the quotas of the same plan and counts");
    holders_from(p, &plan->holding);
    if (p->ops->spill != NULL) {
        p->ops->spill(p, counts, &plan->holding);
    }
    plan->copies_added = 0;
    if (p->added_count > 0) {
        p->quoted = NULL;
        holders_write_added(p, plan);
        holders_write(p, plan);
    }
    return TSR_OK;
}
