#include "tests/runtime/op_test.h"

enum { POSITIONS = 40 };

typedef struct tables {
    float *cosine, *sine; /* [POSITIONS, head_dim / 2] */
} tables;

static tables take_tables(int head_dim)
{
    const int half = head_dim / 2;
    tables t = {take(POSITIONS * half, 4), take(POSITIONS * half, 4)};

    for (int position = 0; position < POSITIONS; ++position) {
        for (int i = 0; i < half; ++i) {
            const double angle = position * pow(10000.0, -2.0 * i / head_dim);

            t.cosine[position * half + i] = (float)cos(angle);
            t.sine[position * half + i] = (float)sin(angle);
        }
    }
    return t;
}

static void free_tables(tables *t)
{
    tsr_mem_free(t->cosine);
    tsr_mem_free(t->sine);
}

/* Two products of numbers below 5 and a sum: three roundings of 10 at most. */
static void compare_devices(int64_t tokens, int heads, int head_dim, tsr_dtype dtype, bool inverse)
{
    const int64_t stride = heads * head_dim + 3, count = tokens * stride;
    const size_t bytes = (size_t)count * tsr_dtype_bytes(dtype);
    tables t = take_tables(head_dim);
    void *expected = take_random(dtype, count, 1, 1.0f), *got = take(count, 4);
    void *input = take_random(dtype, count, 1, 1.0f);
    tsr_rope_args args = {.x = expected,
                          .cosine = t.cosine,
                          .sine = t.sine,
                          .tokens = tokens,
                          .seq_len = 5,
                          .first_position = 30,
                          .row_stride = stride,
                          .heads = heads,
                          .head_dim = head_dim,
                          .inverse = inverse,
                          .dtype = dtype};
    rig r = open_plain();

    assert_ok(tsr_op_rope(r.device, &args, r.stream));
    close_rig(&r);
    args.x = got;
    for (int i = 0; i < RIGS; ++i) {
        if (open_rig(i, &r)) {
            memcpy(got, input, bytes);
            assert_ok(tsr_op_rope(r.device, &args, r.stream));
            close_rig(&r);
            assert_close(dtype, got, expected, count, 30.0 * F32_EPS);
        }
    }
    free_tables(&t);
    tsr_mem_free(expected);
    tsr_mem_free(got);
    tsr_mem_free(input);
}

static void devices_agree(void **state)
{
    static const int head_dims[] = {2, 6, 32, 64, 72};

    (void)state;
    for (int i = 0; i < 5; ++i) {
        compare_devices(10, 3, head_dims[i], TSR_F32, false);
        compare_devices(10, 3, head_dims[i], TSR_BF16, true);
        compare_devices(1, 1, head_dims[i], TSR_F32, true);
        compare_devices(0, 1, head_dims[i], TSR_F32, false);
    }
}

/* Element i turns with element i + hd/2, not with its neighbour: position 1, hd 4, angles 1 and
 * 0.01. */
static void halves_are_paired(void **state)
{
    float x[8] = {9.0f, 9.0f, 9.0f, 9.0f, 1.0f, 2.0f, 3.0f, 4.0f};
    const float expected[8] = {9.0f,
                               9.0f,
                               9.0f,
                               9.0f,
                               (float)(cos(1.0) - 3.0 * sin(1.0)),
                               (float)(2.0 * cos(0.01) - 4.0 * sin(0.01)),
                               (float)(3.0 * cos(1.0) + sin(1.0)),
                               (float)(4.0 * cos(0.01) + 2.0 * sin(0.01))};
    tables t = take_tables(4);
    const tsr_rope_args args = {.x = x,
                                .cosine = t.cosine,
                                .sine = t.sine,
                                .tokens = 2,
                                .seq_len = 2,
                                .row_stride = 4,
                                .heads = 1,
                                .head_dim = 4};
    rig r;

    (void)state;
    assert_true(open_named("cpu", 1, &r));
    assert_ok(tsr_op_rope(r.device, &args, r.stream));
    close_rig(&r);
    assert_close(TSR_F32, x, expected, 8, 30.0 * F32_EPS);
    free_tables(&t);
}

/* A rotation's transpose is its inverse, so this also makes `inverse` the gradient. */
static void inverse_undoes_it(void **state)
{
    float *x = take_random(TSR_F32, 10 * 64, 1, 1.0f), *before = take_random(TSR_F32, 640, 1, 1.0f);
    tables t = take_tables(32);
    tsr_rope_args args = {.x = x,
                          .cosine = t.cosine,
                          .sine = t.sine,
                          .tokens = 10,
                          .seq_len = 10,
                          .row_stride = 64,
                          .heads = 2,
                          .head_dim = 32};
    rig r = open_plain();

    (void)state;
    assert_ok(tsr_op_rope(r.device, &args, r.stream));
    args.inverse = true;
    assert_ok(tsr_op_rope(r.device, &args, r.stream));
    close_rig(&r);
    assert_close(TSR_F32, x, before, 640, 60.0 * F32_EPS);
    free_tables(&t);
    tsr_mem_free(x);
    tsr_mem_free(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_agree),
        cmocka_unit_test(halves_are_paired),
        cmocka_unit_test(inverse_undoes_it),
    };

    return tsr_unit_test_main("rope", tests, sizeof tests / sizeof *tests);
}
