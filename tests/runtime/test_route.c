#include "tests/runtime/op_test.h"

typedef struct router {
    tsr_route_args args;
    float *logits, *bias, *dweight;
} router;

static router take_router(int64_t tokens, int64_t seq_len, int experts, int top_k)
{
    const int64_t cells = tokens * experts, choices = tokens * top_k;
    router t = {.logits = take_random(TSR_F32, cells, 1, 1.0f),
                .bias = take_random(TSR_F32, experts, 2, 0.1f),
                .dweight = take_random(TSR_F32, choices, 3, 1.0f)};

    t.args = (tsr_route_args){.logits = t.logits,
                              .tokens = tokens,
                              .seq_len = seq_len,
                              .experts = experts,
                              .top_k = top_k,
                              .scale = 1.5f,
                              .scores = take(cells, 4),
                              .index = take(choices, 4),
                              .weight = take(choices, 4),
                              .counts = take(experts, 8),
                              .balance = take(tokens / seq_len * experts, 4),
                              .score_means = take(tokens / seq_len * experts, 4),
                              .z = take(tokens, 4),
                              .dweight = t.dweight,
                              .aux_factor = 0.7f,
                              .z_factor = 0.3f,
                              .dlogits = take(cells, 4)};
    return t;
}

static void free_router(router *t)
{
    void *const blocks[] = {t->logits,           t->bias,        t->dweight,     t->args.scores,
                            t->args.index,       t->args.weight, t->args.counts, t->args.balance,
                            t->args.score_means, t->args.z,      t->args.dlogits};

    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; ++i) {
        tsr_mem_free(blocks[i]);
    }
}

static void run(rig *r, router *t)
{
    assert_ok(tsr_op_route_forward(r->device, &t->args, r->stream));
    assert_ok(tsr_op_route_backward(r->device, &t->args, r->stream));
    close_rig(r);
}

static void compare(const router *got, const router *expected)
{
    const tsr_route_args *a = &got->args, *b = &expected->args;
    const int64_t cells = a->tokens * a->experts, choices = a->tokens * a->top_k;
    const int64_t sums = a->tokens / a->seq_len * a->experts;
    /* exp of |logit| < 5 errs by 5 eps for its argument and 4 for itself; a sum of E positive
     * terms, a quotient and a product add E + 3 relative roundings. Scores are below 1, weights
     * below scale; z is below 5 + log E < 12. Gradients multiply by |dweight| < 5, and by 2 z. */
    const double eps = (12.0 + a->experts) * F32_EPS;

    assert_memory_equal(a->index, b->index, (size_t)choices * sizeof *a->index);
    assert_memory_equal(a->counts, b->counts, (size_t)a->experts * sizeof *a->counts);
    assert_close(TSR_F32, a->scores, b->scores, cells, eps);
    assert_close(TSR_F32, a->weight, b->weight, choices, 1.5 * eps);
    assert_close(TSR_F32, a->balance, b->balance, sums, eps);
    assert_close(TSR_F32, a->score_means, b->score_means, sums, eps);
    assert_close(TSR_F32, a->z, b->z, a->tokens, 12.0 * eps);
    assert_close(TSR_F32, a->dlogits, b->dlogits, cells, 24.0 * eps);
}

static void compare_devices(int64_t tokens, int64_t seq_len, int experts, int top_k, int options)
{
    router expected = take_router(tokens, seq_len, experts, top_k);
    router single = take_router(tokens, seq_len, experts, top_k);
    router got = take_router(tokens, seq_len, experts, top_k);
    router *const all[] = {&expected, &single, &got};
    rig r = open_plain();

    for (int i = 0; i < 3; ++i) {
        tsr_route_args *args = &all[i]->args;

        args->gate = (options & 1) != 0 ? TSR_GATE_SIGMOID : TSR_GATE_SOFTMAX;
        args->aux = (options & 2) != 0 ? TSR_AUX_GSHARD : TSR_AUX_SWITCH;
        args->renormalize = (options & 4) != 0;
        args->bias = (options & 8) != 0 ? all[i]->bias : NULL;
    }
    run(&r, &expected);
    for (int i = 0; i < RIGS; ++i) {
        router *t = i % 2 == 0 ? &single : &got;

        if (!open_rig(i, &r)) {
            continue;
        }
        run(&r, t);
        compare(t, &expected);
        if (i % 2 == 1) {
            assert_memory_equal(got.args.dlogits, single.args.dlogits,
                                (size_t)(tokens * experts) * 4);
            assert_memory_equal(got.args.score_means, single.args.score_means,
                                (size_t)(tokens / seq_len * experts) * 4);
        }
    }
    free_router(&expected);
    free_router(&single);
    free_router(&got);
}

