/* Long vectors and AdamW against their plain twin, with equal bits on one and two threads. */
#include "tests/runtime/op_test.h"

/* below, at and above a register, a block of sums, and where threads begin to share */
static const int64_t counts[] = {0, 1, 3, 16, 17, 4095, 4096, 4097, 16385, 70001};
enum { COUNTS = sizeof counts / sizeof *counts };

static void conversion_rounds_as_the_twin(void **state)
{
    (void)state;
    for (int i = 0; i < RIGS * COUNTS; ++i) {
        const int64_t count = counts[i % COUNTS];
        rig r;

        if (!open_rig(i / COUNTS, &r)) {
            continue;
        }
        float *wide = take_random(TSR_F32, count + 3, 1, 1.0f), *back = take(count + 3, 4);
        tsr_bf16 *half = take(count + 3, 2), *copy = take(count + 3, 2);
        wide[count / 2] = NAN;
        wide[count / 3] = -INFINITY;
        assert_ok(tsr_op_convert(r.device, wide, TSR_F32, half, TSR_BF16, count, r.stream));
        assert_ok(tsr_op_convert(r.device, half, TSR_BF16, copy, TSR_BF16, count, r.stream));
        assert_ok(tsr_op_convert(r.device, copy, TSR_BF16, back, TSR_F32, count, r.stream));
        for (int64_t e = 0; e < count + 3; ++e) { /* three beyond the end: not written */
            const tsr_bf16 expected = e < count ? tsr_f32_to_bf16(wide[e]) : 0;
            const float wide_expected = tsr_bf16_to_f32(expected);

            assert_int_equal(half[e], expected);
            assert_int_equal(copy[e], expected);
            assert_memory_equal(&back[e], &wide_expected, sizeof wide_expected);
        }
        tsr_mem_free(wide);
        tsr_mem_free(back);
        tsr_mem_free(half);
        tsr_mem_free(copy);
        close_rig(&r);
    }
}

static void addition_is_exact(void **state)
{
    (void)state;
    for (int i = 0; i < RIGS * COUNTS; ++i) {
        const int64_t count = counts[i % COUNTS];
        rig r;

        if (!open_rig(i / COUNTS, &r)) {
            continue;
        }
        float *x = take_random(TSR_F32, count, 1, 1.0f), *y = take_random(TSR_F32, count, 2, 1.0f);
        float *old = take_random(TSR_F32, count, 2, 1.0f);
        assert_ok(tsr_op_add_f32(r.device, x, y, count, r.stream));
        for (int64_t e = 0; e < count; ++e) {
            assert_true(y[e] == old[e] + x[e]);
        }
        tsr_mem_free(x);
        tsr_mem_free(y);
        tsr_mem_free(old);
        close_rig(&r);
    }
}

/* Both sum in f64, in another order: within count 2^-53 sum |x| of each other, twice. */
static void check_sums(rig *r, rig *plain, int64_t count, double sums_out[2])
{
    float *x = take_random(TSR_F32, count, 5, 1.0f);
    double expected[2], absolute = 0.0;

    assert_ok(tsr_op_sum(r->device, x, count, &sums_out[0], r->stream));
    assert_ok(tsr_op_sum_squares(r->device, x, count, &sums_out[1], r->stream));
    assert_ok(tsr_op_sum(plain->device, x, count, &expected[0], plain->stream));
    assert_ok(tsr_op_sum_squares(plain->device, x, count, &expected[1], plain->stream));
    for (int64_t e = 0; e < count; ++e) {
        absolute += fabs((double)x[e]);
    }
    const double relative = 2.0 * (double)count * 0x1p-53;
    assert_true(fabs(sums_out[0] - expected[0]) <= relative * absolute);
    assert_true(fabs(sums_out[1] - expected[1]) <= relative * expected[1]);
    tsr_mem_free(x);
}

static void sums_match_and_ignore_threads(void **state)
{
    rig plain = open_plain();

    (void)state;
    for (int i = 0; i < RIGS; i += 2) {
        for (int c = 0; c < COUNTS; ++c) {
            double one[2], two[2];
            rig r;

            if (!open_rig(i, &r)) {
                continue;
            }
            check_sums(&r, &plain, counts[c], one);
            close_rig(&r);
            assert_true(open_rig(i + 1, &r));
            check_sums(&r, &plain, counts[c], two);
            close_rig(&r);
            assert_memory_equal(one, two, sizeof one);
        }
    }
    close_rig(&plain);
}

