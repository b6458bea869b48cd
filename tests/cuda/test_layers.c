/* Norm, rope and SwiGLU. */
#include "tests/cuda/cuda_test.h"

/* ---- norm ----------------------------------------------------------------------------------- */

typedef struct norm_case {
    array x, weight, y, rstd, dy, dx, dweight;
    tsr_rmsnorm_args sizes;
} norm_case;

static norm_case norm;

static const tsr_rmsnorm_args *norm_args(side s)
{
    static tsr_rmsnorm_args args;

    args = norm.sizes;
    args.x = on(s, &norm.x);
    args.weight = on(s, &norm.weight);
    args.y = on(s, &norm.y);
    args.rstd = on(s, &norm.rstd);
    args.dy = on(s, &norm.dy);
    args.dx = on(s, &norm.dx);
    args.dweight = on(s, &norm.dweight);
    return &args;
}

/* The bound of tests/runtime/test_norm.c: terms of order one, below 25, rounded once each. */
static void check_norm(int64_t rows, int64_t width, tsr_dtype dtype, bool accumulate)
{
    const double tolerance = 25.0 * (double)(rows + width + 8) * F32_EPS;

    norm = (norm_case){
        .x = make_random(TSR_F32, rows * width, 1, 1.0f),
        .weight = make_random(TSR_F32, width, 2, 1.0f),
        .y = make_array(NULL, rows * width, tsr_dtype_bytes(dtype)),
        .rstd = make_array(NULL, rows, 4),
        .dy = make_random(TSR_F32, rows * width, 3, 1.0f),
        .dx = make_random(TSR_F32, rows * width, 4, 1.0f),
        .dweight = make_random(TSR_F32, width, 5, 1.0f),
        .sizes = {
            .rows = rows, .width = width, .eps = 1e-5f, .dtype = dtype, .accumulate = accumulate}};
    BOTH(tsr_op_rmsnorm_forward, norm_args);
    BOTH(tsr_op_rmsnorm_backward_input, norm_args);
    BOTH(tsr_op_rmsnorm_backward_weight, norm_args);
    assert_array(dtype, &norm.y, tolerance);
    assert_array(TSR_F32, &norm.rstd, tolerance);
    assert_array(TSR_F32, &norm.dx, tolerance);
    assert_array(TSR_F32, &norm.dweight, tolerance);
    array *const all[] = {&norm.x,  &norm.weight, &norm.y,      &norm.rstd,
                          &norm.dy, &norm.dx,     &norm.dweight};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) {
        free_array(all[i]);
    }
}

static void check_norms(void)
{
    check_norm(0, 5, TSR_F32, false); /* no rows: the weight's gradient is zero, or kept */
    check_norm(0, 5, TSR_F32, true);
    check_norm(1, 1, TSR_F32, false);
    check_norm(3, 7, TSR_BF16, true);
    check_norm(5, 64, TSR_F32, true);
    check_norm(2, 300, TSR_BF16, false);
    check_norm(1, 2056, TSR_F32, false);  /* single elements: more than the registers keep */
    check_norm(1, 8204, TSR_BF16, true);  /* packs: more than the registers keep */
    check_norm(600, 4, TSR_F32, true);    /* three slices of rows */
    check_norm(16500, 1, TSR_F32, false); /* the most slices */
}

static void norm_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_norms);
}

/* ---- rope ----------------------------------------------------------------------------------- */

static struct {
    array x, cosine, sine;
    tsr_rope_args sizes;
} rope;

static const tsr_rope_args *rope_args(side s)
{
    static tsr_rope_args args;

    args = rope.sizes;
    args.x = on(s, &rope.x);
    args.cosine = on(s, &rope.cosine);
    args.sine = on(s, &rope.sine);
    return &args;
}

/* Two products of numbers below 5 and 1 and their sum: three roundings of at most 10 eps. */
static void check_rope(int heads, int head_dim, int64_t gap, tsr_dtype dtype, bool inverse)
{
    enum { TOKENS = 7, SEQ_LEN = 3, FIRST = 2 };
    const int64_t stride = (int64_t)heads * head_dim + gap, half = head_dim / 2;
    const int64_t angles = (FIRST + SEQ_LEN) * half;
    float *cosine = take(angles, 4), *sine = take(angles, 4);

    for (int64_t i = 0; i < angles; ++i) {
        cosine[i] = cosf((float)i);
        sine[i] = sinf((float)i);
    }
    rope.x = make_random(dtype, TOKENS * stride, 1, 1.0f);
    rope.cosine = make_array(cosine, angles, 4);
    rope.sine = make_array(sine, angles, 4);
    rope.sizes = (tsr_rope_args){.tokens = TOKENS,
                                 .seq_len = SEQ_LEN,
                                 .first_position = FIRST,
                                 .row_stride = stride,
                                 .heads = heads,
                                 .head_dim = head_dim,
                                 .inverse = inverse,
                                 .dtype = dtype};
    BOTH(tsr_op_rope, rope_args);
    assert_array(dtype, &rope.x, 30 * F32_EPS);
    free_array(&rope.x);
    free_array(&rope.cosine);
    free_array(&rope.sine);
    tsr_mem_free(cosine);
    tsr_mem_free(sine);
}

