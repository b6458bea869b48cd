#include "launch/imbalance.h"

#include <math.h>
#include <string.h>

/* The owners are planned after WARM_UP steps, and looked at when they are AGE steps old. */
enum { WARM_UP = 5, AGE = 10, STEPS = 8, LAYERS = 4, RESHARD_EVERY = 100, STATE_BYTES = 16 };

typedef struct simulation {
    const imbalance_case *c;
    tsr_placement_policy policy;
    int layers;
    tsr_planner *planner;
    tsr_plan plan;
    tsr_loads *loads;
    tsr_load_history *history;
    tsr_cost_model *model;
    int32_t *node, *owner, *better;       /* [P]; [L,E] */
    int64_t *counts, *predicted, *tokens; /* [P,E]; [L,E]; [E] */
} simulation;

static tsr_plan_options plan_options(const simulation *s)
{
    const imbalance_case *c = s->c;
    tsr_plan_options options = {.policy = s->policy,
                                .layers = s->layers,
                                .ranks = c->cluster.ranks,
                                .experts = c->shape.experts,
                                .node = s->node,
                                .slots = c->slots,
                                .target = 1.05,
                                .window = WARM_UP,
                                .costs = tsr_cost_for_plan(&c->cluster, &c->shape)};

    tsr_cost_budgets(&c->cluster, &c->shape, &options.budget, &options.node_budget);
    if (s->policy == TSR_PLACEMENT_QUOTA) {
        options.spill_slots = c->slots > 1 ? 1 : 0;
    } else if (c->cluster.ranks > c->cluster.node_ranks) {
        options.budget = options.node_budget; /* the paper's t: by the bandwidth between nodes */
    }
    return options;
}

static tsr_status open_simulation(simulation *s)
{
    const imbalance_case *c = s->c;
    const int64_t ranks = c->cluster.ranks, experts = c->shape.experts;
    tsr_load_options load = c->load;

    s->layers = c->shape.layers < LAYERS ? c->shape.layers : LAYERS;
    load.layers = s->layers;
    load.experts = c->shape.experts;
    load.ranks = c->cluster.ranks;
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, ranks, sizeof *s->node, (void **)&s->node));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, s->layers * experts, sizeof *s->owner,
                                (void **)&s->owner));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, s->layers * experts, sizeof *s->better,
                                (void **)&s->better));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, ranks * experts, sizeof *s->counts,
                                (void **)&s->counts));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, s->layers * experts, sizeof *s->predicted,
                                (void **)&s->predicted));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, experts, sizeof *s->tokens, (void **)&s->tokens));
    for (int r = 0; r < ranks; ++r) {
        s->node[r] = r / c->cluster.node_ranks;
    }
    tsr_expert_owners_even(s->layers, c->shape.experts, c->cluster.ranks, s->owner);
    const tsr_plan_options options = plan_options(s);
    TSR_TRY(tsr_planner_create(&options, &s->planner));
    TSR_TRY(tsr_plan_create(s->planner, &s->plan));
    TSR_TRY(tsr_loads_create(&load, &s->loads));
    TSR_TRY(tsr_load_history_create(s->layers, c->shape.experts, TSR_PREDICT_WINDOW, WARM_UP,
                                    &s->history));
    return tsr_cost_model_create(&c->cluster, &c->shape, &s->model);
}

static void close_simulation(simulation *s)
{
    tsr_cost_model_destroy(&s->model);
    tsr_load_history_destroy(&s->history);
    tsr_loads_destroy(&s->loads);
    tsr_plan_destroy(&s->plan);
    tsr_planner_destroy(&s->planner);
    tsr_mem_free(s->node);
    tsr_mem_free(s->owner);
    tsr_mem_free(s->better);
    tsr_mem_free(s->counts);
    tsr_mem_free(s->predicted);
    tsr_mem_free(s->tokens);
}

static void draw(simulation *s, int layer, int step)
{
    const int experts = s->c->shape.experts;

    tsr_loads_counts(s->loads, layer, step, s->c->shape.tokens * s->c->shape.top_k, s->counts);
    memset(s->tokens, 0, (size_t)experts * sizeof *s->tokens);
    for (int64_t i = 0; i < (int64_t)s->c->cluster.ranks * experts; ++i) {
        s->tokens[i % experts] += s->counts[i];
    }
}