static void devices_agree(void **state)
{
    (void)state;
    for (int options = 0; options < 16; ++options) {
        compare_devices(0, 4, 4, 2, options);
        compare_devices(1, 1, 1, 1, options);
        compare_devices(12, 4, 3, 3, options);
        compare_devices(64, 32, 16, 2, options);
        compare_devices(10, 5, 37, 6, options);
        compare_devices(4, 2, TSR_EXPERTS_MAX, TSR_TOP_K_MAX, options);
    }
}

static double loss(rig *r, const tsr_route_args *args)
{
    const int64_t sequences = args->tokens / args->seq_len;
    double sum = 0.0;

    assert_ok(tsr_op_route_forward(r->device, args, r->stream));
    for (int64_t i = 0; i < args->tokens * args->top_k; ++i) {
        sum += (double)args->dweight[i] * (double)args->weight[i];
    }
    for (int64_t i = 0; i < sequences * args->experts; ++i) {
        sum += (double)args->aux_factor * args->experts * (double)args->balance[i] *
               (double)args->score_means[i];
    }
    for (int64_t i = 0; i < args->tokens; ++i) {
        sum += (double)args->z_factor * (double)args->z[i] * (double)args->z[i];
    }
    return sum;
}

/* The quotient errs by h^2 / 6 times third derivatives of some units, and by 30 roundings of
 * numbers of order one over 2 h: together below 5e-4 for h = 1e-2. f is constant as long as choices
 * are. */
static void check_difference_quotients(int options)
{
    const float h = 1e-2f;
    router t = take_router(6, 3, 5, 2);
    int32_t choices[12];
    rig r = open_plain();

    t.args.gate = (options & 1) != 0 ? TSR_GATE_SIGMOID : TSR_GATE_SOFTMAX;
    t.args.aux = (options & 2) != 0 ? TSR_AUX_GSHARD : TSR_AUX_SWITCH;
    t.args.renormalize = (options & 4) != 0;
    t.args.bias = t.bias;
    assert_ok(tsr_op_route_forward(r.device, &t.args, r.stream));
    assert_ok(tsr_op_route_backward(r.device, &t.args, r.stream));
    memcpy(choices, t.args.index, sizeof choices);
    for (int i = 0; i < 6 * 5; ++i) {
        const float before = t.logits[i];

        t.logits[i] = before + h;
        const double up = loss(&r, &t.args);
        assert_memory_equal(choices, t.args.index, sizeof choices);
        t.logits[i] = before - h;
        const double down = loss(&r, &t.args);
        assert_memory_equal(choices, t.args.index, sizeof choices);
        t.logits[i] = before;
        assert_true(fabs((up - down) / (2.0 * (double)h) - (double)t.args.dlogits[i]) < 5e-4);
    }
    close_rig(&r);
    free_router(&t);
}

static void plain_gradient_is_the_difference_quotient(void **state)
{
    (void)state;
    for (int options = 0; options < 8; ++options) {
        check_difference_quotients(options);
    }
}

static void ties_go_to_the_lower_expert(void **state)
{
    (void)state;
    for (int i = 0; i < RIGS; ++i) {
        router t = take_router(3, 3, 20, 4);
        rig r;

        memset(t.logits, 0, 60 * sizeof *t.logits);
        t.logits[7] = 1.0f; /* of token 0 */
        if (open_rig(i, &r)) {
            const int32_t expected[8] = {7, 0, 1, 2, 0, 1, 2, 3};

            run(&r, &t);
            assert_memory_equal(t.args.index, expected, sizeof expected);
        }
        free_router(&t);
    }
}

/* Whatever the numbers, what is chosen must be experts, each once. */
static void assert_valid_choice(const int32_t *index, int top_k, int experts)
{
    for (int k = 0; k < top_k; ++k) {
        assert_in_range(index[k], 0, experts - 1);
        for (int j = 0; j < k; ++j) {
            assert_int_not_equal(index[k], index[j]);
        }
    }
}

