#include "tests/runtime/op_test.h"

typedef struct results {
    void *h, *h_again, *dgate_up;
    float *drow_weight;
} results;

static results take_results(int64_t rows, int64_t width)
{
    return (results){take(rows * width, 4), take(rows * width, 4), take(rows * width * 2, 4),
                     take(rows, 4)};
}

static void free_results(results *r)
{
    tsr_mem_free(r->h);
    tsr_mem_free(r->h_again);
    tsr_mem_free(r->dgate_up);
    tsr_mem_free(r->drow_weight);
}

/* Backward runs in place, as layers call it. */
static void run(rig *r, tsr_swiglu_args args, results *out)
{
    const size_t bytes = (size_t)(2 * args.rows * args.width) * tsr_dtype_bytes(args.dtype);

    args.h = out->h;
    args.drow_weight = out->drow_weight;
    args.dgate_up = out->dgate_up;
    assert_ok(tsr_op_swiglu_forward(r->device, &args, r->stream));
    memcpy(out->dgate_up, args.gate_up, bytes);
    args.gate_up = out->dgate_up;
    args.h = out->h_again;
    assert_ok(tsr_op_swiglu_backward(r->device, &args, r->stream));
}

/* Each element is a product of at most five numbers below 5 with ten roundings, exp's two units
 * among them: 5^4 (no number exceeds 5^4 here) times 16 eps; drow_weight sums F of them. */
static void compare_devices(int64_t rows, int64_t width, tsr_dtype dtype, bool has_weight)
{
    const double tolerance = 625.0 * 16.0 * F32_EPS;
    void *gate_up = take_random(dtype, rows * width * 2, 1, 1.0f);
    void *dh = take_random(dtype, rows * width, 2, 1.0f);
    float *weight = take_random(TSR_F32, rows, 3, 1.0f);
    const tsr_swiglu_args args = {.gate_up = gate_up,
                                  .row_weight = has_weight ? weight : NULL,
                                  .rows = rows,
                                  .width = width,
                                  .dtype = dtype,
                                  .dh = dh};
    results expected = take_results(rows, width), got = take_results(rows, width);
    results single = take_results(rows, width);
    rig r = open_plain();

    run(&r, args, &expected);
    close_rig(&r);
    for (int i = 0; i < RIGS; ++i) {
        results *out = i % 2 == 0 ? &single : &got;

        if (!open_rig(i, &r)) {
            continue;
        }
        run(&r, args, out);
        close_rig(&r);
        assert_close(dtype, out->h, expected.h, rows * width, tolerance);
        assert_close(dtype, out->h_again, expected.h, rows * width, tolerance);
        assert_close(dtype, out->dgate_up, expected.dgate_up, rows * width * 2, tolerance);
        assert_close(TSR_F32, out->drow_weight, expected.drow_weight, rows,
                     (double)width * tolerance);
        if (i % 2 == 1) {
            assert_memory_equal(got.drow_weight, single.drow_weight, (size_t)rows * 4);
        }
    }
    free_results(&expected);
    free_results(&got);
    free_results(&single);
    tsr_mem_free(gate_up);
    tsr_mem_free(dh);
    tsr_mem_free(weight);
}

static void devices_agree(void **state)
{
    static const int64_t rows[] = {0, 1, 17}, widths[] = {1, 7, 64, 100};

    (void)state;
    for (int i = 0; i < 3; ++i) {
        for (int j = 0; j < 4; ++j) {
            compare_devices(rows[i], widths[j], TSR_F32, true);
            compare_devices(rows[i], widths[j], TSR_BF16, true);
            compare_devices(rows[i], widths[j], TSR_F32, false);
        }
    }
}

enum { ROWS = 2, WIDTH = 5 };

static double loss(rig *r, const tsr_swiglu_args *args)
{
    const float *h = args->h, *dh = args->dh;
    double sum = 0.0;

    assert_ok(tsr_op_swiglu_forward(r->device, args, r->stream));
    for (int i = 0; i < ROWS * WIDTH; ++i) {
        sum += (double)h[i] * (double)dh[i];
    }
    return sum;
}

/* As in the test of the norm: h^2 and rounding over h, both about 1e-4. */
static void plain_gradient_is_the_difference_quotient(void **state)
{
    const float h = 1e-2f;
    float *gate_up = take_random(TSR_F32, ROWS * WIDTH * 2, 1, 1.0f);
    float *dh = take_random(TSR_F32, ROWS * WIDTH, 2, 1.0f);
    float *weight = take_random(TSR_F32, ROWS, 3, 1.0f);
    results out = take_results(ROWS, WIDTH);
    const tsr_swiglu_args args = {.gate_up = gate_up,
                                  .row_weight = weight,
                                  .rows = ROWS,
                                  .width = WIDTH,
                                  .dtype = TSR_F32,
                                  .dh = dh,
                                  .h = out.h};
    rig r = open_plain();

    (void)state;
    run(&r, args, &out);
    for (int i = 0; i < 2 * ROWS * WIDTH + ROWS; ++i) {
        const bool is_weight = i >= 2 * ROWS * WIDTH;
        float *at = is_weight ? &weight[i - 2 * ROWS * WIDTH] : &gate_up[i];
        const double got = is_weight ? (double)out.drow_weight[i - 2 * ROWS * WIDTH]
                                     : get(TSR_F32, out.dgate_up, i);
        const float before = *at;

        *at = before + h;
        const double up = loss(&r, &args);
        *at = before - h;
        const double down = loss(&r, &args);
        *at = before;
        assert_true(fabs((up - down) / (2.0 * (double)h) - got) < 2e-3);
    }
    close_rig(&r);
    free_results(&out);
    tsr_mem_free(gate_up);
    tsr_mem_free(dh);
    tsr_mem_free(weight);
}

/* silu saturates: exp must neither overflow to NaN nor lose the sign. */
static void large_gates_are_finite(void **state)
{
    float gate_up[4] = {200.0f, -200.0f, 1.0f, 1.0f}, h[2];
    const float expected[2] = {200.0f, 0.0f};
    const tsr_swiglu_args args = {.gate_up = gate_up, .h = h, .rows = 1, .width = 2};

    (void)state;
    for (int i = 0; i < RIGS; ++i) {
        rig r;

        if (open_rig(i, &r)) {
            assert_ok(tsr_op_swiglu_forward(r.device, &args, r.stream));
            close_rig(&r);
            assert_close(TSR_F32, h, expected, 2, 0.0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_agree),
        cmocka_unit_test(plain_gradient_is_the_difference_quotient),
        cmocka_unit_test(large_gates_are_finite),
    };

    return tsr_unit_test_main("swiglu", tests, sizeof tests / sizeof *tests);
}
