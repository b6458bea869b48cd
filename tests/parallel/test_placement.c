/* What must hold for the plans of every policy, whatever the loads; and the planner's errors. */
#include "tests/parallel/placement_rig.h"

enum { LOADS = 60 };

static placement_rig rig, other; /* large: not on the stack */

static uint32_t word(uint64_t number)
{
    uint32_t words[4];

    tsr_rng_words(7, number, words);
    return words[0];
}

/* Loads of all kinds: some experts hot, some without tokens, some ranks without any. */
static void random_loads(placement_rig *g, uint64_t seed)
{
    const int ranks = g->options.ranks, experts = g->options.experts;
    const uint32_t kind = word(seed << 32) % 4;

    memset(g->predicted, 0, sizeof g->predicted);
    for (int r = 0; r < ranks; ++r) {
        for (int e = 0; e < experts; ++e) {
            const uint64_t number = (seed << 32) + 1 + (uint64_t)(r * experts + e);
            const uint32_t hot = word((seed << 32) + (uint64_t)e) % 8 == 0 ? 40 : 1;
            int64_t tokens = word(number) % (20 * hot);

            if (kind == 1) {
                tokens = e == (int)(seed % (uint64_t)experts) ? 50 : 0;
            } else if (kind == 2 && (r + e) % 3 != 0) {
                tokens = 0;
            } else if (kind == 3) {
                tokens = tokens > 15 ? 1 : 0;
            }
            g->counts[r * experts + e] = tokens;
            g->predicted[e] += word(number + 1) % 3 == 0 ? 0 : tokens; /* wrong now and then */
        }
    }
    for (int e = 0; e < experts; ++e) {
        g->owner[e] = (int32_t)(word((seed << 33) + (uint64_t)e) % (uint32_t)ranks);
    }
}

static void check_holding(const placement_rig *g, const tsr_holding *holding, int64_t copies,
                          int most)
{
    int held[PLACEMENT_RANKS] = {0};

    assert_int_equal(holding->chunks, g->options.experts);
    assert_int_equal(holding->begin[0], 0);
    for (int e = 0; e < g->options.experts; ++e) {
        assert_int_equal(holding->rank[holding->begin[e]], g->owner[e]);
        for (int32_t at = holding->begin[e] + 1; at < holding->begin[e + 1]; ++at) {
            const int32_t rank = holding->rank[at];

            assert_in_range(rank, 0, g->options.ranks - 1);
            assert_int_not_equal(rank, g->owner[e]);
            assert_true(at == holding->begin[e] + 1 || rank > holding->rank[at - 1]);
            assert_true(++held[rank] <= most);
        }
    }
    assert_int_equal(holding->begin[holding->chunks], g->options.experts + copies);
}

/* Every token goes to one holder, and the loads are the sums of that. */
static void check_quotas(const placement_rig *g)
{
    static int64_t left[PLACEMENT_RANKS * PLACEMENT_EXPERTS];
    static int8_t seen[PLACEMENT_RANKS * PLACEMENT_RANKS];
    int64_t load[PLACEMENT_RANKS] = {0}, total = 0, largest = 0;
    const tsr_holding *holding = &g->plan.holding;
    const int ranks = g->options.ranks, experts = g->options.experts;

    memcpy(left, g->counts, sizeof left);
    for (int e = 0; e < experts; ++e) {
        memset(seen, 0, sizeof seen);
        for (int64_t i = g->quotas.begin[e]; i < g->quotas.begin[e + 1]; ++i) {
            const tsr_quota *q = &g->quotas.quota[i];

            assert_true(q->tokens > 0);
            assert_true(q->at >= holding->begin[e] && q->at < holding->begin[e + 1]);
            assert_int_equal(seen[q->source * ranks + holding->rank[q->at]]++, 0);
            left[q->source * experts + e] -= q->tokens;
            load[holding->rank[q->at]] += q->tokens;
            total += q->tokens;
        }
    }
    for (int i = 0; i < ranks * experts; ++i) {
        assert_int_equal(left[i], 0);
    }
    for (int r = 0; r < ranks; ++r) {
        assert_int_equal(load[r], g->quotas.load[r]);
        largest = load[r] > largest ? load[r] : largest;
    }
    assert_int_equal(largest, g->quotas.max_load);
    assert_int_equal(total, g->quotas.total);
}