/* ---- AdamW
 * ------------------------------------------------------------------------------------ */

typedef struct adamw_case {
    int64_t count;
    tsr_dtype moment, work;
    bool in_place; /* work is master */
} adamw_case;

typedef struct adamw_memory {
    float *master, *grad;
    void *m, *v, *work;
} adamw_memory;

static tsr_adamw_args take_adamw(const adamw_case *c, adamw_memory *a)
{
    a->master = take_random(TSR_F32, c->count, 1, 1.0f);
    a->grad = take_random(TSR_F32, c->count, 2, 10.0f);
    a->m = take_random(c->moment, c->count, 3, 0.1f);
    a->v = take_random(c->moment, c->count, 4, 0.01f);
    a->work = take(c->count, 4);
    for (int64_t i = 0; i < c->count; ++i) { /* v is never negative */
        if (c->moment == TSR_F32) {
            ((float *)a->v)[i] = fabsf(((float *)a->v)[i]);
        } else {
            ((tsr_bf16 *)a->v)[i] &= 0x7fff;
        }
    }
    return (tsr_adamw_args){.master = a->master,
                            .m = a->m,
                            .v = a->v,
                            .grad = a->grad,
                            .work = c->in_place ? (void *)a->master : a->work,
                            .count = c->count,
                            .lr = 0.01f,
                            .beta1 = 0.9f,
                            .beta2 = 0.95f,
                            .eps = 1e-8f,
                            .decay = 0.1f,
                            .grad_scale = 0.25f,
                            .step = 7,
                            .work_dtype = c->work,
                            .moment_dtype = c->moment};
}

static void free_adamw(adamw_memory *a)
{
    tsr_mem_free(a->master);
    tsr_mem_free(a->grad);
    tsr_mem_free(a->m);
    tsr_mem_free(a->v);
    tsr_mem_free(a->work);
}

/* The kernel works in f32. m and v are sums of two products: within 3 eps of |terms|. The step is
 * their quotient: m's error over the root, and below 8 eps of itself for v's half, the corrections,
 * the root, the sum with eps and the division; master adds three roundings of its own. */
static void assert_adamw(const adamw_case *c, const tsr_adamw_args *args, const adamw_memory *got,
                         const adamw_memory *expected, const adamw_memory *start)
{
    const double b1 = (double)args->beta1, b2 = (double)args->beta2, lr = (double)args->lr;
    const double step = (double)args->step;

    for (int64_t i = 0; i < c->count; ++i) {
        const double g = (double)start->grad[i] * (double)args->grad_scale;
        const double m_terms = fabs(b1 * get(c->moment, start->m, i)) + fabs((1 - b1) * g);
        const double v = b2 * get(c->moment, start->v, i) + (1 - b2) * g * g;
        const double ratio = m_terms / (1 - pow(b1, step)) / sqrt(v / (1 - pow(b2, step)));
        const double tolerance =
            11 * F32_EPS * lr * ratio + 3 * F32_EPS * fabs((double)start->master[i]);
        const double moved = fabs((double)got->master[i] - (double)expected->master[i]);

        if (!(moved <= tolerance)) {
            fail_msg("master %lld is off by %g, at most %g", (long long)i, moved, tolerance);
        }
        assert_close(c->moment, (const char *)got->m + (size_t)i * tsr_dtype_bytes(c->moment),
                     (const char *)expected->m + (size_t)i * tsr_dtype_bytes(c->moment), 1,
                     4 * F32_EPS * m_terms);
        assert_close(c->moment, (const char *)got->v + (size_t)i * tsr_dtype_bytes(c->moment),
                     (const char *)expected->v + (size_t)i * tsr_dtype_bytes(c->moment), 1,
                     4 * F32_EPS * v);
        if (!c->in_place) { /* the working copy is exactly the rounded master */
            const double master = c->work == TSR_F32
                                      ? (double)got->master[i]
                                      : (double)tsr_bf16_to_f32(tsr_f32_to_bf16(got->master[i]));
            assert_true(get(c->work, got->work, i) == master);
        }
    }
}

