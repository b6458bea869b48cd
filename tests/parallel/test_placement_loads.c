/* The generator of loads: shapes, totals, repetition, traces, and its errors. */
#include "tests/support/unit_test.h"

#include "parallel/parallel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RANKS = 8, EXPERTS = 32, LAYERS = 2, TOKENS = 1000 };

static tsr_load_options options_of(const char *text)
{
    tsr_load_options options = {.layers = LAYERS, .experts = EXPERTS, .ranks = RANKS, .seed = 5};

    assert_ok(tsr_load_parse(text, &options));
    return options;
}

static tsr_loads *open_loads(const char *text)
{
    const tsr_load_options options = options_of(text);
    tsr_loads *loads = NULL;

    assert_ok(tsr_loads_create(&options, &loads));
    return loads;
}

static double max_over_mean(const double *share)
{
    double largest = 0.0;

    for (int r = 0; r < RANKS; ++r) {
        double sum = 0.0;

        for (int i = 0; i < EXPERTS / RANKS; ++i) {
            sum += share[r * (EXPERTS / RANKS) + i];
        }
        largest = fmax(largest, sum);
    }
    return largest * RANKS;
}

static void words_are_read(void **state)
{
    (void)state;
    tsr_load_options o = options_of("zipf:1.25,noise=0,drift=0.5");

    assert_true(o.shape == TSR_LOAD_ZIPF && o.value == 1.25 && o.noise == 0.0 && o.drift == 0.5);
    o = options_of("hot:3@7");
    assert_true(o.shape == TSR_LOAD_HOT && o.value == 3.0 && o.period == 7);
    o = options_of("trace:a/b.csv,noise=0.1");
    assert_true(o.shape == TSR_LOAD_TRACE && o.noise == 0.1 && o.drift == 0.0);
    assert_string_equal(o.path, "a/b.csv");
    static const char *const wrong[] = {
        "",       "pareto:1", "zipf",   "zipf:x",        "zipf:-1",  "zipf:1,drif=2",
        "even:1", "hot:2@0",  "trace:", "zipf:1,noise=", "zipf:1 2", "zipf:nan",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
        assert_int_equal(tsr_load_parse(wrong[i], &o), TSR_ERR_ARG);
    }
}

static void counts_add_up_and_repeat(void **state)
{
    (void)state;
    static const char *const shapes[] = {"even", "zipf:1", "maxmean:2", "hot:4"};
    static int64_t counts[RANKS * EXPERTS], again[RANKS * EXPERTS];

    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; ++s) {
        tsr_loads *loads = open_loads(shapes[s]), *others = open_loads(shapes[s]);

        tsr_loads_counts(loads, 1, 3, TOKENS, counts);
        tsr_loads_counts(others, 0, 9, TOKENS, again);
        assert_int_equal(memcmp(counts, again, sizeof counts) == 0, s == 0);
        tsr_loads_counts(others, 1, 3, TOKENS, again);
        assert_memory_equal(counts, again, sizeof counts);
        for (int r = 0; r < RANKS; ++r) {
            int64_t sum = 0;

            for (int e = 0; e < EXPERTS; ++e) {
                assert_true(counts[r * EXPERTS + e] >= 0);
                sum += counts[r * EXPERTS + e];
            }
            assert_int_equal(sum, TOKENS);
        }
        tsr_loads_destroy(&loads);
        tsr_loads_destroy(&others);
    }
}

static void ratio_is_the_one_asked_for(void **state)
{
    (void)state;
    double share[EXPERTS];
    tsr_loads *loads = open_loads("maxmean:2.5"), *hot = open_loads("hot:3@4,drift=0");
    int hottest[2] = {0, 0};

    for (int step = 0; step < 5; ++step) {
        tsr_loads_shares(loads, 1, step, share);
        assert_true(fabs(max_over_mean(share) - 2.5) < 1e-6); /* 40 halvings of 32 */
    }
    for (int step = 0; step < 5; ++step) {
        tsr_loads_shares(hot, 0, step, share);
        assert_true(fabs(max_over_mean(share) - 3.0) < 1e-12);
        for (int e = 0; e < EXPERTS; ++e) {
            hottest[step / 4] = share[e] > share[hottest[step / 4]] ? e : hottest[step / 4];
        }
    }
    assert_int_not_equal(hottest[0], hottest[1]);
    tsr_loads_destroy(&loads);
    tsr_loads_destroy(&hot);
}