static void broken_logits_give_valid_choices(void **state)
{
    static const float broken[] = {NAN, INFINITY, -INFINITY, -NAN, 1e30f};

    (void)state;
    for (int i = -1; i < RIGS; ++i) {
        for (int gate = 0; gate < 2; ++gate) {
            router t = take_router(10, 5, 18, 5);
            rig r;

            for (int c = 0; c < 10 * 18; ++c) {
                const int token = c / 18;

                t.logits[c] = token < 5 ? broken[token] : t.logits[c];
                t.logits[c] = token >= 5 && c % 18 == token ? broken[token - 5] : t.logits[c];
            }
            t.args.gate = gate == 0 ? TSR_GATE_SOFTMAX : TSR_GATE_SIGMOID;
            if (i < 0 ? open_named("cpu:plain", 1, &r) : open_rig(i, &r)) {
                run(&r, &t);
                for (int64_t token = 0; token < 10; ++token) {
                    assert_valid_choice(t.args.index + token * 5, 5, 18);
                }
            }
            free_router(&t);
        }
    }
}

static void a_nan_ranks_below_all_numbers(void **state)
{
    const int32_t expected[3] = {2, 1, 3};

    (void)state;
    for (int i = -1; i < RIGS; ++i) {
        router t = take_router(1, 1, 4, 3);
        rig r;

        t.args.gate = TSR_GATE_SIGMOID;
        t.logits[0] = NAN;
        t.logits[1] = 1.0f;
        t.logits[2] = 2.0f;
        t.logits[3] = -1.0f;
        if (i < 0 ? open_named("cpu:plain", 1, &r) : open_rig(i, &r)) {
            run(&r, &t);
            assert_memory_equal(t.args.index, expected, sizeof expected);
        }
        free_router(&t);
    }
}

/* How many of keys come before number i: the greater ones, and equal ones of lower number. */
static int rank_of(const float *keys, int count, int i)
{
    int before = 0;

    for (int j = 0; j < count; ++j) {
        before += keys[j] > keys[i] || (j < i && keys[j] == keys[i]);
    }
    return before;
}

/* The sum of a group's two best (sigmoid gate) or its best: over all pairs of its experts. */
static float worth_of_group(const tsr_route_args *a, const float *keys, int size)
{
    float worth = -INFINITY;

    for (int i = 0; i < size; ++i) {
        for (int j = 0; j < size; ++j) {
            const bool is_pair = a->gate == TSR_GATE_SIGMOID && size > 1;

            worth = is_pair ? fmaxf(worth, i == j ? -INFINITY : keys[i] + keys[j])
                            : fmaxf(worth, keys[i]);
        }
    }
    return worth;
}

/* Choose for one token by rank alone: an expert is chosen as number k if its group is one of the
 * kept_groups first and k experts of such groups come before it. */
static void assert_choice_is_limited(const tsr_route_args *a, int64_t token)
{
    const int size = a->experts / a->groups;
    float keys[64] = {0}, worth[64] = {0}, kept[64] = {0};
    int experts[64], count = 0;

    for (int e = 0; e < a->experts; ++e) {
        keys[e] = a->scores[token * a->experts + e] + (a->bias != NULL ? a->bias[e] : 0.0f);
        keys[e] = isnan(keys[e]) ? -INFINITY : keys[e];
    }
    for (int g = 0; g < a->groups; ++g) {
        worth[g] = worth_of_group(a, keys + (ptrdiff_t)g * size, size);
    }
    for (int g = 0; g < a->groups; ++g) {
        const bool is_kept = rank_of(worth, a->groups, g) < a->kept_groups;

        for (int e = g * size; e < (g + 1) * size && is_kept; ++e) {
            kept[count] = keys[e];
            experts[count++] = e;
        }
    }
    for (int i = 0; i < count; ++i) {
        const int k = rank_of(kept, count, i);

        if (k < a->top_k) {
            assert_int_equal(a->index[token * a->top_k + k], experts[i]);
        }
    }
}

/* With options & 2 logits are of few values and a group shares its bias, so that experts and groups
 * tie exactly: sums of the same two numbers, the greater first. (0.3 keeps sigmoid(x) + sigmoid(-x)
 * = 1 out, which rounds to several numbers.) Most biased scores are below zero; one token's logits
 * are no numbers, another's only in part. */
