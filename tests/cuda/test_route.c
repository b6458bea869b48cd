/* The way to the experts and back: routing, sorting, permutation. */
#include "tests/cuda/cuda_test.h"

/* ---- routing -------------------------------------------------------------------------------- */

static struct {
    array logits, bias, dweight, scores, index, weight, counts, balance, score_means, z, dlogits;
    tsr_route_args sizes;
    bool is_biased, keeps_z;
    int groups, kept_groups; /* of the next make_route() */
} route;

static const tsr_route_args *route_args(side s)
{
    static tsr_route_args args;

    args = route.sizes;
    args.logits = on(s, &route.logits);
    args.bias = route.is_biased ? on(s, &route.bias) : NULL;
    args.dweight = on(s, &route.dweight);
    args.scores = on(s, &route.scores);
    args.index = on(s, &route.index);
    args.weight = on(s, &route.weight);
    args.counts = on(s, &route.counts);
    args.balance = on(s, &route.balance);
    args.score_means = on(s, &route.score_means);
    args.z = route.keeps_z ? on(s, &route.z) : NULL;
    args.dlogits = on(s, &route.dlogits);
    return &args;
}

static void make_route(const float *logits, int64_t tokens, int64_t seq_len, int experts, int top_k,
                       int options)
{
    const int64_t cells = tokens * experts, choices = tokens * top_k;
    const int64_t sums = tokens / seq_len * experts;

    route.is_biased = (options & 8) != 0;
    route.keeps_z = (options & 16) != 0;
    route.logits =
        logits != NULL ? make_array(logits, cells, 4) : make_random(TSR_F32, cells, 1, 1.0f);
    route.bias = make_random(TSR_F32, experts, 2, 0.1f);
    route.dweight = make_random(TSR_F32, choices, 3, 1.0f);
    route.scores = make_array(NULL, cells, 4);
    route.index = make_array(NULL, choices, 4);
    route.weight = make_array(NULL, choices, 4);
    route.counts = make_array(NULL, experts, 8);
    route.balance = make_array(NULL, sums, 4);
    route.score_means = make_array(NULL, sums, 4);
    route.z = make_array(NULL, tokens, 4);
    route.dlogits = make_array(NULL, cells, 4);
    route.sizes = (tsr_route_args){.tokens = tokens,
                                   .seq_len = seq_len,
                                   .experts = experts,
                                   .top_k = top_k,
                                   .groups = route.groups,
                                   .kept_groups = route.kept_groups,
                                   .gate = (options & 1) != 0 ? TSR_GATE_SIGMOID : TSR_GATE_SOFTMAX,
                                   .aux = (options & 2) != 0 ? TSR_AUX_GSHARD : TSR_AUX_SWITCH,
                                   .renormalize = (options & 4) != 0,
                                   .scale = 1.5f,
                                   .aux_factor = 0.7f,
                                   .z_factor = route.keeps_z ? 0.3f : 0.0f};
}

static void free_route(void)
{
    array *const all[] = {&route.logits, &route.bias,        &route.dweight, &route.scores,
                          &route.index,  &route.weight,      &route.counts,  &route.balance,
                          &route.z,      &route.score_means, &route.dlogits};

    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) {
        free_array(all[i]);
    }
}

/* The bounds of tests/runtime/test_route.c: an exponential errs by 9 eps, a sum of E terms and the
 * operations that follow by E + 3; the mean over S tokens rounds S times more. */
static void compare_route(int experts, int64_t seq_len)
{
    const double eps = (12.0 + experts) * F32_EPS;

    assert_same_bytes(&route.index);
    assert_same_bytes(&route.counts);
    assert_array(TSR_F32, &route.balance, F32_EPS);
    assert_array(TSR_F32, &route.scores, eps);
    assert_array(TSR_F32, &route.weight, 1.5 * eps);
    assert_array(TSR_F32, &route.score_means, eps + (double)seq_len * F32_EPS);
    assert_array(TSR_F32, &route.z, 12.0 * eps);
}

