/* The cost model on an example whose every term is worked out by hand. */
#include "tests/parallel/placement_rig.h"

#include <math.h>

static placement_rig rig; /* large: not on the stack */

/* Two nodes of two ranks; an expert's weights are 2 bytes, a row 2, its product 2 flops. */
static const tsr_cluster cluster = {.ranks = 4,
                                    .node_ranks = 2,
                                    .flops = 1.0,
                                    .memory_bytes_s = 1.0,
                                    .node_bytes_s = 10.0,
                                    .network_bytes_s = 4.0,
                                    .node_latency_s = 0.5,
                                    .network_latency_s = 0.25,
                                    .plan_s = 1024.0};
static const tsr_moe_shape shape = {.layers = 3,
                                    .experts = 4,
                                    .top_k = 1,
                                    .hidden = 1,
                                    .width = 1,
                                    .matrices = 1,
                                    .tokens = 10,
                                    .seq_len = 1,
                                    .gradient_bytes = 4};

static bool is_near(double a, double b)
{
    return fabs(a - b) <= 1e-12 * fabs(b); /* a handful of roundings of sums and quotients */
}

/* Expert e at rank e, and `more` at two other ranks where the list says so. */
static tsr_layer_cost cost_of(const tsr_moe_shape *s, int32_t *begin, int32_t *rank, bool exact)
{
    const tsr_plan_options options = placement_options(TSR_PLACEMENT_FSSDP, 4, 4, 4);
    tsr_cost_model *model = NULL;

    placement_open(&rig, &options, 2);
    rig.plan.holding = (tsr_holding){.chunks = 4, .begin = begin, .rank = rank};
    rig.plan.copies = begin[4] - 4;
    rig.counts[4 * 0 + 2] = 10 * s->top_k; /* rank 0: to the other node, to its own place there */
    rig.counts[4 * 1 + 0] = 10 * s->top_k; /* rank 1: to its neighbour */
    rig.counts[4 * 2 + 2] = 10 * s->top_k; /* the others stay */
    rig.counts[4 * 3 + 3] = 10 * s->top_k;
    assert_ok(tsr_plan_quotas(rig.planner, rig.counts, &rig.plan, &rig.quotas));
    assert_ok(tsr_cost_model_create(&cluster, s, &model));
    const tsr_layer_cost cost = tsr_cost_layer(model, &rig.plan, &rig.quotas, exact);
    tsr_cost_model_destroy(&model);
    placement_close(&rig);
    return cost;
}

static void every_term_is_as_worked_out(void **state)
{
    (void)state;
    int32_t begin[5] = {0, 1, 2, 3, 4}, rank[4] = {0, 1, 2, 3};
    const tsr_layer_cost cost = cost_of(&shape, begin, rank, false);

    assert_true(is_near(cost.dense_s, 3 * 10 * (8 + 4)));
    assert_true(is_near(cost.compute_s, 3 * (20 * 2 + 2))); /* rank 2: 20 tokens of one expert */
    assert_true(is_near(cost.exchange_s, 4 * (20 / 10.0 + 20 / 4.0 + 0.5 + 0.25)));
    assert_true(is_near(cost.node_bytes, 20) && is_near(cost.network_bytes, 20));
    assert_true(cost.hidden_s == 0.0 && cost.exposed_s == 0.0 && cost.spill_s == 0.0);
    assert_true(is_near(cost.step_s, 360 + 126 + 31));
    assert_true(is_near(cost_of(&shape, begin, rank, true).plan_s, 1.0)); /* 16 of 16384 */
}

static void copies_cost_their_way(void **state)
{
    (void)state;
    /* expert 2 comes to both ranks of node 0: once over the network, one copy a rank */
    int32_t begin[5] = {0, 1, 2, 5, 6}, rank[6] = {0, 1, 2, 0, 1, 3};
    tsr_moe_shape s = shape;
    tsr_layer_cost cost = cost_of(&s, begin, rank, false);
    const double out = 2 / 4.0 + 0.75, home = 4 / 4.0 + 0.75;

    assert_true(is_near(cost.hidden_s, out + home));
    assert_true(is_near(cost.weight_bytes, 4) && is_near(cost.weight_network, 2));
    assert_true(cost.network_bytes == 0.0 && cost.exposed_s == 0.0);
    assert_true(is_near(cost.compute_s, 3 * (20 * 2 + 2 * 2))); /* rank 0: its own, and expert 2 */
    s.rematerializes = true;
    cost = cost_of(&s, begin, rank, false);
    assert_true(is_near(cost.hidden_s, 2 * out + home));
    s.tokens = 10;
    s.hidden = 100; /* weights 200 bytes, dense 10 * 80400: still nothing shows */
    assert_true(cost_of(&s, begin, rank, false).exposed_s == 0.0);
    s.hidden = 1;
    s.width = 10000; /* weights 20000 bytes: 5000.75 s out, 15001.5 back; 120 and 240 are hidden */
    cost = cost_of(&s, begin, rank, false);
    assert_true(is_near(cost.exposed_s, 5000.75 - 120 + 10000.75 + 5000.75 - 240));
}

