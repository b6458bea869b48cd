/* Long vectors and the optimizer's step. */
#include "tests/cuda/cuda_test.h"

/* below, at and above a pack, a block of threads, and a block of sums */
static const int64_t counts[] = {0, 1, 3, 8, 2047, 2048, 4099, 16384, 16389};
enum { COUNTS = sizeof counts / sizeof *counts };

/* ---- conversion and addition ---------------------------------------------------------------- */

static void check_convert(int64_t count, tsr_dtype from_dtype, tsr_dtype to_dtype)
{
    array from = make_random(from_dtype, count, 1, 1.0f);
    array to = make_array(NULL, count, tsr_dtype_bytes(to_dtype));

    for (int s = PLAIN; s < SIDES; ++s) {
        assert_ok(tsr_op_convert(cuda_rig[s].device, on((side)s, &from), from_dtype,
                                 on((side)s, &to), to_dtype, count, cuda_rig[s].stream));
    }
    assert_same_bytes(&to);
    free_array(&from);
    free_array(&to);
}

static void check_add(int64_t count)
{
    array x = make_random(TSR_F32, count, 1, 1.0f), y = make_random(TSR_F32, count, 2, 1.0f);

    for (int s = PLAIN; s < SIDES; ++s) {
        assert_ok(tsr_op_add_f32(cuda_rig[s].device, on((side)s, &x), on((side)s, &y), count,
                                 cuda_rig[s].stream));
    }
    assert_same_bytes(&y);
    free_array(&x);
    free_array(&y);
}

static void check_element_wise(void)
{
    for (int c = 0; c < COUNTS; ++c) {
        check_add(counts[c]);
        for (int types = 0; types < 4; ++types) {
            check_convert(counts[c], (tsr_dtype)(types % 2), (tsr_dtype)(types / 2));
        }
    }
}

static void conversion_and_addition_are_exact(void **state)
{
    (void)state;
    each_order(check_element_wise);
}

static void check_special_numbers(void)
{
    const float special[6] = {NAN, INFINITY, -INFINITY, -0.0f, 1e-41f, 3.4e38f};
    array from = make_array(special, 6, 4), to = make_array(NULL, 6, 2);

    for (int s = PLAIN; s < SIDES; ++s) {
        assert_ok(tsr_op_convert(cuda_rig[s].device, on((side)s, &from), TSR_F32, on((side)s, &to),
                                 TSR_BF16, 6, cuda_rig[s].stream));
    }
    assert_array(TSR_BF16, &to, 0.0);
    free_array(&from);
    free_array(&to);
}

static void special_numbers_survive_conversion(void **state)
{
    (void)state;
    each_order(check_special_numbers);
}

/* ---- sums ----------------------------------------------------------------------------------- */

/* Both sum in f64, in another order: within count 2^-53 sum |x| of each other, twice. */
static void check_sum(int64_t count)
{
    array x = make_random(TSR_F32, count, 5, 1.0f), sums = make_array(NULL, 2, 8);
    double bound = 0.0;

    for (int s = PLAIN; s < SIDES; ++s) {
        rig *const r = &cuda_rig[s];
        double *out = on((side)s, &sums);

        assert_ok(tsr_op_sum(r->device, on((side)s, &x), count, out, r->stream));
        assert_ok(tsr_op_sum_squares(r->device, on((side)s, &x), count, out + 1, r->stream));
    }
    for (int64_t i = 0; i < count; ++i) { /* x^2 < 25: squares are below 5 |x| */
        bound += 5.0 * fabs(get(TSR_F32, on(PLAIN, &x), i));
    }
    const double tolerance = 2.0 * (double)count * 0x1p-53 * bound;
    char *got = fetch(&sums);
    for (int i = 0; i < 2; ++i) {
        double g, e;

        memcpy(&g, got + sums.front + i * 8, 8);
        memcpy(&e, sums.host + sums.front + i * 8, 8);
        assert_true(fabs(g - e) <= tolerance);
    }
    tsr_mem_free(got);
    free_array(&x);
    free_array(&sums);
}