static void check_route(int64_t tokens, int64_t seq_len, int experts, int top_k, int options)
{
    make_route(NULL, tokens, seq_len, experts, top_k, options);
    BOTH(tsr_op_route_forward, route_args);
    compare_route(experts, seq_len);
    BOTH(tsr_op_route_backward, route_args);
    assert_array(TSR_F32, &route.dlogits, 24.0 * (12.0 + experts) * F32_EPS);
    free_route();
}

static void check_limited_routes(void)
{
    static const int sizes[][4] = {/* experts, groups, kept groups, top_k */
                                   {8, 4, 2, 2},   {8, 4, 2, 4},    {6, 6, 3, 3},
                                   {21, 7, 3, 4},  {64, 8, 4, 8},   {100, 50, 40, 8},
                                   {256, 8, 4, 8}, {1024, 8, 4, 8}, {1024, 512, 20, 16}};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        route.groups = sizes[i][1];
        route.kept_groups = sizes[i][2];
        for (int options = 4; options < 32; options += 9) { /* both gates, with bias and without */
            check_route(12, 6, sizes[i][0], sizes[i][3], options);
        }
    }
    route.groups = route.kept_groups = 0;
}

static void limited_routing_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_limited_routes);
}

static void check_routes(void)
{
    for (int options = 0; options < 32; ++options) {
        check_route(1, 1, 1, 1, options);
        check_route(12, 4, 3, 3, options);
        check_route(10, 5, 37, 6, options);
    }
    check_route(0, 4, 4, 2, 0);
    check_route(200, 100, 16, 2, 13); /* four shares of a sequence */
    check_route(330, 330, 8, 2, 22);  /* more shares than warps add at once */
    check_route(8, 4, 64, 8, 20);
    check_route(8, 4, 100, 8, 31);
    check_route(4, 2, TSR_EXPERTS_MAX, TSR_TOP_K_MAX, 28);
    check_route(4, 2, TSR_EXPERTS_MAX, TSR_TOP_K_MAX, 31);
}

static void routing_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_routes);
}

static void check_hard_choices(void)
{
    enum { TOKENS = 10, EXPERTS = 40, TOP_K = 5 };
    static const float broken[] = {NAN, INFINITY, -INFINITY, -NAN, 0.0f /* all equal */};
    float *logits = take_random(TSR_F32, TOKENS * EXPERTS, 1, 1.0f);

    for (int c = 0; c < TOKENS * EXPERTS; ++c) { /* whole rows, then single experts */
        const int token = c / EXPERTS;

        logits[c] = token < 5 ? broken[token] : logits[c];
        logits[c] = token >= 5 && c % EXPERTS == 7 * (token - 5) ? broken[token - 5] : logits[c];
    }
    for (int gate = 0; gate < 2; ++gate) {
        make_route(logits, TOKENS, 5, EXPERTS, TOP_K, gate | 4 | 16);
        BOTH(tsr_op_route_forward, route_args);
        compare_route(EXPERTS, 5);
        free_route();
    }
    route.groups = 10; /* groups tie and are no numbers too */
    route.kept_groups = 3;
    for (int gate = 0; gate < 2; ++gate) {
        make_route(logits, TOKENS, 5, EXPERTS, TOP_K, gate | 4 | 16);
        BOTH(tsr_op_route_forward, route_args);
        compare_route(EXPERTS, 5);
        free_route();
    }
    route.groups = route.kept_groups = 0;
    tsr_mem_free(logits);
}

static void ties_and_broken_logits_choose_as_the_twin(void **state)
{
    (void)state;
    each_order(check_hard_choices);
}

/* ---- sorting -------------------------------------------------------------------------------- */

static struct {
    array index, weight, offsets, row_of, token_of, row_weight;
    tsr_sort_args sizes;
} sorted;

static const tsr_sort_args *sort_args(side s)
{
    static tsr_sort_args args;

    args = sorted.sizes;
    args.index = on(s, &sorted.index);
    args.weight = on(s, &sorted.weight);
    args.offsets = on(s, &sorted.offsets);
    args.row_of = on(s, &sorted.row_of);
    args.token_of = on(s, &sorted.token_of);
    args.row_weight = on(s, &sorted.row_weight);
    return &args;
}

