/* Each policy on examples worked out by hand. */
#include "tests/parallel/placement_rig.h"

static placement_rig rig; /* large: not on the stack */

/* 4 ranks in nodes of 2, 8 experts, 2 to a rank. */
static void open_eight(tsr_placement_policy policy, int slots, int spill_slots, int budget)
{
    tsr_plan_options options = placement_options(policy, 4, 8, slots);

    options.spill_slots = spill_slots;
    options.budget = budget;
    placement_open(&rig, &options, 2);
}

static void set_predicted(const int64_t *loads)
{
    memcpy(rig.predicted, loads, 8 * sizeof *loads);
}

/* All tokens of expert e are on rank `source`. */
static void set_counts(int source, const int64_t *loads)
{
    memset(rig.counts, 0, sizeof rig.counts);
    memcpy(rig.counts + (ptrdiff_t)8 * source, loads, 8 * sizeof *loads);
}

static void plan_from_prediction(void)
{
    assert_ok(tsr_plan_holdings(rig.planner, rig.owner, rig.predicted, &rig.past, &rig.plan));
}

static void algorithm_1_copies_the_hottest_everywhere(void **state)
{
    (void)state;
    const int64_t loads[8] = {10, 11, 50, 12, 13, 60, 14, 15};
    const int32_t of_2[4] = {1, 0, 2, 3}, of_5[4] = {2, 0, 1, 3}, of_7[1] = {3};

    open_eight(TSR_PLACEMENT_FSSDP, 2, 0, 2); /* t <= m */
    set_predicted(loads);
    plan_from_prediction();
    assert_int_equal(rig.plan.copies, 6);
    assert_holders(&rig.plan.holding, 2, 4, of_2);
    assert_holders(&rig.plan.holding, 5, 4, of_5);
    assert_holders(&rig.plan.holding, 7, 1, of_7);
    placement_close(&rig);
}

/* t = 3 > m = 1: 4 slots for experts 0, 1, 2 with loads 60, 30, 10.
 * 0: round(4 * 60 / 100) = 2 copies; node 1 has none of it: rank 2; then the nodes have one holder
 *    each, and node 0 more free slots: rank 1, since rank 0 has it.
 * 1: round(2 * 30 / 40) = 2: node 1: rank 3; then only rank 0 has a slot, and it owns expert 1.
 * 2: round(1 * 10 / 10) = 1: rank 0. */
static void algorithm_1_spreads_slots_by_load(void **state)
{
    (void)state;
    const int64_t loads[8] = {60, 30, 10, 9, 8, 7, 6, 5};
    const int32_t of_0[3] = {0, 1, 2}, of_1[2] = {0, 3}, of_2[2] = {1, 0};

    open_eight(TSR_PLACEMENT_FSSDP, 1, 0, 3);
    set_predicted(loads);
    plan_from_prediction();
    assert_int_equal(rig.plan.copies, 4);
    assert_holders(&rig.plan.holding, 0, 3, of_0);
    assert_holders(&rig.plan.holding, 1, 2, of_1);
    assert_holders(&rig.plan.holding, 2, 2, of_2);
    placement_close(&rig);
}

/* 4 ranks in nodes of 2, 4 experts, 2 layers, t = 1, 2 places a rank. Hot: 0 of layer 0, 1 of
 * layer 1. The heaviest of the others are 40 and 60: layer 1 is first.
 * Layer 1: 3 (60): all equal: rank 0. 2 (50): node 1 is empty: rank 2. 0 (10): node 1: rank 3.
 * Layer 0: 1 (40): no loads yet, node 1 has fewer places (2 to 3): rank 2. 2 (30): node 0, where
 *          rank 0 has fewer places. 3 (20): node 0 (30 < 40), where only rank 1 has places.
 * Hot: a place is left on ranks 1 and 3: 1 of layer 1 to rank 1, 0 of layer 0 to rank 3. */
