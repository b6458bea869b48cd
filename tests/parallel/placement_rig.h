/* A planner with a plan, loads and owners, and what must hold for every plan. */
#ifndef TSR_TESTS_PLACEMENT_RIG_H
#define TSR_TESTS_PLACEMENT_RIG_H

#include "tests/support/unit_test.h"

#include "parallel/parallel.h"

#include <string.h>

enum { PLACEMENT_RANKS = 64, PLACEMENT_EXPERTS = 256, PLACEMENT_WINDOW = 5 };

typedef struct placement_rig {
    tsr_plan_options options;
    tsr_planner *planner;
    tsr_plan plan;
    tsr_quotas quotas;
    int32_t node[PLACEMENT_RANKS];
    int32_t owner[PLACEMENT_EXPERTS];
    int64_t predicted[PLACEMENT_EXPERTS];
    tsr_load_past past; /* none, if nothing is said */
    int64_t counts[PLACEMENT_RANKS * PLACEMENT_EXPERTS];
} placement_rig;

static inline tsr_plan_options placement_options(tsr_placement_policy policy, int ranks,
                                                 int experts, int slots)
{
    return (tsr_plan_options){.policy = policy,
                              .layers = 1,
                              .ranks = ranks,
                              .experts = experts,
                              .slots = slots,
                              .spill_slots = slots > 1 ? 1 : 0,
                              .budget = slots,
                              .node_budget = experts,
                              .target = 1.05,
                              .window = PLACEMENT_WINDOW};
}

/** Nodes of `per_node` ranks; experts dealt evenly. */
static inline void placement_open(placement_rig *rig, const tsr_plan_options *options, int per_node)
{
    memset(rig, 0, sizeof *rig);
    rig->options = *options;
    for (int r = 0; r < options->ranks; ++r) {
        rig->node[r] = r / per_node;
    }
    rig->options.node = rig->node;
    assert_ok(tsr_planner_create(&rig->options, &rig->planner));
    assert_ok(tsr_plan_create(rig->planner, &rig->plan));
    tsr_expert_owners_even(1, options->experts, options->ranks, rig->owner);
}

static inline void placement_close(placement_rig *rig)
{
    tsr_plan_destroy(&rig->plan);
    tsr_planner_destroy(&rig->planner);
}

/** Holdings, quotas, spill, and quotas again where it added something. */
static inline void placement_run(placement_rig *rig)
{
    assert_ok(tsr_plan_holdings(rig->planner, rig->owner, rig->predicted, &rig->past, &rig->plan));
    assert_ok(tsr_plan_quotas(rig->planner, rig->counts, &rig->plan, &rig->quotas));
    assert_ok(tsr_plan_spill(rig->planner, rig->counts, &rig->plan));
    if (rig->plan.copies_added > 0) {
        assert_ok(tsr_plan_quotas(rig->planner, rig->counts, &rig->plan, &rig->quotas));
    }
}

static inline double placement_residual(const placement_rig *rig)
{
    return (double)rig->quotas.max_load * rig->options.ranks / (double)rig->quotas.total;
}

/** Are these the holders of expert e? The owner comes first. */
static inline void assert_holders(const tsr_holding *holding, int e, int count,
                                  const int32_t *expected)
{
    assert_int_equal(holding->begin[e + 1] - holding->begin[e], count);
    assert_memory_equal(holding->rank + holding->begin[e], expected,
                        (size_t)count * sizeof *expected);
}

#endif