static void check_ropes(void)
{
    check_rope(3, 64, 64, TSR_BF16, false);
    check_rope(1, 2, 0, TSR_F32, false);
    check_rope(5, 6, 1, TSR_F32, true);
    check_rope(5, 16, 3, TSR_BF16, true);
    check_rope(40, 16, 8, TSR_BF16, false);  /* more heads than rows of threads, not aligned */
    check_rope(70, 32, 0, TSR_F32, true);    /* more heads than rows of threads, packs */
    check_rope(2, 1030, 0, TSR_BF16, false); /* wider than a block */
    check_rope(2, 4112, 0, TSR_BF16, false);
}

static void rope_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_ropes);
}

/* ---- SwiGLU --------------------------------------------------------------------------------- */

static struct {
    array gate_up, row_weight, h, dh, dgate_up, drow_weight;
    tsr_swiglu_args sizes;
    bool is_weighted, keeps_h, in_place;
} swiglu;

static const tsr_swiglu_args *swiglu_args(side s)
{
    static tsr_swiglu_args args;

    args = swiglu.sizes;
    args.gate_up = on(s, &swiglu.gate_up);
    args.row_weight = swiglu.is_weighted ? on(s, &swiglu.row_weight) : NULL;
    args.h = swiglu.keeps_h ? on(s, &swiglu.h) : NULL;
    args.dh = on(s, &swiglu.dh);
    args.dgate_up = on(s, swiglu.in_place ? &swiglu.gate_up : &swiglu.dgate_up);
    args.drow_weight = swiglu.is_weighted ? on(s, &swiglu.drow_weight) : NULL;
    return &args;
}

/* Factors: |gate|, |up|, |dh| and |weight| below 5, sigmoid and its parts below 1.1, so products
 * stay below 700; the sigmoid errs by 5 + 4 eps, seven more roundings follow. The row weight's
 * gradient adds `width` products below 125, each with that error, and is rounded once a term. */
static void check_swiglu(int64_t rows, int64_t width, tsr_dtype dtype, int options)
{
    const double tolerance = 700.0 * 16.0 * F32_EPS;

    swiglu.is_weighted = (options & 1) != 0;
    swiglu.in_place = (options & 2) != 0;
    swiglu.gate_up = make_random(dtype, rows * 2 * width, 1, 1.0f);
    swiglu.row_weight = make_random(TSR_F32, rows, 2, 1.0f);
    swiglu.h = make_array(NULL, rows * width, tsr_dtype_bytes(dtype));
    swiglu.dh = make_random(dtype, rows * width, 3, 1.0f);
    swiglu.dgate_up = make_array(NULL, rows * 2 * width, tsr_dtype_bytes(dtype));
    swiglu.drow_weight = make_array(NULL, rows, 4);
    swiglu.sizes = (tsr_swiglu_args){.rows = rows, .width = width, .dtype = dtype};
    swiglu.keeps_h = true;
    BOTH(tsr_op_swiglu_forward, swiglu_args);
    assert_array(dtype, &swiglu.h, tolerance);
    swiglu.keeps_h = (options & 4) != 0;
    BOTH(tsr_op_swiglu_backward, swiglu_args);
    assert_array(dtype, &swiglu.h, tolerance);
    assert_array(dtype, &swiglu.gate_up, tolerance);
    assert_array(dtype, &swiglu.dgate_up, tolerance);
    assert_array(TSR_F32, &swiglu.drow_weight,
                 125.0 * (double)width * (16.0 + (double)width) * F32_EPS);
    array *const all[] = {&swiglu.gate_up, &swiglu.row_weight, &swiglu.h,
                          &swiglu.dh,      &swiglu.dgate_up,   &swiglu.drow_weight};
    for (size_t i = 0; i < sizeof all / sizeof *all; ++i) {
        free_array(all[i]);
    }
}

static void check_swiglus(void)
{
    for (int options = 0; options < 8; ++options) {
        check_swiglu(1, 1, TSR_F32, options);
        check_swiglu(3, 7, TSR_BF16, options);
        check_swiglu(3, 64, TSR_BF16, options);
        check_swiglu(2, 300, TSR_F32, options);
    }
    check_swiglu(1, 2056, TSR_BF16, 7); /* more packs than threads */
}

static void swiglu_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_swiglus);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(norm_matches_the_twin),
        cmocka_unit_test(rope_matches_the_twin),
        cmocka_unit_test(swiglu_matches_the_twin),
    };

    return tsr_unit_test_main("cuda.layers", tests, sizeof tests / sizeof *tests);
}