/* Uneven: squares modulo E; or all copies to one expert. */
static void make_sorted(int64_t tokens, int experts, int top_k, int only_expert)
{
    const int64_t copies = tokens * top_k;
    const int64_t padded = copies + experts * (TSR_ROW_ALIGN - 1);
    const int64_t rows = (padded + TSR_ROW_ALIGN - 1) / TSR_ROW_ALIGN * TSR_ROW_ALIGN;
    int32_t *index = take(copies, 4);

    for (int64_t copy = 0; copy < copies; ++copy) {
        const int64_t token = copy / top_k;

        index[copy] =
            only_expert >= 0 ? only_expert : (int32_t)((token * token + copy % top_k) % experts);
    }
    sorted.index = make_array(index, copies, 4);
    sorted.weight = make_random(TSR_F32, copies, 1, 1.0f);
    sorted.offsets = make_array(NULL, experts + 1, 8);
    sorted.row_of = make_array(NULL, copies, 4);
    sorted.token_of = make_array(NULL, rows, 4);
    sorted.row_weight = make_array(NULL, rows, 4);
    sorted.sizes =
        (tsr_sort_args){.tokens = tokens, .experts = experts, .top_k = top_k, .max_rows = rows};
    tsr_mem_free(index);
}

static void free_sorted(void)
{
    free_array(&sorted.index);
    free_array(&sorted.weight);
    free_array(&sorted.offsets);
    free_array(&sorted.row_of);
    free_array(&sorted.token_of);
    free_array(&sorted.row_weight);
}

static void check_sort(int64_t tokens, int experts, int top_k, int only_expert)
{
    make_sorted(tokens, experts, top_k, only_expert);
    BOTH(tsr_op_sort_by_expert, sort_args);
    assert_same_bytes(&sorted.offsets);
    assert_same_bytes(&sorted.row_of);
    assert_same_bytes(&sorted.token_of);
    assert_same_bytes(&sorted.row_weight);
    free_sorted();
}

static void check_sorts(void)
{
    check_sort(0, 3, 1, -1);
    check_sort(1, 1, 1, -1);
    check_sort(50, 7, 3, -1);
    check_sort(50, 6, 1, 4);     /* one expert gets everything */
    check_sort(700, 40, 4, -1);  /* several shares, not whole ones */
    check_sort(9000, 33, 1, -1); /* more shares than warps of the scan */
    check_sort(40, TSR_EXPERTS_MAX, 16, -1);
}

static void sorting_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_sorts);
}

static void an_unknown_expert_stops_the_kernel(void **state)
{
    rig *const r = &cuda_rig[CUDA];

    (void)state;
    cuda_shifted = false;
    assert_true(open_named("cuda:emulated", 1, r));
    make_sorted(4, 3, 1, 3);
    assert_ok(tsr_op_sort_by_expert(r->device, sort_args(CUDA), r->stream));
    assert_int_equal(tsr_stream_wait(r->stream), TSR_ERR_DEVICE);
    fake_clear_fault();
    free_sorted();
    close_rig(r);
}

static void too_many_experts_are_refused(void **state)
{
    rig *const r = &cuda_rig[CUDA];

    (void)state;
    assert_true(open_named("cuda:emulated", 1, r));
    make_sorted(4, TSR_EXPERTS_MAX + 1, 1, -1);
    assert_refused(tsr_op_sort_by_expert(r->device, sort_args(CUDA), r->stream),
                   "experts = 1025, must be at most 1024");
    free_sorted();
    close_rig(r);
}

/* ---- permutation ---------------------------------------------------------------------------- */

static struct {
    array tokens, rows, base, out, gathered;
    tsr_permute_args permute;
    tsr_unpermute_args unpermute;
    bool has_base, in_place;
} moved;

static const tsr_permute_args *permute_args(side s)
{
    static tsr_permute_args args;

    args = moved.permute;
    args.tokens = on(s, &moved.tokens);
    args.rows = on(s, &moved.rows);
    args.token_of = on(s, &sorted.token_of);
    args.offsets = on(s, &sorted.offsets);
    return &args;
}

static const tsr_unpermute_args *unpermute_args(side s)
{
    static tsr_unpermute_args args;

    args = moved.unpermute;
    args.rows = on(s, &moved.rows);
    args.row_of = on(s, &sorted.row_of);
    args.base = moved.has_base ? on(s, moved.in_place ? &moved.out : &moved.base) : NULL;
    args.out = on(s, &moved.out);
    return &args;
}