static void algorithm_2_levels_what_is_not_copied(void **state)
{
    (void)state;
    const int64_t loads[8] = {100, 40, 30, 20, 10, 90, 50, 60};
    const int32_t expected[8] = {3, 2, 0, 1, 3, 1, 2, 0};
    int32_t owner[8], better[8];
    tsr_plan_options options = placement_options(TSR_PLACEMENT_FSSDP, 4, 4, 1);

    options.layers = 2;
    placement_open(&rig, &options, 2);
    tsr_expert_owners_even(2, 4, 4, owner);
    assert_ok(tsr_plan_owners(rig.planner, loads, owner, better));
    assert_memory_equal(better, expected, sizeof expected);
    owner[7] = -1;
    assert_int_equal(tsr_plan_owners(rig.planner, loads, owner, better), TSR_ERR_ARG);
    placement_close(&rig);
}

static void hot_owners_are_spread(void **state)
{
    (void)state;
    int64_t loads[32];
    int32_t owner[32], better[32];
    int hot[4] = {0}, owned[4] = {0};
    tsr_plan_options options = placement_options(TSR_PLACEMENT_FSSDP, 4, 32, 4);

    placement_open(&rig, &options, 2);
    for (int e = 0; e < 32; ++e) {
        loads[e] = 100 - e; /* 0 to 3 are hot, and all on rank 0 */
    }
    tsr_expert_owners_even(1, 32, 4, owner);
    assert_ok(tsr_plan_owners(rig.planner, loads, owner, better));
    for (int e = 0; e < 32; ++e) {
        hot[better[e]] += e < 4;
        ++owned[better[e]];
    }
    for (int r = 0; r < 4; ++r) {
        assert_int_equal(hot[r], 1);
        assert_int_equal(owned[r], 8);
    }
    placement_close(&rig);
}

static int64_t quota(int e, int source, int rank)
{
    for (int64_t i = rig.quotas.begin[e]; i < rig.quotas.begin[e + 1]; ++i) {
        const tsr_quota *q = &rig.quotas.quota[i];

        if (q->source == source && rig.plan.holding.rank[q->at] == rank) {
            return q->tokens;
        }
    }
    return 0;
}

/* Expert 0 is on ranks 0 and 2, one in each node; expert 1 on 0, 1: in one node. */
static void dispatch_of_the_paper_goes_to_the_nearest(void **state)
{
    (void)state;
    int32_t begin[9] = {0, 2, 4, 5, 6, 7, 8, 9, 10}, rank[10] = {0, 2, 0, 1, 1, 1, 2, 2, 3, 3};

    open_eight(TSR_PLACEMENT_FSSDP, 1, 0, 1);
    rig.plan.holding = (tsr_holding){.chunks = 8, .begin = begin, .rank = rank};
    const int64_t of_0[4] = {10, 5, 7, 3}, of_1[4] = {4, 2, 6, 3};
    for (int r = 0; r < 4; ++r) {
        rig.counts[8 * r] = of_0[r];
        rig.counts[8 * r + 1] = of_1[r];
    }
    assert_ok(tsr_plan_quotas(rig.planner, rig.counts, &rig.plan, &rig.quotas));
    assert_int_equal(quota(0, 0, 0), 10); /* own copy */
    assert_int_equal(quota(0, 1, 0), 5);  /* in the node */
    assert_int_equal(quota(0, 2, 2), 7);
    assert_int_equal(quota(0, 3, 2), 3);
    assert_int_equal(quota(1, 0, 0), 4);
    assert_int_equal(quota(1, 1, 1), 2);
    /* 9 from afar, 4 and 5: who gets one more turns with the expert's number */
    assert_int_equal(quota(1, 2, 0) + quota(1, 3, 0), 4);
    assert_int_equal(quota(1, 2, 1) + quota(1, 3, 1), 5);
    placement_close(&rig);
}

/* After the gate expert 7 turns out hot: one more slot a rank is left, and it goes everywhere if
 * a token's time on the fullest rank is worth the weights' way. */