static void a_spill_is_not_hidden(void **state)
{
    (void)state;
    int32_t begin[5] = {0, 1, 2, 5, 6}, rank[6] = {0, 1, 2, 0, 1, 3};
    int32_t added_begin[5] = {0, 1, 2, 4, 5}, added_rank[5] = {0, 1, 2, 1, 3};
    const tsr_plan_options options = placement_options(TSR_PLACEMENT_FSSDP, 4, 4, 4);
    tsr_cost_model *model = NULL;

    placement_open(&rig, &options, 2);
    rig.plan.holding = (tsr_holding){.chunks = 4, .begin = begin, .rank = rank};
    rig.plan.added = (tsr_holding){.chunks = 4, .begin = added_begin, .rank = added_rank};
    rig.plan.copies = 2;
    rig.plan.copies_added = 1;
    assert_ok(tsr_plan_quotas(rig.planner, rig.counts, &rig.plan, &rig.quotas));
    assert_ok(tsr_cost_model_create(&cluster, &shape, &model));
    tsr_layer_cost cost = tsr_cost_layer(model, &rig.plan, &rig.quotas, false);
    /* rank 0's copy crossed the network before; rank 1's comes inside the node */
    assert_true(is_near(cost.spill_s, 2 / 10.0 + 0.5));
    assert_true(is_near(cost.weight_network, 2));
    added_rank[3] = 0; /* the other way round: still once over the network, but before the gate */
    cost = tsr_cost_layer(model, &rig.plan, &rig.quotas, false);
    assert_true(is_near(cost.spill_s, 2 / 10.0 + 0.5));
    assert_true(is_near(cost.weight_network, 2));
    tsr_cost_model_destroy(&model);
    placement_close(&rig);
}

static void rows_go_once(void **state)
{
    (void)state;
    int32_t begin[5] = {0, 1, 2, 3, 4}, rank[4] = {0, 1, 2, 3};
    tsr_moe_shape s = shape;

    s.top_k = 2; /* 20 pairs of 10 tokens, all for one expert: 40 bytes, or 10 rows */
    assert_true(is_near(cost_of(&s, begin, rank, false).network_bytes, 40));
    s.sends_once = true;
    assert_true(is_near(cost_of(&s, begin, rank, false).network_bytes, 20));
}

static void budgets_and_memory(void **state)
{
    (void)state;
    tsr_moe_shape s = shape;
    int rank_budget = 0, node_budget = 0;

    s.width = 200;
    s.experts = 64;
    tsr_cost_budgets(&cluster, &s, &rank_budget, &node_budget);
    assert_int_equal(rank_budget, 3); /* 120 s * 10 / 400 */
    assert_int_equal(node_budget, 1); /* 120 s * 4 / 400 */
    /* 200 parameters an expert, 48 owned; 5 slots: 3 layers of weights, one of gradients */
    assert_true(is_near(tsr_cost_memory(&cluster, &s, 5), 200.0 * (48 * 16 + 5 * (3 * 2 + 4))));
    s.rematerializes = true;
    assert_true(is_near(tsr_cost_memory(&cluster, &s, 5), 200.0 * (48 * 16 + 5 * (2 * 2 + 4))));
    const tsr_plan_costs costs = tsr_cost_for_plan(&cluster, &s);
    assert_true(is_near(costs.token_s, 400) && is_near(costs.copy_s, 200.0));
    assert_true(is_near(costs.row_s, 2 / 2.0) && is_near(costs.trips, 4.0));
}

static void wrong_numbers_are_refused(void **state)
{
    (void)state;
    tsr_cluster clusters[3] = {cluster, cluster, cluster};
    tsr_moe_shape shapes[3] = {shape, shape, shape};
    tsr_cost_model *model = NULL;

    clusters[0].ranks = 5;
    clusters[1].flops = 0.0;
    clusters[2].node_ranks = 0;
    shapes[0].top_k = 5;
    shapes[1].tokens = 0;
    shapes[2].layers = 0;
    for (int i = 0; i < 3; ++i) {
        assert_int_equal(tsr_cost_model_create(&clusters[i], &shape, &model), TSR_ERR_ARG);
        assert_int_equal(tsr_cost_model_create(&cluster, &shapes[i], &model), TSR_ERR_ARG);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_term_is_as_worked_out), cmocka_unit_test(copies_cost_their_way),
        cmocka_unit_test(a_spill_is_not_hidden),       cmocka_unit_test(rows_go_once),
        cmocka_unit_test(budgets_and_memory),          cmocka_unit_test(wrong_numbers_are_refused),
    };

    return tsr_unit_test_main("cost model", tests, sizeof tests / sizeof *tests);
}