static void check_adamw(const adamw_case *c)
{
    rig plain = open_plain();
    adamw_memory start, expected, first = {0};
    tsr_adamw_args args = take_adamw(c, &start);

    args = take_adamw(c, &expected);
    assert_ok(tsr_op_adamw(plain.device, &args, plain.stream));
    for (int i = 0; i < RIGS; ++i) {
        adamw_memory got;
        rig r;

        if (!open_rig(i, &r)) {
            continue;
        }
        args = take_adamw(c, &got);
        assert_ok(tsr_op_adamw(r.device, &args, r.stream));
        assert_adamw(c, &args, &got, &expected, &start);
        if (i % 2 == 0) {
            free_adamw(&first);
            first = got;
        } else {
            assert_memory_equal(got.master, first.master, (size_t)c->count * 4);
            free_adamw(&got);
        }
        close_rig(&r);
    }
    close_rig(&plain);
    free_adamw(&start);
    free_adamw(&expected);
    free_adamw(&first);
}

static void adamw_matches_the_twin(void **state)
{
    (void)state;
    for (int c = 0; c < COUNTS; ++c) {
        check_adamw(&(adamw_case){counts[c], TSR_F32, TSR_F32, false});
        check_adamw(&(adamw_case){counts[c], TSR_F32, TSR_F32, true});
        check_adamw(&(adamw_case){counts[c], TSR_F32, TSR_BF16, false});
        check_adamw(&(adamw_case){counts[c], TSR_BF16, TSR_F32, false});
        check_adamw(&(adamw_case){counts[c], TSR_BF16, TSR_BF16, false});
    }
}

/* From rest the first step is lr * sign(grad), whatever the betas: both moments are corrected. */
static void the_first_step_is_the_learning_rate(void **state)
{
    (void)state;
    for (int i = 0; i < RIGS; ++i) {
        float master[3] = {1, 1, 1}, m[3] = {0}, v[3] = {0};
        const float grad[3] = {-3.0f, 0.5f, 0.0f};
        const tsr_adamw_args args = {.master = master,
                                     .m = m,
                                     .v = v,
                                     .grad = grad,
                                     .work = master,
                                     .count = 3,
                                     .lr = 0.125f,
                                     .beta1 = 0.9f,
                                     .beta2 = 0.999f,
                                     .grad_scale = 1.0f,
                                     .eps = 1e-12f,
                                     .step = 1};
        rig r;

        if (!open_rig(i, &r)) {
            continue;
        }
        assert_ok(tsr_op_adamw(r.device, &args, r.stream));
        assert_true(fabsf(master[0] - 1.125f) < 1e-6f && fabsf(master[1] - 0.875f) < 1e-6f);
        assert_true(master[2] == 1.0f);
        close_rig(&r);
    }
}

static void bad_vectors_are_refused(void **state)
{
    float f[4] = {0};
    double d = 0;
    tsr_adamw_args args = {.master = f, .m = f, .v = f, .grad = f, .work = f, .count = 4};
    rig r = open_plain();

    (void)state;
    assert_refused(tsr_op_convert(r.device, f, TSR_F32, f, TSR_BF16, -1, r.stream), "count = -1");
    assert_refused(tsr_op_convert(r.device, f, (tsr_dtype)9, f, TSR_BF16, 1, r.stream),
                   "from_dtype = 9");
    assert_refused(tsr_op_convert(r.device, NULL, TSR_F32, f, TSR_BF16, 1, r.stream), "NULL");
    assert_refused(tsr_op_add_f32(r.device, f, NULL, 1, r.stream), "NULL");
    assert_refused(tsr_op_sum(r.device, NULL, 1, &d, r.stream), "NULL");
    assert_refused(tsr_op_sum_squares(r.device, f, 0, NULL, r.stream), "out must not be NULL");
    assert_refused(tsr_op_adamw(r.device, &args, r.stream), "step = 0");
    args.step = 1;
    args.work_dtype = TSR_BF16;
    assert_refused(tsr_op_adamw(r.device, &args, r.stream), "work may be master only in f32");
    args.work_dtype = TSR_F32;
    args.v = NULL;
    assert_refused(tsr_op_adamw(r.device, &args, r.stream), "v must not be NULL");
    close_rig(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conversion_rounds_as_the_twin),
        cmocka_unit_test(addition_is_exact),
        cmocka_unit_test(sums_match_and_ignore_threads),
        cmocka_unit_test(adamw_matches_the_twin),
        cmocka_unit_test(the_first_step_is_the_learning_rate),
        cmocka_unit_test(bad_vectors_are_refused),
    };

    return tsr_unit_test_main("runtime.vectors", tests, sizeof tests / sizeof *tests);
}