static void calibration_looks_again(void **state)
{
    (void)state;
    const int64_t predicted[8] = {50, 1, 1, 1, 1, 1, 1, 1},
                  true_loads[8] = {9, 1, 1, 1, 1, 1, 1, 90};
    const int32_t of_7[4] = {3, 0, 1, 2};

    tsr_plan_options options = placement_options(TSR_PLACEMENT_FSSDP, 4, 8, 2);

    options.budget = 1;
    options.calibrates = true;
    options.costs = (tsr_plan_costs){.token_s = 1e-6, .copy_s = 7e-4};
    placement_open(&rig, &options, 2);
    set_predicted(predicted);
    for (int r = 0; r < 4; ++r) {
        memcpy(rig.counts + (ptrdiff_t)8 * r, true_loads, sizeof true_loads);
    }
    plan_from_prediction();
    assert_ok(tsr_plan_quotas(rig.planner, rig.counts, &rig.plan, &rig.quotas));
    assert_int_equal(rig.quotas.max_load, 9 + 360 + 4); /* rank 3 */
    assert_ok(tsr_plan_spill(rig.planner, rig.counts, &rig.plan));
    /* then 107 at most (9 + 90 + twice 4): 3 * 1e-6 * 266 = 8e-4 for 1 copy of 7e-4 a rank */
    assert_int_equal(rig.plan.copies_added, 3);
    assert_holders(&rig.plan.added, 7, 4, of_7);
    placement_close(&rig);
}

static void calibration_must_pay(void **state)
{
    (void)state;
    const int64_t loads[8] = {9, 1, 1, 1, 1, 1, 1, 90};
    tsr_plan_options options = placement_options(TSR_PLACEMENT_FSSDP, 4, 8, 2);

    options.budget = 1;
    options.calibrates = true;
    options.costs = (tsr_plan_costs){.token_s = 1e-6, .copy_s = 9e-4};
    placement_open(&rig, &options, 2);
    set_predicted((const int64_t[8]){50, 1, 1, 1, 1, 1, 1, 1});
    for (int r = 0; r < 4; ++r) {
        memcpy(rig.counts + (ptrdiff_t)8 * r, loads, sizeof loads);
    }
    placement_run(&rig);
    assert_int_equal(rig.plan.copies_added, 0);
    assert_int_equal(rig.quotas.load[3], 9 + 360 + 4); /* as given out before */
    placement_close(&rig);
}

/* Costs: a token 3 + 4 = 7 us, a copy 100 us. 90 -> 60 saves 210, 60 -> 50 saves 70. */
static void shadows_are_made_while_they_pay(void **state)
{
    (void)state;
    const int64_t loads[8] = {50, 10, 90, 10, 60, 10, 10, 10};
    tsr_plan_options options = placement_options(TSR_PLACEMENT_SHADOW, 4, 8, 4);

    options.costs = (tsr_plan_costs){.token_s = 1e-6, .row_s = 1e-6, .copy_s = 1e-4};
    placement_open(&rig, &options, 2);
    set_predicted(loads);
    set_counts(0, loads);
    plan_from_prediction();
    assert_int_equal(rig.plan.copies, 0);
    placement_run(&rig);
    assert_int_equal(rig.plan.copies_added, 3);
    assert_int_equal(rig.plan.holding.begin[3] - rig.plan.holding.begin[2], 4);
    assert_int_equal(quota(2, 0, 0), 90);
    assert_int_equal(quota(4, 0, 2), 60);
    placement_close(&rig);
}

/* Ranks have 90 + 10, 60 + 10, 10 + 10, 10 + 20. Rank 0 gives 90 for 10 to rank 2: 20, 100: worse;
 * nothing else helps rank 0, whose heaviest is 90. With 50 + 50 there is a swap. */
static void owners_swap_while_that_helps(void **state)
{
    (void)state;
    const int64_t stuck[8] = {90, 10, 60, 10, 10, 10, 10, 20};
    const int64_t loads[8] = {50, 50, 60, 10, 10, 10, 10, 20};
    const int32_t expected[8] = {2, 0, 1, 1, 0, 2, 3, 3};
    int32_t better[8];

    open_eight(TSR_PLACEMENT_SWAP, 0, 0, 0);
    assert_ok(tsr_plan_owners(rig.planner, stuck, rig.owner, better));
    assert_memory_equal(better, rig.owner, sizeof better);
    assert_ok(tsr_plan_owners(rig.planner, loads, rig.owner, better));
    assert_memory_equal(better, expected, sizeof expected); /* 60 70 60 30: no swap lowers 70 */
    placement_close(&rig);
}