/* Mean square of the change of log shares, over enough of them for 5 % (1 / sqrt(2 * 32 * 30)). */
static void drift_is_the_one_asked_for(void **state)
{
    (void)state;
    double before[EXPERTS], share[EXPERTS], sum = 0.0;
    tsr_loads *loads = open_loads("zipf:0.5,drift=0.2");

    tsr_loads_shares(loads, 0, 0, before);
    for (int step = 1; step <= 30; ++step) {
        double mean = 0.0;

        tsr_loads_shares(loads, 0, step, share);
        for (int e = 0; e < EXPERTS; ++e) {
            mean += log(share[e] / before[e]) / EXPERTS;
        }
        for (int e = 0; e < EXPERTS; ++e) {
            const double change = log(share[e] / before[e]) - mean; /* the norm moves as well */

            sum += change * change;
            before[e] = share[e];
        }
    }
    const double deviation = sqrt(sum / (30.0 * (EXPERTS - 1)));
    assert_true(deviation > 0.2 * 0.85 && deviation < 0.2 * 1.15); /* three deviations */
    tsr_loads_destroy(&loads);
}

static void write_trace(char *path, const char *text)
{
    const int file = mkstemp(path);

    assert_true(file >= 0);
    assert_int_equal(write(file, text, strlen(text)), (ssize_t)strlen(text));
    assert_int_equal(close(file), 0);
}

static void traces_are_replayed(void **state)
{
    (void)state;
    char path[] = "/tmp/tsr-trace-XXXXXX";
    tsr_load_options o = {.shape = TSR_LOAD_TRACE, .layers = 3, .experts = 2, .ranks = 2};
    tsr_loads *loads = NULL;
    double share[2];
    int64_t counts[4];

    write_trace(path, "step,layer,e0,e1\r\n10,1,3,1\r\n10,4,1,1\n20,1,0,8\n20,4,5,5");
    (void)snprintf(o.path, sizeof o.path, "%s", path);
    assert_ok(tsr_loads_create(&o, &loads));
    tsr_loads_shares(loads, 0, 0, share);
    assert_true(share[0] == 0.75 && share[1] == 0.25);
    tsr_loads_shares(loads, 2, 3, share); /* layer 0, step 1 */
    assert_true(share[0] == 0.0 && share[1] == 1.0);
    tsr_loads_counts(loads, 0, 0, 8, counts);
    assert_true(counts[0] == 6 && counts[1] == 2 && counts[2] == 6 && counts[3] == 2);
    tsr_loads_destroy(&loads);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(tsr_loads_create(&o, &loads), TSR_ERR_IO);
}

static void wrong_traces_are_refused(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "",
        "1,0,3\n",
        "1,0,3,4,5\n",
        "1,0,3,-4\n",
        "1,0,0,0\n",
        "1,0,1,1\n1,1,1,1\n2,0,1,1\n",
        "1,0,1,1\n2,0,1,1\n2,1,1,1\n",
        "1,0,1,1\nstep,layer,1,1\n",
    };
    tsr_load_options o = {.shape = TSR_LOAD_TRACE, .layers = 1, .experts = 2, .ranks = 2};
    tsr_loads *loads = NULL;

    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
        char path[] = "/tmp/tsr-trace-XXXXXX";

        write_trace(path, wrong[i]);
        (void)snprintf(o.path, sizeof o.path, "%s", path);
        assert_int_equal(tsr_loads_create(&o, &loads), TSR_ERR_FORMAT);
        assert_int_equal(unlink(path), 0);
    }
}

static void wrong_options_are_refused(void **state)
{
    (void)state;
    tsr_load_options right = options_of("hot:2"), wrong[8];
    tsr_loads *loads = NULL;

    for (int i = 0; i < 8; ++i) {
        wrong[i] = right;
    }
    wrong[0].layers = 0;
    wrong[1].experts = 0;
    wrong[2].ranks = 0;
    wrong[3].value = 0.9;
    wrong[4].value = RANKS + 0.1;
    wrong[5].drift = 6.0;
    wrong[6].noise = 6.0;
    wrong[7].period = 0;
    for (int i = 0; i < 8; ++i) {
        assert_int_equal(tsr_loads_create(&wrong[i], &loads), TSR_ERR_ARG);
    }
    right.shape = TSR_LOAD_ZIPF;
    right.value = 21.0;
    assert_int_equal(tsr_loads_create(&right, &loads), TSR_ERR_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_are_read),
        cmocka_unit_test(counts_add_up_and_repeat),
        cmocka_unit_test(ratio_is_the_one_asked_for),
        cmocka_unit_test(drift_is_the_one_asked_for),
        cmocka_unit_test(traces_are_replayed),
        cmocka_unit_test(wrong_traces_are_refused),
        cmocka_unit_test(wrong_options_are_refused),
    };

    return tsr_unit_test_main("loads", tests, sizeof tests / sizeof *tests);
}
