#include "tests/runtime/op_test.h"

typedef struct results {
    void *y;
    float *rstd, *dx, *dweight;
} results;

static results take_results(int64_t rows, int64_t width)
{
    return (results){take(rows * width, 4), take(rows, 4), take(rows * width, 4), take(width, 4)};
}

static void free_results(results *r)
{
    tsr_mem_free(r->y);
    tsr_mem_free(r->rstd);
    tsr_mem_free(r->dx);
    tsr_mem_free(r->dweight);
}

/* dx starts at one and dweight at two, to see that they are added to or overwritten. */
static void run(rig *r, tsr_rmsnorm_args args, bool accumulate, results *out)
{
    args.y = out->y;
    args.rstd = out->rstd;
    args.dx = out->dx;
    args.dweight = out->dweight;
    args.accumulate = accumulate;
    for (int64_t i = 0; i < args.rows * args.width; ++i) {
        args.dx[i] = 1.0f;
    }
    for (int64_t i = 0; i < args.width; ++i) {
        args.dweight[i] = 2.0f;
    }
    assert_ok(tsr_op_rmsnorm_forward(r->device, &args, r->stream));
    assert_ok(tsr_op_rmsnorm_backward_input(r->device, &args, r->stream));
    assert_ok(tsr_op_rmsnorm_backward_weight(r->device, &args, r->stream));
}

/* Terms are of order one (normal numbers below 5), sums over D or T of them are rounded at most
 * once a term: 25 n eps bounds their error, n the larger of D and T. */
static void compare_devices(int64_t rows, int64_t width, tsr_dtype dtype, bool accumulate)
{
    const double tolerance = 25.0 * (double)(rows + width + 8) * F32_EPS;
    float *x = take_random(TSR_F32, rows * width, 1, 1.0f);
    float *dy = take_random(TSR_F32, rows * width, 2, 1.0f);
    float *weight = take_random(TSR_F32, width, 3, 1.0f);
    const tsr_rmsnorm_args args = {.x = x,
                                   .weight = weight,
                                   .rows = rows,
                                   .width = width,
                                   .eps = 1e-5f,
                                   .dtype = dtype,
                                   .dy = dy};
    results expected = take_results(rows, width), got = take_results(rows, width);
    results single = take_results(rows, width);
    rig r = open_plain();

    run(&r, args, accumulate, &expected);
    close_rig(&r);
    for (int i = 0; i < RIGS; ++i) {
        results *out = i % 2 == 0 ? &single : &got;

        if (!open_rig(i, &r)) {
            continue;
        }
        run(&r, args, accumulate, out);
        close_rig(&r);
        assert_close(dtype, out->y, expected.y, rows * width, tolerance);
        assert_close(TSR_F32, out->rstd, expected.rstd, rows, tolerance);
        assert_close(TSR_F32, out->dx, expected.dx, rows * width, tolerance);
        assert_close(TSR_F32, out->dweight, expected.dweight, width, tolerance);
        if (i % 2 == 1) {
            assert_memory_equal(got.dx, single.dx, (size_t)(rows * width) * 4);
            assert_memory_equal(got.dweight, single.dweight, (size_t)width * 4);
        }
    }
    free_results(&expected);
    free_results(&got);
    free_results(&single);
    tsr_mem_free(x);
    tsr_mem_free(dy);
    tsr_mem_free(weight);
}

static void devices_agree(void **state)
{
    static const int64_t rows[] = {0, 1, 3, 130}, widths[] = {1, 7, 64, 192, 300};

    (void)state;
    for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 5; ++j) {
            compare_devices(rows[i], widths[j], TSR_F32, false);
            compare_devices(rows[i], widths[j], TSR_BF16, true);
        }
    }
}

enum { ROWS = 3, WIDTH = 10 };

static double loss(rig *r, const tsr_rmsnorm_args *args)
{
    const float *y = args->y;
    double sum = 0.0;

    assert_ok(tsr_op_rmsnorm_forward(r->device, args, r->stream));
    for (int64_t i = 0; i < ROWS * WIDTH; ++i) {
        sum += (double)y[i] * (double)args->dy[i];
    }
    return sum;
}

/* Central difference: error h^2/6 times the third derivative (some units here) plus 30 roundings of
 * y over 2 h, about 1e-4 + 1e-4 for h = 1e-2. */
static void plain_gradient_is_the_difference_quotient(void **state)
{
    const float h = 1e-2f;
    float *x = take_random(TSR_F32, ROWS * WIDTH, 1, 1.0f);
    float *dy = take_random(TSR_F32, ROWS * WIDTH, 2, 1.0f);
    float *weight = take_random(TSR_F32, WIDTH, 3, 1.0f);
    results out = take_results(ROWS, WIDTH);
    tsr_rmsnorm_args args = {.x = x,
                             .weight = weight,
                             .rows = ROWS,
                             .width = WIDTH,
                             .eps = 1e-5f,
                             .dtype = TSR_F32,
                             .dy = dy,
                             .y = out.y};
    rig r = open_plain();

    (void)state;
    run(&r, args, false, &out);
    for (int i = 0; i < ROWS * WIDTH + WIDTH; ++i) {
        float *at = i < ROWS * WIDTH ? &x[i] : &weight[i - ROWS * WIDTH];
        const double got =
            i < ROWS * WIDTH ? (double)out.dx[i] - 1.0 : (double)out.dweight[i - ROWS * WIDTH];
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
    tsr_mem_free(x);
    tsr_mem_free(dy);
    tsr_mem_free(weight);
}

static void a_row_of_equal_numbers_becomes_the_weight(void **state)
{
    float x[4] = {3.0f, 3.0f, 3.0f, 3.0f}, weight[4] = {1.0f, 2.0f, 3.0f, 4.0f}, y[4];
    const tsr_rmsnorm_args args = {.x = x, .weight = weight, .y = y, .rows = 1, .width = 4};
    rig r;

    (void)state;
    assert_true(open_named("cpu", 1, &r));
    assert_ok(tsr_op_rmsnorm_forward(r.device, &args, r.stream));
    close_rig(&r);
    assert_close(TSR_F32, y, weight, 4, 4.0 * 2.0 * F32_EPS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_agree),
        cmocka_unit_test(plain_gradient_is_the_difference_quotient),
        cmocka_unit_test(a_row_of_equal_numbers_becomes_the_weight),
    };

    return tsr_unit_test_main("norm", tests, sizeof tests / sizeof *tests);
}
