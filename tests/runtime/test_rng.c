#include "tests/support/unit_test.h"

#include <math.h>
#include <string.h>

/* Random123's known answer for philox4x32 of 10 rounds, key and counter zero. */
static void philox_gives_the_known_answer(void **state)
{
    static const uint32_t zero[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    uint32_t got[4];

    (void)state;
    tsr_rng_words(0, 0, got);
    assert_memory_equal(got, zero, sizeof got);
}

static void every_input_bit_matters(void **state)
{
    uint32_t base[4], other[4];

    (void)state;
    tsr_rng_words(0x0123456789abcdef, 42, base);
    for (int bit = 0; bit < 64; ++bit) {
        tsr_rng_words(0x0123456789abcdef ^ (uint64_t)1 << bit, 42, other);
        assert_memory_not_equal(base, other, sizeof base);
        tsr_rng_words(0x0123456789abcdef, 42 ^ (uint64_t)1 << bit, other);
        assert_memory_not_equal(base, other, sizeof base);
    }
}

/* Mean of n uniforms: 1/2 with standard deviation 1 / sqrt(12 n); five of them. */
static void uniforms_fill_the_unit_interval(void **state)
{
    enum { COUNT = 100000 };
    double sum = 0.0;

    (void)state;
    for (uint64_t i = 0; i < COUNT; ++i) {
        const double u = tsr_rng_uniform(3, i);

        assert_true(u >= 0.0 && u < 1.0);
        sum += u;
    }
    assert_true(fabs(sum / COUNT - 0.5) < 5.0 / sqrt(12.0 * COUNT));
}

/* Sample moments of n normals have standard deviations 1, sqrt 2, sqrt 15 and sqrt 96 over sqrt n
 * (E x^2 = 1, E x^4 = 3, E x^6 = 15, E x^8 = 105); five of them. */
static void normals_have_the_right_moments(void **state)
{
    enum { COUNT = 200000 };
    float *x = NULL;
    double moment[5] = {0};
    const double expected[5] = {1, 0, 1, 0, 3};
    const double deviation[5] = {0, 1, sqrt(2.0), sqrt(15.0), sqrt(96.0)};

    (void)state;
    assert_ok(tsr_mem_alloc_array(TSR_MEM_OTHER, COUNT, sizeof *x, (void **)&x));
    tsr_rng_normal(9, 0, COUNT, x);
    for (int i = 0; i < COUNT; ++i) {
        for (int p = 1; p < 5; ++p) {
            moment[p] += pow((double)x[i], p) / COUNT;
        }
    }
    for (int p = 1; p < 5; ++p) {
        assert_true(fabs(moment[p] - expected[p]) < 5 * deviation[p] / sqrt((double)COUNT));
    }
    tsr_mem_free(x);
}

/* Any rank may make any part of the sequence. */
static void normals_do_not_depend_on_where_one_starts(void **state)
{
    float all[101], part[101];

    (void)state;
    tsr_rng_normal(5, 1000, 101, all);
    for (int first = 0; first < 101; ++first) {
        for (int count = 0; first + count <= 101; count += 7) {
            tsr_rng_normal(5, 1000 + (uint64_t)first, count, part);
            assert_memory_equal(part, all + first, (size_t)count * sizeof *part);
        }
    }
}

static void keys_differ_by_seed_and_name(void **state)
{
    (void)state;
    assert_true(tsr_rng_key(1, "a") == tsr_rng_key(1, "a"));
    assert_true(tsr_rng_key(1, "a") != tsr_rng_key(2, "a"));
    assert_true(tsr_rng_key(1, "a") != tsr_rng_key(1, "b"));
    assert_true(tsr_rng_key(1, "ab") != tsr_rng_key(1, "ba"));
    assert_true(tsr_rng_key(1, "") != tsr_rng_key(2, ""));
}

static void a_permutation_visits_each_index_once(void **state)
{
    static const uint64_t counts[] = {1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097};
    char seen[4097];

    (void)state;
    for (int c = 0; c < 10; ++c) {
        for (uint64_t key = 0; key < 3; ++key) {
            memset(seen, 0, sizeof seen);
            for (uint64_t i = 0; i < counts[c]; ++i) {
                const uint64_t image = tsr_rng_permute(key, i, counts[c]);

                assert_true(image < counts[c]);
                assert_int_equal(seen[image], 0);
                seen[image] = 1;
            }
        }
    }
}

/* A random permutation has one fixed point on average (Poisson): thirty is out of the question, and
 * two keys agree as rarely. */
static void permutations_are_shuffled_and_differ_by_key(void **state)
{
    int fixed = 0, equal = 0;

    (void)state;
    for (uint64_t i = 0; i < 1000; ++i) {
        fixed += tsr_rng_permute(1, i, 1000) == i;
        equal += tsr_rng_permute(1, i, 1000) == tsr_rng_permute(2, i, 1000);
    }
    assert_true(fixed < 30);
    assert_true(equal < 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_known_answer),
        cmocka_unit_test(every_input_bit_matters),
        cmocka_unit_test(uniforms_fill_the_unit_interval),
        cmocka_unit_test(normals_have_the_right_moments),
        cmocka_unit_test(normals_do_not_depend_on_where_one_starts),
        cmocka_unit_test(keys_differ_by_seed_and_name),
        cmocka_unit_test(a_permutation_visits_each_index_once),
        cmocka_unit_test(permutations_are_shuffled_and_differ_by_key),
    };

    return tsr_unit_test_main("runtime.rng", tests, sizeof tests / sizeof *tests);
}