/* Take away the row of every third copy, on both sides. */
static void drop_rows(void)
{
    const int64_t copies = sorted.sizes.tokens * sorted.sizes.top_k;

    for (int64_t copy = 0; copy < copies; copy += 3) {
        ((int32_t *)on(PLAIN, &sorted.row_of))[copy] = -1;
    }
    copy_array(&sorted.row_of, sorted.row_of.device, sorted.row_of.host, TSR_COPY_HOST_TO_DEVICE);
}

/* Copies are exact. A sum of base and K numbers below 5 is rounded K times, below 5 (K + 1)
 * each. */
static void check_permute(int64_t width, int top_k, tsr_dtype dtype, int options)
{
    enum { TOKENS = 40, EXPERTS = 7 };
    const bool from_f32 = (options & 1) != 0;

    make_sorted(TOKENS, EXPERTS, top_k, -1);
    BOTH(tsr_op_sort_by_expert, sort_args);
    const int64_t rows = sorted.sizes.max_rows;
    moved.has_base = (options & 2) != 0;
    moved.in_place = (options & 4) != 0;
    moved.tokens = make_random(from_f32 ? TSR_F32 : dtype, TOKENS * width, 1, 1.0f);
    moved.rows = make_array(NULL, rows * width, tsr_dtype_bytes(dtype));
    moved.base = make_random(TSR_F32, TOKENS * width, 2, 1.0f);
    moved.out = make_random(TSR_F32, TOKENS * width, 3, 1.0f);
    moved.permute = (tsr_permute_args){
        .experts = EXPERTS, .width = width, .from_f32 = from_f32, .dtype = dtype};
    moved.unpermute =
        (tsr_unpermute_args){.tokens = TOKENS, .width = width, .top_k = top_k, .dtype = dtype};
    BOTH(tsr_op_permute, permute_args);
    drop_rows();
    BOTH(tsr_op_unpermute, unpermute_args);
    assert_same_bytes(&moved.rows);
    assert_array(TSR_F32, &moved.out, 5.0 * (top_k + 1) * top_k * F32_EPS);
    free_sorted();
    free_array(&moved.tokens);
    free_array(&moved.rows);
    free_array(&moved.base);
    free_array(&moved.out);
}

static void check_permutes(void)
{
    for (int options = 0; options < 8; ++options) {
        check_permute(7, 3, TSR_F32, options);
        check_permute(24, 2, TSR_BF16, options);
        check_permute(300, 1, TSR_BF16, options);
    }
    check_permute(1100, 5, TSR_BF16, 3); /* more than a warp has on its way */
}

static void permutation_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_permutes);
}

static void check_gather(void)
{
    make_sorted(300, 5, 2, -1);
    BOTH(tsr_op_sort_by_expert, sort_args);
    drop_rows();
    array out = make_array(NULL, 600, 4);
    for (int s = PLAIN; s < SIDES; ++s) {
        assert_ok(tsr_op_gather_f32(cuda_rig[s].device, on((side)s, &sorted.row_weight),
                                    on((side)s, &sorted.row_of), 600, on((side)s, &out),
                                    cuda_rig[s].stream));
    }
    assert_same_bytes(&out);
    for (int64_t copy = 0; copy < 600; copy += 3) {
        assert_true(((const float *)on(PLAIN, &out))[copy] == 0.0f);
    }
    free_array(&out);
    free_sorted();
}

static void gathering_is_exact(void **state)
{
    (void)state;
    each_order(check_gather);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(routing_matches_the_twin),
        cmocka_unit_test(limited_routing_matches_the_twin),
        cmocka_unit_test(ties_and_broken_logits_choose_as_the_twin),
        cmocka_unit_test(sorting_matches_the_twin),
        cmocka_unit_test(an_unknown_expert_stops_the_kernel),
        cmocka_unit_test(too_many_experts_are_refused),
        cmocka_unit_test(permutation_matches_the_twin),
        cmocka_unit_test(gathering_is_exact),
    };

    return tsr_unit_test_main("cuda.route", tests, sizeof tests / sizeof *tests);
}
