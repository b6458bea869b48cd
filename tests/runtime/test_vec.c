/* Vector helpers of the cpu kernels; compiled once per instruction set, as the kernels are. */
#include "runtime/cpu/simd/vec.h"
#include "tests/support/unit_test.h"

static bool is_supported(void)
{
#if defined(__AVX512BF16__)
    return __builtin_cpu_supports("avx512bf16");
#elif defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

/* 2 ulp are at most 2 * 2^-23 of the value. */
static void exp_is_within_two_ulp(void **state)
{
    (void)state;
    for (float x = -87.3f; x < 88.7f; x += 0.00037f) {
        const vec got = vec_exp(vec_set(x));
        const double exact = exp((double)x);

        if (!(fabs((double)got[VEC_N - 1] - exact) <= 0x1p-22 * exact)) {
            fail_msg("exp(%.9g) is %.9g, must be %.9g", (double)x, (double)got[0], exact);
        }
    }
}

static void exp_keeps_the_special_values(void **state)
{
    static const float x[] = {0, -INFINITY, -1000, -87.5f, 88.73f, 1000, INFINITY};
    static const float expected[] = {1, 0, 0, 0, INFINITY, INFINITY, INFINITY};

    (void)state;
    for (int i = 0; i < 7; ++i) {
        assert_true(vec_exp(vec_set(x[i]))[0] == expected[i]);
    }
    assert_true(isnan(vec_exp(vec_set(NAN))[0]));
    assert_true(vec_exp(vec_set(88.72f))[0] < INFINITY);
    assert_true(vec_exp(vec_set(-87.33f))[0] > 0);
}

/* Every upper half, with lower halves around the ties: the same bits as the scalar conversion. */
static void bf16_rounds_as_the_scalar(void **state)
{
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};

    (void)state;
    for (uint32_t upper = 0; upper < 0x10000; ++upper) {
        for (int i = 0; i < 6; ++i) {
            const uint32_t bits = upper << 16 | lower[i];
            tsr_bf16 got[VEC_N];
            float value;

            memcpy(&value, &bits, sizeof value);
            if (fpclassify(value) == FP_SUBNORMAL) {
                continue; /* some instruction sets make zeros of them, as vec.h says */
            }
            vec_store_bf16(got, vec_set(value));
            assert_int_equal(got[VEC_N - 1], tsr_f32_to_bf16(value));
            assert_true(isnan(value) || vec_load_bf16(got)[0] == tsr_bf16_to_f32(got[0]));
        }
    }
}

static void lanes_are_summed_and_compared(void **state)
{
    (void)state;
    for (int at = 0; at < VEC_N; ++at) {
        float x[VEC_N];

        for (int i = 0; i < VEC_N; ++i) {
            x[i] = (float)(i == at ? 100 : -i);
        }
        assert_true(vec_max_lane(vec_load(x)) == 100);
        assert_true(vec_sum(vec_load(x)) == (float)(100 + at - VEC_N * (VEC_N - 1) / 2));
        const vec root = vec_sqrt(vec_set((float)(at * at)));
        assert_true(root[at] == (float)at);
        const vec chosen = vec_select(vec_load(x) > 0.0f, vec_set(1), vec_set(-0.0f));
        assert_true(chosen[at] == 1);
        assert_true(signbit(chosen[(at + 1) % VEC_N]));
    }
}

/* Neither reads nor writes beyond its count: the blocks end there, which the sanitizer watches. */
static void parts_touch_nothing_else(void **state)
{
    (void)state;
    for (int64_t count = 1; count < VEC_N; ++count) {
        float *f = NULL;
        tsr_bf16 *half = NULL;

        assert_ok(tsr_mem_alloc_array(TSR_MEM_OTHER, count + 1, sizeof *f, (void **)&f));
        assert_ok(tsr_mem_alloc_array(TSR_MEM_OTHER, count + 1, sizeof *half, (void **)&half));
        vec_store_part(f, vec_set(3), count);
        vec_store_bf16_part(half, vec_set(3), count);
        assert_true(f[count - 1] == 3 && f[count] == 0);
        assert_true(tsr_bf16_to_f32(half[count - 1]) == 3 && half[count] == 0);
        const vec wide = vec_load_part(f, count), widened = vec_load_bf16_part(half, count);
        for (int lane = 0; lane < VEC_N; ++lane) {
            assert_true(wide[lane] == (lane < count ? 3.0f : 0.0f));
            assert_true(widened[lane] == wide[lane]);
        }
        tsr_mem_free(f);
        tsr_mem_free(half);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_is_within_two_ulp),
        cmocka_unit_test(exp_keeps_the_special_values),
        cmocka_unit_test(bf16_rounds_as_the_scalar),
        cmocka_unit_test(lanes_are_summed_and_compared),
        cmocka_unit_test(parts_touch_nothing_else),
    };

    if (!is_supported()) {
        (void)fprintf(stderr, "this processor lacks the instructions\n");
        return 77;
    }
    return tsr_unit_test_main("runtime.vec", tests, sizeof tests / sizeof *tests);
}