static void check_added(const placement_rig *g, const int32_t *before_begin)
{
    int64_t more = 0;

    for (int e = 0; e < g->options.experts; ++e) {
        more += (g->plan.holding.begin[e + 1] - g->plan.holding.begin[e]) -
                (before_begin[e + 1] - before_begin[e]);
        for (int32_t at = g->plan.added.begin[e]; at < g->plan.added.begin[e + 1]; ++at) {
            bool is_held = false;

            for (int32_t h = g->plan.holding.begin[e]; h < g->plan.holding.begin[e + 1]; ++h) {
                is_held = is_held || g->plan.holding.rank[h] == g->plan.added.rank[at];
            }
            assert_true(is_held);
        }
    }
    assert_int_equal(more, g->plan.copies_added);
    check_holding(g, &g->plan.added, g->plan.copies_added, g->options.slots);
}

static void check_plan(placement_rig *g)
{
    static int32_t begin[PLACEMENT_EXPERTS + 1];
    const int hidden = g->options.slots - g->options.spill_slots;

    assert_ok(tsr_plan_holdings(g->planner, g->owner, g->predicted, &g->past, &g->plan));
    check_holding(g, &g->plan.holding, g->plan.copies,
                  hidden < g->options.budget ? hidden : g->options.budget);
    assert_ok(tsr_plan_quotas(g->planner, g->counts, &g->plan, &g->quotas));
    check_quotas(g);
    const int64_t before = g->quotas.max_load;
    memcpy(begin, g->plan.holding.begin, (size_t)(g->options.experts + 1) * sizeof *begin);
    assert_ok(tsr_plan_spill(g->planner, g->counts, &g->plan));
    check_holding(g, &g->plan.holding, g->plan.copies, g->options.slots);
    if (g->plan.copies_added > 0) {
        check_added(g, begin);
        assert_ok(tsr_plan_quotas(g->planner, g->counts, &g->plan, &g->quotas));
        assert_true(g->options.policy != TSR_PLACEMENT_QUOTA || g->quotas.max_load < before);
    }
    check_quotas(g); /* also where the spill thought again: what it gave out stays true */
}

static void same_plan(const placement_rig *a, const placement_rig *b)
{
    const int experts = a->options.experts;
    const size_t quotas = (size_t)a->quotas.begin[experts];

    assert_memory_equal(a->plan.holding.begin, b->plan.holding.begin,
                        (size_t)(experts + 1) * sizeof *a->plan.holding.begin);
    assert_memory_equal(a->plan.holding.rank, b->plan.holding.rank,
                        (size_t)a->plan.holding.begin[experts] * sizeof *a->plan.holding.rank);
    assert_memory_equal(a->quotas.begin, b->quotas.begin,
                        (size_t)(experts + 1) * sizeof *a->quotas.begin);
    for (size_t i = 0; i < quotas; ++i) {
        assert_int_equal(a->quotas.quota[i].source, b->quotas.quota[i].source);
        assert_int_equal(a->quotas.quota[i].at, b->quotas.quota[i].at);
        assert_int_equal(a->quotas.quota[i].tokens, b->quotas.quota[i].tokens);
    }
}

/* One planner sees all loads, another one, elsewhere in memory, only this one. */
static void run_policy(tsr_placement_policy policy, int ranks, int per_node, int experts, int slots)
{
    tsr_plan_options options = placement_options(policy, ranks, experts, slots);

    options.calibrates = true;
    options.node_budget = experts / 2;
    if (slots > 2) {
        options.budget = slots / 2; /* more slots than the budget: Algorithm 1's first branch */
    }
    placement_open(&rig, &options, per_node);
    for (uint64_t seed = 1; seed <= LOADS; ++seed) {
        random_loads(&rig, seed);
        const int64_t calls = tsr_mem_alloc_calls();
        check_plan(&rig);
        assert_int_equal(tsr_mem_alloc_calls(), calls);
        placement_open(&other, &options, per_node);
        random_loads(&other, seed);
        placement_run(&other);
        same_plan(&rig, &other);
        placement_close(&other);
    }
    placement_close(&rig);
}

static void plans_keep_their_promises(void **state)
{
    (void)state;
    for (int policy = 0; policy < TSR_PLACEMENT_POLICIES; ++policy) {
        run_policy((tsr_placement_policy)policy, 1, 1, 5, 0);
        run_policy((tsr_placement_policy)policy, 3, 2, 7, 2);
        run_policy((tsr_placement_policy)policy, 4, 2, 3, 3);
        run_policy((tsr_placement_policy)policy, 8, 4, 16, 4);
        run_policy((tsr_placement_policy)policy, 12, 5, 32, 1);
    }
}