/* 4 slots, loads 80 40 and 10s: copies go to 0 (80), then 0 or 1 (40 each: the lower), then 1
 * (40 > 26), then 0 (26 > 20): 0 has 4 of 20, 1 two of 20. Owners carry 20 + 20, 20, 20, 20;
 * copies of 0 go to 1, 2, 3, that of 1 finds only rank 0's slot, and rank 0 has it: dropped. */
static void eplb_packs_copies(void **state)
{
    (void)state;
    const int64_t loads[8] = {80, 40, 10, 10, 10, 10, 10, 10};
    const int32_t of_0[4] = {0, 1, 2, 3}, of_1[1] = {0};

    open_eight(TSR_PLACEMENT_EPLB, 1, 0, 1);
    set_predicted(loads);
    set_counts(1, loads);
    placement_run(&rig);
    assert_holders(&rig.plan.holding, 0, 4, of_0);
    assert_holders(&rig.plan.holding, 1, 1, of_1);
    for (int r = 0; r < 4; ++r) {
        assert_int_equal(quota(0, 1, r), 20); /* even shares, wherever they come from */
    }
    placement_close(&rig);
}

static void copies_serve_their_node(void **state)
{
    (void)state;
    /* all expert 0: two copies level 4 ranks' loads least; one goes to the other node */
    const int64_t loads[8] = {300, 0, 0, 0, 0, 0, 0, 0};
    const int32_t of_0[4] = {0, 1, 2, 3};

    open_eight(TSR_PLACEMENT_QUOTA, 1, 0, 1);
    set_predicted(loads);
    set_counts(3, loads);
    placement_run(&rig);
    assert_holders(&rig.plan.holding, 0, 4, of_0);
    for (int r = 0; r < 4; ++r) {
        assert_int_equal(quota(0, 3, r), 75);
    }
    placement_close(&rig);
    tsr_plan_options options = placement_options(TSR_PLACEMENT_QUOTA, 4, 8, 1);
    options.spill_slots = 0;
    options.node_budget = 0; /* nothing comes from other nodes unnoticed */
    placement_open(&rig, &options, 2);
    set_predicted(loads);
    set_counts(3, loads);
    plan_from_prediction();
    assert_holders(&rig.plan.holding, 0, 2, of_0);
    placement_close(&rig);
}

/* Even loads: all that is needed is that a rank is not the only holder of all its tokens' experts,
 * so one copy a rank, in its node. The slots left take what pays: a node keeps half of an expert's
 * 100 tokens, a rank a quarter. */
static void slots_left_take_what_pays(void **state)
{
    (void)state;
    static const struct {
        double fill_tokens;
        int64_t copies;
    } cases[] = {{0.0, 16}, {24.9, 16}, {25.0, 12}, {49.9, 12}, {50.0, 4}};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        tsr_plan_options options = placement_options(TSR_PLACEMENT_QUOTA, 4, 8, 4);

        options.spill_slots = 0;
        options.fill_tokens = cases[i].fill_tokens;
        placement_open(&rig, &options, 2);
        for (int e = 0; e < 8; ++e) {
            rig.predicted[e] = 100;
        }
        plan_from_prediction();
        assert_int_equal(rig.plan.copies, cases[i].copies);
        placement_close(&rig);
    }
}

/* Two ranks, 400 tokens expected on each. Copies are made where what a rank has alone has once been
 * more than 1.025 times that, and then of the heaviest expert. In one of two steps rank 0's had
 * `peak` tokens, at the cost of rank 1's. */