static void check_sums(void)
{
    for (int c = 0; c < COUNTS; ++c) {
        check_sum(counts[c]);
    }
    check_sum(70001);
}

static void sums_match_the_twin(void **state)
{
    (void)state;
    each_order(check_sums);
}

/* ---- AdamW ---------------------------------------------------------------------------------- */

static struct {
    array master, m, v, grad, work;
    tsr_adamw_args sizes;
    bool in_place;
} adamw;

static const tsr_adamw_args *adamw_args(side s)
{
    static tsr_adamw_args args;

    args = adamw.sizes;
    args.master = on(s, &adamw.master);
    args.m = on(s, &adamw.m);
    args.v = on(s, &adamw.v);
    args.grad = on(s, &adamw.grad);
    args.work = on(s, adamw.in_place ? &adamw.master : &adamw.work);
    return &args;
}

/* v must not be negative */
static array make_squares(tsr_dtype dtype, int64_t count)
{
    float *wide = take_random(TSR_F32, count, 4, 0.1f);
    tsr_bf16 *narrow = take(count, 2);

    for (int64_t i = 0; i < count; ++i) {
        wide[i] = 0.01f + wide[i] * wide[i];
        narrow[i] = tsr_f32_to_bf16(wide[i]);
    }
    const array a = dtype == TSR_F32 ? make_array(wide, count, 4) : make_array(narrow, count, 2);
    tsr_mem_free(wide);
    tsr_mem_free(narrow);
    return a;
}

/* Before the last roundings to bf16: |g| < 1.25 and |m| < 0.7, so m's terms stay below 0.8 and v's
 * below 0.35; both are within 4 eps of their terms. The corrected root is at least
 * sqrt(0.0095 / 0.31) > 0.17 and the corrected m below 0.8 / 0.52 = 1.6, so the step stays below 10
 * and errs by 11 eps of it; lr = 0.01. Then three roundings of master, below 5. */
static void check_adamw(int64_t count, tsr_dtype moment, tsr_dtype work, bool in_place)
{
    adamw.in_place = in_place;
    adamw.master = make_random(TSR_F32, count, 1, 1.0f);
    adamw.m = make_random(moment, count, 3, 0.1f);
    adamw.v = make_squares(moment, count);
    adamw.grad = make_random(TSR_F32, count, 2, 1.0f);
    adamw.work = make_array(NULL, count, tsr_dtype_bytes(work));
    adamw.sizes = (tsr_adamw_args){.count = count,
                                   .lr = 0.01f,
                                   .beta1 = 0.9f,
                                   .beta2 = 0.95f,
                                   .eps = 1e-8f,
                                   .decay = 0.1f,
                                   .grad_scale = 0.25f,
                                   .step = 7,
                                   .work_dtype = work,
                                   .moment_dtype = moment};
    BOTH(tsr_op_adamw, adamw_args);
    const double tolerance = (0.01 * 10 * 11 + 3 * 5) * F32_EPS;
    assert_array(TSR_F32, &adamw.master, tolerance);
    assert_array(moment, &adamw.m, 4 * 0.8 * F32_EPS);
    assert_array(moment, &adamw.v, 4 * 0.35 * F32_EPS);
    assert_array(work, &adamw.work, tolerance);
    free_array(&adamw.master);
    free_array(&adamw.m);
    free_array(&adamw.v);
    free_array(&adamw.grad);
    free_array(&adamw.work);
}

static void check_adamws(void)
{
    for (int c = 0; c < COUNTS; ++c) {
        for (int types = 0; types < 4; ++types) {
            check_adamw(counts[c], (tsr_dtype)(types % 2), (tsr_dtype)(types / 2), false);
        }
        check_adamw(counts[c], TSR_F32, TSR_F32, true);
    }
}

static void adamw_matches_the_twin(void **state)
{
    (void)state;
    each_order(check_adamws);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conversion_and_addition_are_exact),
        cmocka_unit_test(special_numbers_survive_conversion),
        cmocka_unit_test(sums_match_the_twin),
        cmocka_unit_test(adamw_matches_the_twin),
    };

    return tsr_unit_test_main("cuda.vectors", tests, sizeof tests / sizeof *tests);
}