/* New owners, if moving pays within the steps until the next time; gives its time per step. */
static tsr_status reshard(simulation *s, imbalance_result *sum, double *move_s)
{
    const imbalance_case *c = s->c;
    const double state = tsr_expert_bytes(&c->shape) / 2.0 * STATE_BYTES;
    const bool is_one_node = c->cluster.ranks <= c->cluster.node_ranks;
    const double rate =
        is_one_node ? c->cluster.node_bytes_s : c->cluster.network_bytes_s / c->cluster.node_ranks;
    tsr_move move;

    for (int layer = 0; layer < s->layers; ++layer) {
        tsr_load_history_predict(s->history, layer,
                                 s->predicted + (int64_t)layer * c->shape.experts);
    }
    TSR_TRY(tsr_plan_owners(s->planner, s->predicted, s->owner, s->better));
    TSR_TRY(tsr_plan_weigh(s->planner, s->predicted, s->owner, s->better, RESHARD_EVERY,
                           state / rate, &move));
    if (move.pays) {
        int32_t *const old = s->owner;

        s->owner = s->better;
        s->better = old;
        sum->moved = (double)move.experts * c->shape.layers / s->layers;
        *move_s = move.cost_s / RESHARD_EVERY / s->layers;
    }
    return TSR_OK;
}

static tsr_status plan_layer(simulation *s, int layer, tsr_quotas *quotas)
{
    const tsr_load_past past = tsr_load_history_past(s->history, layer);

    tsr_load_history_predict(s->history, layer, s->predicted);
    TSR_TRY(tsr_plan_holdings(s->planner, s->owner + (int64_t)layer * s->c->shape.experts,
                              s->predicted, &past, &s->plan));
    TSR_TRY(tsr_plan_quotas(s->planner, s->counts, &s->plan, quotas));
    TSR_TRY(tsr_plan_spill(s->planner, s->counts, &s->plan));
    return s->plan.copies_added == 0 ? TSR_OK
                                     : tsr_plan_quotas(s->planner, s->counts, &s->plan, quotas);
}

static void add(const simulation *s, const tsr_quotas *quotas, imbalance_result *sum)
{
    const int ranks = s->c->cluster.ranks;
    const double ratio = (double)quotas->max_load * ranks / (double)quotas->total;
    const bool plans_exactly =
        s->policy == TSR_PLACEMENT_QUOTA || s->policy == TSR_PLACEMENT_SHADOW;
    const tsr_layer_cost cost = tsr_cost_layer(s->model, &s->plan, quotas, plans_exactly);

    sum->ratio += ratio;
    sum->worst_ratio = fmax(sum->worst_ratio, ratio);
    sum->copies += (double)s->plan.copies;
    sum->spilled += (double)s->plan.copies_added;
    sum->step_s += cost.step_s;
    sum->hidden_s += cost.hidden_s;
    sum->exposed_s += cost.exposed_s + cost.spill_s + cost.plan_s;
    sum->exchange_s += cost.exchange_s;
    sum->compute_s += cost.compute_s;
    sum->dense_s += cost.dense_s;
    sum->node_bytes += cost.node_bytes / ranks;
    sum->network_bytes += cost.network_bytes / ranks;
    sum->weight_bytes += cost.weight_bytes / ranks;
}

static tsr_status simulate(simulation *s, imbalance_result *sum)
{
    double move_s = 0.0;

    for (int step = 0; step < WARM_UP + AGE + STEPS; ++step) {
        if (step == WARM_UP) {
            TSR_TRY(reshard(s, sum, &move_s));
            step += AGE - WARM_UP; /* what is forgotten until then need not be drawn */
        }
        for (int layer = 0; layer < s->layers; ++layer) {
            draw(s, layer, step);
            if (step >= WARM_UP + AGE) {
                tsr_quotas quotas;

                TSR_TRY(plan_layer(s, layer, &quotas));
                add(s, &quotas, sum);
            }
            tsr_load_history_push(s->history, layer, s->tokens);
        }
    }
    const double count = (double)s->layers * STEPS;
    double *const means[] = {&sum->ratio,      &sum->copies,        &sum->spilled,
                             &sum->step_s,     &sum->hidden_s,      &sum->exposed_s,
                             &sum->exchange_s, &sum->compute_s,     &sum->dense_s,
                             &sum->node_bytes, &sum->network_bytes, &sum->weight_bytes};
    for (size_t i = 0; i < sizeof means / sizeof *means; ++i) {
        *means[i] /= count;
    }
    sum->step_s += move_s;
    sum->exposed_s += move_s;
    return TSR_OK;
}

tsr_status imbalance_run(const imbalance_case *c, tsr_placement_policy policy,
                         imbalance_result *out)
{
    const bool has_copies = policy != TSR_PLACEMENT_EP && policy != TSR_PLACEMENT_SWAP;
    simulation s = {.c = c, .policy = policy};
    imbalance_result sum = {.ratio = 0.0};

    tsr_status st = open_simulation(&s);
    if (st == TSR_OK) {
        st = simulate(&s, &sum);
    }
    close_simulation(&s);
    sum.memory_bytes = tsr_cost_memory(&c->cluster, &c->shape, has_copies ? c->slots : 0);
    if (st == TSR_OK) {
        *out = sum;
    }
    return st;
}
