/* Time to plan a layer: bench_placement [RANKS [EXPERTS [ROUNDS]]]  (64 256 200).
 *
 * One JSON line for each policy and load: prediction, holdings, quotas, spill, and quotas again
 * where the spill added copies; what one rank does in each layer and step, on one core. The goal
 * is a median of at most 1 ms at 64 ranks and 256 experts. */
#include "parallel/parallel.h"
#include "tests/bench/bench_rounds.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_ROUNDS = 10000, WINDOW = 5, RANKS_PER_NODE = 8, SLOTS = 4, TOKENS = 65536 };

typedef struct bench {
    int ranks, experts, rounds;
    int32_t *node, *owner;
    int64_t *counts, *sums, *predicted;
} bench;

static double now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void add_up(const bench *b)
{
    memset(b->sums, 0, (size_t)b->experts * sizeof *b->sums);
    for (int r = 0; r < b->ranks; ++r) {
        for (int e = 0; e < b->experts; ++e) {
            b->sums[e] += b->counts[(int64_t)r * b->experts + e];
        }
    }
}

static tsr_status plan_layer(const bench *b, tsr_planner *planner, tsr_plan *plan,
                             const tsr_load_history *history, tsr_quotas *quotas)
{
    const tsr_load_past past = tsr_load_history_past(history, 0);

    tsr_load_history_predict(history, 0, b->predicted);
    TSR_TRY(tsr_plan_holdings(planner, b->owner, b->predicted, &past, plan));
    TSR_TRY(tsr_plan_quotas(planner, b->counts, plan, quotas));
    TSR_TRY(tsr_plan_spill(planner, b->counts, plan));
    return plan->copies_added == 0 ? TSR_OK : tsr_plan_quotas(planner, b->counts, plan, quotas);
}

static tsr_status run(const bench *b, tsr_placement_policy policy, const char *shape,
                      tsr_planner *planner, tsr_plan *plan, tsr_loads *loads,
                      tsr_load_history *history)
{
    static double seconds[MAX_ROUNDS];
    double residual = 0.0;
    int64_t copies = 0, added = 0;
    tsr_quotas quotas = {.total = 0};

    for (int step = 0; step < WINDOW + b->rounds; ++step) {
        tsr_loads_counts(loads, 0, step, TOKENS, b->counts);
        if (step >= WINDOW) {
            const double start = now();

            TSR_TRY(plan_layer(b, planner, plan, history, &quotas));
            seconds[step - WINDOW] = now() - start;
            residual += (double)quotas.max_load * b->ranks / (double)quotas.total;
            copies += plan->copies;
            added += plan->copies_added;
        }
        add_up(b);
        tsr_load_history_push(history, 0, b->sums);
    }
    bench_sort_rounds(seconds, b->rounds);
    (void)printf("{\"bench\": \"placement\", \"policy\": \"%s\", \"load\": \"%s\", \"ranks\": %d, "
                 "\"experts\": %d, \"us_min\": %.1f, \"us_median\": %.1f, \"us_p90\": %.1f, "
                 "\"max_over_mean\": %.3f, \"copies\": %.1f, \"spilled\": %.2f}\n",
                 tsr_placement_name(policy), shape, b->ranks, b->experts, seconds[0] * 1e6,
                 seconds[b->rounds / 2] * 1e6, seconds[b->rounds * 9 / 10] * 1e6,
                 residual / b->rounds, (double)copies / b->rounds, (double)added / b->rounds);
    return TSR_OK;
}

static tsr_status measure(const bench *b, tsr_placement_policy policy, const char *shape)
{
    tsr_plan_options options = {.policy = policy,
                                .layers = 1,
                                .ranks = b->ranks,
                                .experts = b->experts,
                                .node = b->node,
                                .slots = SLOTS < b->experts ? SLOTS : b->experts,
                                .spill_slots = 1,
                                .budget = 2 * SLOTS,
                                .node_budget = 2 * SLOTS * RANKS_PER_NODE,
                                .target = 1.05,
                                .window = WINDOW};
    tsr_load_options load_options = {
        .layers = 1, .experts = b->experts, .ranks = b->ranks, .seed = 1};
    tsr_planner *planner = NULL;
    tsr_plan plan = {.copies = 0};
    tsr_loads *loads = NULL;
    tsr_load_history *history = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY_GOTO(tsr_planner_create(&options, &planner), out);
    TSR_TRY_GOTO(tsr_plan_create(planner, &plan), out);
    TSR_TRY_GOTO(tsr_load_parse(shape, &load_options), out);
    TSR_TRY_GOTO(tsr_loads_create(&load_options, &loads), out);
    TSR_TRY_GOTO(tsr_load_history_create(1, b->experts, TSR_PREDICT_WINDOW, WINDOW, &history), out);
    st = run(b, policy, shape, planner, &plan, loads, history);
out:
    tsr_load_history_destroy(&history);
    tsr_loads_destroy(&loads);
    tsr_plan_destroy(&plan);
    tsr_planner_destroy(&planner);
    return st;
}

static tsr_status run_all(bench *b)
{
    static const char *const shapes[] = {"maxmean:2", "zipf:0.8", "hot:4@1"};
    const int64_t cells = (int64_t)b->ranks * b->experts;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, b->ranks, sizeof *b->node, (void **)&b->node));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, b->experts, sizeof *b->owner, (void **)&b->owner));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, cells, sizeof *b->counts, (void **)&b->counts));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, b->experts, sizeof *b->sums, (void **)&b->sums));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, b->experts, sizeof *b->predicted,
                                (void **)&b->predicted));
    for (int r = 0; r < b->ranks; ++r) {
        b->node[r] = r / RANKS_PER_NODE;
    }
    tsr_expert_owners_even(1, b->experts, b->ranks, b->owner);
    for (int policy = 0; policy < TSR_PLACEMENT_POLICIES; ++policy) {
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; ++s) {
            TSR_TRY(measure(b, (tsr_placement_policy)policy, shapes[s]));
        }
    }
    return TSR_OK;
}

int main(int argc, char **argv)
{
    bench b = {.ranks = argc > 1 ? atoi(argv[1]) : 64,
               .experts = argc > 2 ? atoi(argv[2]) : 256,
               .rounds = argc > 3 ? atoi(argv[3]) : 200};

    if (b.ranks < 4 || b.experts < 1 || b.rounds < 1 || b.rounds > MAX_ROUNDS) {
        (void)fprintf(stderr, "usage: bench_placement [RANKS >= 4 [EXPERTS [ROUNDS <= %d]]]\n",
                      MAX_ROUNDS);
        return 2;
    }
    const tsr_status st = run_all(&b);
    if (st != TSR_OK) {
        (void)fprintf(stderr, "bench_placement: %s\n", tsr_error_message());
    }
    tsr_mem_free(b.node);
    tsr_mem_free(b.owner);
    tsr_mem_free(b.counts);
    tsr_mem_free(b.sums);
    tsr_mem_free(b.predicted);
    return st == TSR_OK ? 0 : 1;
}