static void check_groups(rig *r, int experts, int groups, int kept_groups, int top_k, int options)
{
    enum { TOKENS = 40 };
    router t = take_router(TOKENS, 20, experts, top_k);

    for (int c = 0; c < TOKENS * experts; ++c) {
        t.logits[c] = (options & 2) != 0 ? 0.3f + 0.5f * rintf(t.logits[c]) : t.logits[c];
        t.logits[c] = c < experts || (c < 2 * experts && c % 3 != 0) ? NAN : t.logits[c];
    }
    for (int e = 0; e < experts; ++e) {
        const int place = (options & 2) != 0 ? e / (experts / groups) : e;

        t.bias[e] = -0.5f * (float)(place % 3);
    }
    t.args.gate = (options & 1) != 0 ? TSR_GATE_SIGMOID : TSR_GATE_SOFTMAX;
    t.args.bias = (options & 4) != 0 ? t.bias : NULL;
    t.args.groups = groups;
    t.args.kept_groups = kept_groups;
    assert_ok(tsr_op_route_forward(r->device, &t.args, r->stream));
    assert_ok(tsr_stream_wait(r->stream));
    for (int64_t token = 0; token < TOKENS; ++token) {
        assert_choice_is_limited(&t.args, token);
    }
    free_router(&t);
}

static void choices_stay_within_the_best_groups(void **state)
{
    (void)state;
    for (int i = -1; i < RIGS; ++i) {
        rig r;

        if (!(i < 0 ? open_named("cpu:plain", 1, &r) : open_rig(i, &r))) {
            continue;
        }
        for (int options = 0; options < 8; ++options) {
            check_groups(&r, 8, 4, 2, 2, options);
            check_groups(&r, 8, 4, 2, 4, options); /* all of the groups kept */
            check_groups(&r, 8, 2, 2, 3, options); /* no limit */
            check_groups(&r, 6, 6, 3, 3, options); /* groups of one expert */
            check_groups(&r, 21, 7, 3, 4, options);
            check_groups(&r, 64, 8, 4, 8, options);
        }
        close_rig(&r);
    }
}

/* From DeepSeek-V3's inference code (scores + bias, groups of two, the two best of four groups,
 * others at minus infinity): worths are 1.2, 1.1, -0.2 and 1.3. Expert 4 has the best score of all
 * and is not chosen; with zeros for what is out, any of those would come before 7. */
static void a_good_expert_in_a_poor_group_is_not_chosen(void **state)
{
    static const float scores[8] = {0.60f, 0.60f, 0.55f, 0.55f, 0.95f, 0.05f, 0.80f, 0.50f};
    static const float bias[8] = {0.0f, 0.0f, 0.0f, 0.0f, -0.2f, -1.0f, 0.55f, -0.55f};
    const int32_t expected[4] = {6, 0, 1, 7};

    (void)state;
    for (int i = -1; i < RIGS; ++i) {
        router t = take_router(1, 1, 8, 4);
        rig r;

        for (int e = 0; e < 8; ++e) {
            t.logits[e] = logf(scores[e] / (1.0f - scores[e]));
        }
        t.args.bias = bias;
        t.args.gate = TSR_GATE_SIGMOID;
        t.args.groups = 4;
        t.args.kept_groups = 2;
        if (i < 0 ? open_named("cpu:plain", 1, &r) : open_rig(i, &r)) {
            run(&r, &t);
            assert_memory_equal(t.args.index, expected, sizeof expected);
        }
        free_router(&t);
    }
}

static void too_large_sizes_are_refused(void **state)
{
    router t = take_router(2, 2, 4, 2);
    rig r = open_plain();

    (void)state;
    t.args.experts = TSR_EXPERTS_MAX + 1;
    assert_int_equal(tsr_op_route_forward(r.device, &t.args, r.stream), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "experts = 1025"));
    t.args.experts = 4;
    t.args.top_k = 5;
    assert_int_equal(tsr_op_route_forward(r.device, &t.args, r.stream), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "top_k = 5"));
    close_rig(&r);
    free_router(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_agree),
        cmocka_unit_test(plain_gradient_is_the_difference_quotient),
        cmocka_unit_test(ties_go_to_the_lower_expert),
        cmocka_unit_test(broken_logits_give_valid_choices),
        cmocka_unit_test(a_nan_ranks_below_all_numbers),
        cmocka_unit_test(choices_stay_within_the_best_groups),
        cmocka_unit_test(a_good_expert_in_a_poor_group_is_not_chosen),
        cmocka_unit_test(too_large_sizes_are_refused),
    };

    return tsr_unit_test_main("route", tests, sizeof tests / sizeof *tests);
}