static void names_are_found(void **state)
{
    (void)state;
    for (int policy = 0; policy < TSR_PLACEMENT_POLICIES; ++policy) {
        tsr_placement_policy found = TSR_PLACEMENT_POLICIES;

        assert_ok(tsr_placement_find(tsr_placement_name((tsr_placement_policy)policy), &found));
        assert_int_equal(found, policy);
    }
    tsr_placement_policy found = TSR_PLACEMENT_EP;
    assert_int_equal(tsr_placement_find("best", &found), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "eplb"));
}

static void wrong_options_are_refused(void **state)
{
    (void)state;
    const int32_t node[4] = {0, 0, 1, 1}, gap[4] = {0, 0, 2, 2}, late[4] = {1, 1, 1, 1};
    tsr_plan_options right = placement_options(TSR_PLACEMENT_QUOTA, 4, 8, 2);
    tsr_planner *planner = NULL;

    right.node = node;
    tsr_plan_options wrong[11];
    for (int i = 0; i < 11; ++i) {
        wrong[i] = right;
    }
    wrong[0].layers = 0;
    wrong[1].ranks = 0;
    wrong[2].experts = 0;
    wrong[3].spill_slots = 3;
    wrong[4].slots = 9;
    wrong[5].budget = -1;
    wrong[6].node_budget = -1;
    wrong[7].target = 0.99;
    wrong[8].node = gap;
    wrong[9].node = late;
    wrong[10].window = -1;
    for (int i = 0; i < 11; ++i) {
        assert_int_equal(tsr_planner_create(&wrong[i], &planner), TSR_ERR_ARG);
        assert_null(planner);
    }
}

static void wrong_calls_are_refused(void **state)
{
    (void)state;
    const tsr_plan_options options = placement_options(TSR_PLACEMENT_QUOTA, 4, 8, 2);

    placement_open(&rig, &options, 2);
    assert_int_equal(tsr_plan_quotas(rig.planner, rig.counts, &rig.plan, &rig.quotas),
                     TSR_ERR_STATE);
    rig.owner[3] = 4;
    assert_int_equal(tsr_plan_holdings(rig.planner, rig.owner, rig.predicted, NULL, &rig.plan),
                     TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "expert 3: owner = 4"));
    rig.owner[3] = 1;
    rig.predicted[5] = -1;
    assert_int_equal(tsr_plan_holdings(rig.planner, rig.owner, rig.predicted, NULL, &rig.plan),
                     TSR_ERR_ARG);
    rig.predicted[5] = 0;
    rig.past.steps = PLACEMENT_WINDOW + 1;
    assert_int_equal(tsr_plan_holdings(rig.planner, rig.owner, rig.predicted, &rig.past, &rig.plan),
                     TSR_ERR_ARG);
    assert_ok(tsr_plan_holdings(rig.planner, rig.owner, rig.predicted, NULL, &rig.plan));
    assert_int_equal(tsr_plan_spill(rig.planner, rig.counts, &rig.plan), TSR_ERR_STATE);
    rig.counts[31] = -1;
    assert_int_equal(tsr_plan_quotas(rig.planner, rig.counts, &rig.plan, &rig.quotas), TSR_ERR_ARG);
    rig.counts[31] = INT64_MAX;
    assert_int_equal(tsr_plan_quotas(rig.planner, rig.counts, &rig.plan, &rig.quotas), TSR_ERR_ARG);
    placement_close(&rig);
}