static void past_loads_decide_what_is_loosened(void **state)
{
    (void)state;
    static const struct {
        int64_t peak, copies;
    } cases[] = {{100, 0}, {110, 0}, {111, 1}, {250, 1}};
    static const int32_t of_0[] = {0, 1};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        tsr_plan_options options = placement_options(TSR_PLACEMENT_QUOTA, 2, 8, 4);
        int64_t steps[2][8];

        options.spill_slots = 0;
        options.fill_tokens = 1e9;
        placement_open(&rig, &options, 2);
        for (int e = 0; e < 8; ++e) {
            rig.predicted[e] = steps[0][e] = steps[1][e] = 100;
        }
        rig.predicted[0] = 101; /* so that it comes first */
        rig.predicted[1] = 99;
        steps[1][0] = cases[i].peak;
        steps[1][4] = 200 - cases[i].peak;
        rig.past = (tsr_load_past){.tokens = steps[0], .steps = 2};
        plan_from_prediction();
        assert_int_equal(rig.plan.copies, cases[i].copies);
        assert_holders(&rig.plan.holding, 0, 1 + (int)cases[i].copies, of_0);
        placement_close(&rig);
    }
}

static void moves_are_weighed(void **state)
{
    (void)state;
    const int64_t loads[8] = {50, 50, 60, 10, 10, 10, 10, 20};
    tsr_plan_options options = placement_options(TSR_PLACEMENT_SWAP, 4, 8, 0);
    int32_t better[8];
    tsr_move move;

    options.costs = (tsr_plan_costs){.token_s = 1e-6};
    placement_open(&rig, &options, 2);
    assert_ok(tsr_plan_owners(rig.planner, loads, rig.owner, better));
    assert_ok(tsr_plan_weigh(rig.planner, loads, rig.owner, better, 100, 8e-3, &move));
    assert_int_equal(move.experts, 2);
    assert_int_equal(move.largest, 1);
    assert_true(move.gain_s > 0.99 * 100 * 3e-6 * 30 && move.gain_s < 1.01 * 100 * 3e-6 * 30);
    assert_true(move.pays); /* 9 ms for 8 */
    assert_ok(tsr_plan_weigh(rig.planner, loads, rig.owner, better, 80, 8e-3, &move));
    assert_false(move.pays);
    assert_ok(tsr_plan_weigh(rig.planner, loads, rig.owner, rig.owner, 100, 0.0, &move));
    assert_true(move.experts == 0 && !move.pays);
    placement_close(&rig);
    options.costs = (tsr_plan_costs){0}; /* then in tokens */
    placement_open(&rig, &options, 2);
    assert_ok(tsr_plan_weigh(rig.planner, loads, rig.owner, better, 10, 299.0, &move));
    assert_true(move.pays && move.gain_s == 300.0 && move.cost_s == 299.0);
    assert_ok(tsr_plan_weigh(rig.planner, loads, rig.owner, better, 10, 300.0, &move));
    assert_false(move.pays);
    placement_close(&rig);
}

static void even_owners_of_uneven_numbers(void **state)
{
    (void)state;
    const int32_t expected[12] = {0, 0, 1, 1, 2, 3, 0, 0, 1, 1, 2, 3}, few[2] = {0, 1};
    int32_t owner[12];

    tsr_expert_owners_even(2, 6, 4, owner);
    assert_memory_equal(owner, expected, sizeof expected);
    tsr_expert_owners_even(1, 2, 4, owner);
    assert_memory_equal(owner, few, sizeof few);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(algorithm_1_copies_the_hottest_everywhere),
        cmocka_unit_test(algorithm_1_spreads_slots_by_load),
        cmocka_unit_test(algorithm_2_levels_what_is_not_copied),
        cmocka_unit_test(hot_owners_are_spread),
        cmocka_unit_test(dispatch_of_the_paper_goes_to_the_nearest),
        cmocka_unit_test(calibration_looks_again),
        cmocka_unit_test(calibration_must_pay),
        cmocka_unit_test(shadows_are_made_while_they_pay),
        cmocka_unit_test(owners_swap_while_that_helps),
        cmocka_unit_test(eplb_packs_copies),
        cmocka_unit_test(copies_serve_their_node),
        cmocka_unit_test(slots_left_take_what_pays),
        cmocka_unit_test(past_loads_decide_what_is_loosened),
        cmocka_unit_test(moves_are_weighed),
        cmocka_unit_test(even_owners_of_uneven_numbers),
    };

    return tsr_unit_test_main("placement rules", tests, sizeof tests / sizeof *tests);
}
