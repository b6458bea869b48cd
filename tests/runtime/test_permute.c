#include "tests/runtime/op_test.h"

enum { TOKENS = 50 };

typedef struct sorted {
    tsr_sort_args args;
    int32_t *index;
    float *weight;
} sorted;

static sorted take_sorted(int experts, int top_k)
{
    const int64_t copies = TOKENS * top_k;
    const int64_t padded = copies + experts * (TSR_ROW_ALIGN - 1);
    const int64_t rows = (padded + TSR_ROW_ALIGN - 1) / TSR_ROW_ALIGN * TSR_ROW_ALIGN;
    sorted s = {.index = take(copies, 4), .weight = take_random(TSR_F32, copies, 1, 1.0f)};

    s.args = (tsr_sort_args){.index = s.index,
                             .weight = s.weight,
                             .tokens = TOKENS,
                             .experts = experts,
                             .top_k = top_k,
                             .max_rows = rows,
                             .offsets = take(experts + 1, 8),
                             .row_of = take(copies, 4),
                             .token_of = take(rows, 4),
                             .row_weight = take(rows, 4)};
    for (int64_t copy = 0; copy < copies; ++copy) {
        const int token = (int)(copy / top_k), k = (int)(copy % top_k);

        s.index[copy] = (token * token + k) % experts; /* distinct in k, uneven, squares only */
    }
    return s;
}

static void free_sorted(sorted *s)
{
    tsr_mem_free(s->index);
    tsr_mem_free(s->weight);
    tsr_mem_free(s->args.offsets);
    tsr_mem_free(s->args.row_of);
    tsr_mem_free(s->args.token_of);
    tsr_mem_free(s->args.row_weight);
}

/* Every copy is found in its expert's range, in token order, and all other rows are padding. */
static void check_sorted(const tsr_sort_args *a)
{
    const int64_t copies = a->tokens * a->top_k;
    int64_t padding = 0, next = 0;

    assert_int_equal(a->offsets[0], 0);
    for (int e = 0; e < a->experts; ++e) {
        int32_t last = -1;

        assert_int_equal(a->offsets[e + 1] % TSR_ROW_ALIGN, 0);
        next = a->offsets[e];
        for (int64_t copy = 0; copy < copies; ++copy) {
            if (a->index[copy] == e) {
                assert_int_equal(a->row_of[copy], next);
                assert_int_equal(a->token_of[next], copy / a->top_k);
                assert_true(a->row_weight[next] == a->weight[copy]);
                assert_true(a->token_of[next] > last);
                last = a->token_of[next++];
            }
        }
        assert_in_range(a->offsets[e + 1] - next, 0, TSR_ROW_ALIGN - 1);
        for (; next < a->offsets[e + 1]; ++next, ++padding) {
            assert_int_equal(a->token_of[next], -1);
            assert_true(a->row_weight[next] == 0.0f);
        }
    }
    assert_int_equal(a->offsets[a->experts], copies + padding);
    assert_true(a->offsets[a->experts] <= a->max_rows);
}

static void sort(sorted *s)
{
    rig r;

    assert_true(open_named("cpu", 1, &r));
    assert_ok(tsr_op_sort_by_expert(r.device, &s->args, r.stream));
    close_rig(&r);
    check_sorted(&s->args);
}

static void copies_are_sorted_by_expert(void **state)
{
    static const int sizes[][2] = {{1, 1}, {5, 1}, {8, 2}, {4, 4}, {7, 3}, {40, 2}};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
        sorted s = take_sorted(sizes[i][0], sizes[i][1]);

        sort(&s);
        free_sorted(&s);
    }
}

static void one_expert_may_get_everything(void **state)
{
    sorted s = take_sorted(6, 1);

    (void)state;
    for (int i = 0; i < TOKENS; ++i) {
        s.index[i] = 4;
    }
    sort(&s);
    assert_int_equal(s.args.offsets[4], 0);
    assert_int_equal(s.args.offsets[5], 64);
    assert_int_equal(s.args.offsets[6], 64);
    free_sorted(&s);
}

static void no_tokens_give_empty_ranges(void **state)
{
    sorted s = take_sorted(3, 1);

    (void)state;
    s.args.tokens = 0;
    s.args.offsets[2] = 7;
    sort(&s);
    free_sorted(&s);
}

static void an_unknown_expert_is_refused(void **state)
{
    sorted s = take_sorted(3, 1);
    rig r;

    (void)state;
    s.index[9] = 3;
    assert_true(open_named("cpu", 1, &r));
    assert_int_equal(tsr_op_sort_by_expert(r.device, &s.args, r.stream), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "index[9] = 3"));
    s.index[9] = -1;
    assert_int_equal(tsr_op_sort_by_expert(r.device, &s.args, r.stream), TSR_ERR_ARG);
    close_rig(&r);
    free_sorted(&s);
}

/* Copies are exact. A sum of base and K numbers below 5 is rounded K times, below 5 (K + 1) each.
 */