static void history_predicts_means(void **state)
{
    (void)state;
    const int64_t steps[4][2] = {{10, 0}, {20, 1}, {60, 1}, {10, 1}};
    tsr_load_history *window = NULL, *ema = NULL;
    int64_t tokens[2];

    assert_ok(tsr_load_history_create(2, 2, TSR_PREDICT_WINDOW, 3, &window));
    assert_ok(tsr_load_history_create(2, 2, TSR_PREDICT_EMA, 3, &ema));
    tsr_load_history_predict(window, 1, tokens);
    assert_true(tokens[0] == 0 && tokens[1] == 0);
    tsr_load_history_push(window, 1, steps[0]);
    tsr_load_history_push(window, 1, steps[1]);
    tsr_load_history_predict(window, 1, tokens);
    assert_true(tokens[0] == 15 && tokens[1] == 1); /* 0.5 is rounded up */
    tsr_load_history_push(window, 1, steps[2]);
    tsr_load_history_push(window, 1, steps[3]);
    tsr_load_history_predict(window, 1, tokens);
    assert_true(tokens[0] == 30 && tokens[1] == 1); /* without the first */
    tsr_load_history_predict(window, 0, tokens);
    assert_true(tokens[0] == 0 && tokens[1] == 0); /* layers are apart */
    assert_int_equal(tsr_load_history_past(window, 0).steps, 0);
    const tsr_load_past past = tsr_load_history_past(window, 1);
    assert_int_equal(past.steps, 3);
    assert_int_equal(past.tokens[0] + past.tokens[2] + past.tokens[4], 90);
    tsr_load_history_push(ema, 0, steps[0]);
    tsr_load_history_push(ema, 0, steps[1]);
    tsr_load_history_push(ema, 0, steps[2]);
    tsr_load_history_predict(ema, 0, tokens);
    assert_int_equal(tsr_load_history_past(ema, 0).steps, 0);
    assert_int_equal(tokens[0], 38); /* half of 60, half of 15: 37.5 */
    tsr_load_history_destroy(&window);
    tsr_load_history_destroy(&ema);
    tsr_load_history_destroy(&ema);
    assert_int_equal(tsr_load_history_create(1, 0, TSR_PREDICT_EMA, 3, &ema), TSR_ERR_ARG);
    assert_int_equal(tsr_load_history_create(1, 1, TSR_PREDICT_EMA, 0, &ema), TSR_ERR_ARG);
}

/* A history that has taken over another's numbers goes on as that one does. */
static void history_is_taken_over(void **state)
{
    (void)state;
    const int64_t steps[5][2] = {{10, 0}, {20, 1}, {60, 1}, {10, 1}, {7, 8}};

    for (int kind = TSR_PREDICT_WINDOW; kind <= TSR_PREDICT_EMA; ++kind) {
        tsr_load_history *straight = NULL, *resumed = NULL;
        double values[2 * (1 + 3 * 2)];
        int64_t expected[2], tokens[2];

        assert_ok(tsr_load_history_create(2, 2, (tsr_prediction)kind, 3, &straight));
        assert_ok(tsr_load_history_create(2, 2, (tsr_prediction)kind, 3, &resumed));
        assert_int_equal(tsr_load_history_size(straight),
                         kind == TSR_PREDICT_EMA ? 2 + 4 : sizeof values / sizeof *values);
        for (int step = 0; step < 5; ++step) {
            tsr_load_history_push(straight, 1, steps[step]);
            tsr_load_history_export(straight, values);
            if (step == 3) {
                assert_ok(tsr_load_history_import(resumed, values));
            } else if (step > 3) {
                tsr_load_history_push(resumed, 1, steps[step]);
            }
        }
        for (int layer = 0; layer < 2; ++layer) {
            tsr_load_history_predict(straight, layer, expected);
            tsr_load_history_predict(resumed, layer, tokens);
            assert_memory_equal(tokens, expected, sizeof tokens);
        }
        values[0] = 0.5; /* steps come whole */
        assert_int_equal(tsr_load_history_import(resumed, values), TSR_ERR_FORMAT);
        values[0] = 0.0;
        values[2] = -1.0;
        assert_int_equal(tsr_load_history_import(resumed, values), TSR_ERR_FORMAT);
        tsr_load_history_predict(resumed, 1, tokens);
        assert_memory_equal(tokens, expected, sizeof tokens); /* as it was */
        tsr_load_history_destroy(&straight);
        tsr_load_history_destroy(&resumed);
    }
}

static void budget_is_what_fits(void **state)
{
    (void)state;
    assert_int_equal(tsr_overlap_budget(2e-3, 50e9, 9.4e6, 64), 10); /* 10.6 */
    assert_int_equal(tsr_overlap_budget(2e-3, 50e9, 9.4e6, 8), 8);
    assert_int_equal(tsr_overlap_budget(1e-4, 50e9, 9.4e6, 64), 0);
    assert_int_equal(tsr_overlap_budget(0.0, 0.0, 0.0, 64), 0); /* nothing is known yet */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_keep_their_promises), cmocka_unit_test(names_are_found),
        cmocka_unit_test(wrong_options_are_refused), cmocka_unit_test(wrong_calls_are_refused),
        cmocka_unit_test(history_predicts_means),    cmocka_unit_test(budget_is_what_fits),
        cmocka_unit_test(history_is_taken_over),
    };

    return tsr_unit_test_main("placement", tests, sizeof tests / sizeof *tests);
}