static void compare_devices(int64_t width, int top_k, bool from_f32, bool has_base, tsr_dtype dtype)
{
    sorted s = take_sorted(7, top_k);
    const int64_t rows = s.args.max_rows, cells = TOKENS * width;
    void *tokens = take_random(from_f32 ? TSR_F32 : dtype, cells, 1, 1.0f);
    float *base = take_random(TSR_F32, cells, 2, 1.0f), *out = take(cells, 4);
    void *expected_rows = take(rows * width, 4), *got_rows = take(rows * width, 4);
    float *expected_out = take(cells, 4);
    tsr_permute_args permute = {.tokens = tokens,
                                .rows = expected_rows,
                                .experts = 7,
                                .token_of = s.args.token_of,
                                .offsets = s.args.offsets,
                                .width = width,
                                .from_f32 = from_f32,
                                .dtype = dtype};
    tsr_unpermute_args unpermute = {.rows = expected_rows,
                                    .row_of = s.args.row_of,
                                    .base = has_base ? base : NULL,
                                    .out = expected_out,
                                    .tokens = TOKENS,
                                    .width = width,
                                    .top_k = top_k,
                                    .dtype = dtype};
    const double tolerance = 5.0 * (top_k + 1) * top_k * F32_EPS;
    rig r = open_plain();

    sort(&s);
    for (int i = 0; i < TOKENS * top_k; i += 5) {
        s.args.row_of[i] = -1; /* copies that are elsewhere */
    }
    assert_ok(tsr_op_permute(r.device, &permute, r.stream));
    assert_ok(tsr_op_unpermute(r.device, &unpermute, r.stream));
    close_rig(&r);
    const size_t bytes = (size_t)(s.args.offsets[7] * width) * tsr_dtype_bytes(dtype);
    permute.rows = got_rows;
    unpermute.rows = got_rows;
    unpermute.out = out;
    for (int i = 0; i < RIGS; ++i) {
        if (open_rig(i, &r)) {
            memset(got_rows, 0xff, (size_t)(rows * width) * 4); /* padding must be written */
            assert_ok(tsr_op_permute(r.device, &permute, r.stream));
            assert_ok(tsr_op_unpermute(r.device, &unpermute, r.stream));
            close_rig(&r);
            assert_memory_equal(got_rows, expected_rows, bytes);
            assert_close(TSR_F32, out, expected_out, cells, tolerance);
        }
    }
    tsr_mem_free(tokens);
    tsr_mem_free(base);
    tsr_mem_free(out);
    tsr_mem_free(expected_rows);
    tsr_mem_free(got_rows);
    tsr_mem_free(expected_out);
    free_sorted(&s);
}

static void devices_agree(void **state)
{
    static const int64_t widths[] = {1, 16, 24, 67};

    (void)state;
    for (int i = 0; i < 4; ++i) {
        for (int options = 0; options < 4; ++options) {
            const bool from_f32 = (options & 1) != 0, has_base = (options & 2) != 0;

            compare_devices(widths[i], 1, from_f32, has_base, TSR_F32);
            compare_devices(widths[i], 3, from_f32, has_base, TSR_BF16);
        }
    }
}

/* Out and back: K equal copies of each token are summed, here with base = out in place. */
static void a_round_trip_multiplies_by_the_copies(void **state)
{
    enum { WIDTH = 20, TOP_K = 4 };
    sorted s = take_sorted(4, TOP_K);
    float *tokens = take_random(TSR_F32, TOKENS * WIDTH, 1, 1.0f);
    float *rows = take(s.args.max_rows * WIDTH, 4), *out = take(TOKENS * WIDTH, 4);
    const tsr_permute_args permute = {.tokens = tokens,
                                      .rows = rows,
                                      .experts = 4,
                                      .token_of = s.args.token_of,
                                      .offsets = s.args.offsets,
                                      .width = WIDTH};
    const tsr_unpermute_args unpermute = {.rows = rows,
                                          .row_of = s.args.row_of,
                                          .base = out,
                                          .out = out,
                                          .tokens = TOKENS,
                                          .width = WIDTH,
                                          .top_k = TOP_K};
    rig r;

    (void)state;
    sort(&s);
    assert_true(open_named("cpu", 2, &r));
    assert_ok(tsr_op_permute(r.device, &permute, r.stream));
    assert_ok(tsr_op_unpermute(r.device, &unpermute, r.stream));
    for (int i = 0; i < TOKENS * WIDTH; ++i) {
        const float twice = tokens[i] + tokens[i];

        assert_true(out[i] == (twice + tokens[i]) + tokens[i]);
    }
    for (int i = 0; i < TOKENS * TOP_K; ++i) {
        s.args.row_of[i] = i % TOP_K == 2 ? -1 : s.args.row_of[i]; /* three copies are left */
    }
    memset(out, 0, TOKENS * WIDTH * sizeof *out);
    assert_ok(tsr_op_unpermute(r.device, &unpermute, r.stream));
    close_rig(&r);
    for (int i = 0; i < TOKENS * WIDTH; ++i) {
        assert_true(out[i] == (tokens[i] + tokens[i]) + tokens[i]);
    }
    tsr_mem_free(tokens);
    tsr_mem_free(rows);
    tsr_mem_free(out);
    free_sorted(&s);
}

static void gather_brings_row_gradients_to_token_order(void **state)
{
    sorted s = take_sorted(7, 3);
    float *out = take(TOKENS * 3, 4);
    rig r;

    (void)state;
    sort(&s);
    assert_true(open_named("cpu", 1, &r));
    assert_ok(
        tsr_op_gather_f32(r.device, s.args.row_weight, s.args.row_of, TOKENS * 3, out, r.stream));
    close_rig(&r);
    assert_memory_equal(out, s.weight, TOKENS * 3 * sizeof *out);
    tsr_mem_free(out);
    free_sorted(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_are_sorted_by_expert),
        cmocka_unit_test(one_expert_may_get_everything),
        cmocka_unit_test(no_tokens_give_empty_ranges),
        cmocka_unit_test(an_unknown_expert_is_refused),
        cmocka_unit_test(devices_agree),
        cmocka_unit_test(a_round_trip_multiplies_by_the_copies),
        cmocka_unit_test(gather_brings_row_gradients_to_token_order),
    };

    return tsr_unit_test_main("permute", tests, sizeof tests / sizeof *tests);
}
