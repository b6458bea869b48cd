/* Learning-rate schedules, the options with their checks, the router bias: all without ranks. */
#include "tests/support/unit_test.h"

#include "optim/optim.h"

#include <math.h>
#include <string.h>

static const tsr_optim_config base = {
    .lr = 1.0, .min_lr = 0.2, .warmup_steps = 10, .schedule = TSR_SCHEDULE_COSINE};

static bool is_near(double x, double y)
{
    return fabs(x - y) < 1e-12; /* a few roundings of numbers near 1 */
}

static void warm_up_is_linear_and_ends_at_lr(void **state)
{
    (void)state;
    for (int schedule = TSR_SCHEDULE_COSINE; schedule <= TSR_SCHEDULE_CONSTANT; ++schedule) {
        tsr_optim_config config = base;
        config.schedule = schedule;
        assert_true(is_near(tsr_lr_at(&config, 1, 110), 0.1));
        assert_true(is_near(tsr_lr_at(&config, 7, 110), 0.7));
        assert_true(is_near(tsr_lr_at(&config, 10, 110), 1.0));
        config.warmup_steps = 0;
        assert_true(tsr_lr_at(&config, 1, 110) > 0.99);
    }
}

static void cosine_passes_its_known_points(void **state)
{
    (void)state;
    assert_true(is_near(tsr_lr_at(&base, 60, 110), 0.6)); /* half way: the mean of both ends */
    assert_true(is_near(tsr_lr_at(&base, 35, 110), 0.2 + 0.8 * 0.5 * (1.0 + sqrt(0.5))));
    assert_true(is_near(tsr_lr_at(&base, 110, 110), 0.2));
    assert_true(is_near(tsr_lr_at(&base, 500, 110), 0.2)); /* past the end: as at the end */
}

static void wsd_is_constant_then_linear(void **state)
{
    (void)state;
    tsr_optim_config config = base;

    config.schedule = TSR_SCHEDULE_WSD;
    config.decay_steps = 20;
    assert_true(is_near(tsr_lr_at(&config, 11, 110), 1.0));
    assert_true(is_near(tsr_lr_at(&config, 90, 110), 1.0));
    assert_true(is_near(tsr_lr_at(&config, 100, 110), 0.6));
    assert_true(is_near(tsr_lr_at(&config, 110, 110), 0.2));
    config.decay_steps = 0; /* a tenth of the steps: 11 */
    assert_true(is_near(tsr_lr_at(&config, 99, 110), 1.0));
    assert_true(is_near(tsr_lr_at(&config, 100, 110), 1.0 - 0.8 / 11));
    assert_true(is_near(tsr_lr_at(&config, 5, 5), 0.5)); /* shorter than its warm-up */
    config.warmup_steps = 0;
    assert_true(is_near(tsr_lr_at(&config, 4, 5), 1.0)); /* a tenth of 5 is one step */
    assert_true(is_near(tsr_lr_at(&config, 5, 5), 0.2));
}

static void constant_stays(void **state)
{
    (void)state;
    tsr_optim_config config = base;

    config.schedule = TSR_SCHEDULE_CONSTANT;
    assert_true(is_near(tsr_lr_at(&config, 11, 110), 1.0));
    assert_true(is_near(tsr_lr_at(&config, 110, 110), 1.0));
}

static void every_option_reaches_its_field(void **state)
{
    (void)state;
    tsr_optim_config config;
    static tsr_config_errors errors;
    const tsr_option_table table = tsr_optim_options(&config);
    const char *const overrides[] = {"optim.warmup_steps=12", "optim.moments=bf16"};

    tsr_config_read("[optim]\nlr = 2e-3\nmin_lr = 1e-4\nschedule = wsd\ndecay_steps = 7\n"
                    "beta2 = 0.99\nclip_norm = 0\n",
                    "run.ini", overrides, 2, &table, 1, &errors);
    assert_string_equal(errors.text, "");
    assert_true(config.lr == 2e-3 && config.min_lr == 1e-4 && config.beta2 == 0.99);
    assert_true(config.clip_norm == 0 && config.decay_steps == 7 && config.warmup_steps == 12);
    assert_int_equal(config.schedule, TSR_SCHEDULE_WSD);
    assert_int_equal(config.moments, TSR_BF16);
    assert_true(config.name == 0 && config.beta1 == 0.9 && config.eps == 1e-8);
    assert_true(config.weight_decay == 0.1);
}

static void out_of_range_is_refused(void **state)
{
    (void)state;
    tsr_optim_config config;
    static tsr_config_errors errors;
    const tsr_option_table table = tsr_optim_options(&config);

    tsr_config_read("[optim]\nlr = -1\nbeta1 = 1\neps = 0\nname = sgd\n", "run.ini", NULL, 0,
                    &table, 1, &errors);
    assert_int_equal(errors.count, 4);
}

static void contradictions_are_named(void **state)
{
    (void)state;
    tsr_optim_config config = base;
    static tsr_config_errors errors;

    tsr_optim_config_check(&config, 110, &errors);
    assert_int_equal(errors.count, 0);
    config.min_lr = 2.0;
    config.warmup_steps = 111;
    tsr_optim_config_check(&config, 110, &errors);
    assert_int_equal(errors.count, 2);
    assert_non_null(strstr(errors.text, "optim.min_lr = 2, must be at most optim.lr = 1"));
    assert_non_null(strstr(errors.text, "optim.warmup_steps = 111, must be at most"));
    config = base;
    config.schedule = TSR_SCHEDULE_WSD;
    config.decay_steps = 101;
    tsr_optim_config_check(&config, 110, &errors);
    assert_int_equal(errors.count, 3);
    assert_non_null(strstr(errors.text, "optim.decay_steps = 101, must be at most"));
}

static void router_bias_moves_against_the_load(void **state)
{
    (void)state;
    float bias[3 * 3] = {0.5f, 0.5f, 0.5f, 1, 2, 3, 0, 0, 0};
    const double counts[3 * 3] = {10, 2, 6, 0, 0, 0, 1, 1, 5};
    const float expected[3 * 3] = {0.25f, 0.75f, 0.5f, 1, 2, 3, 0.25f, 0.25f, -0.25f};

    tsr_router_bias_update(bias, counts, 3, 3, 0.25);
    assert_memory_equal(bias, expected, sizeof bias);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warm_up_is_linear_and_ends_at_lr),
        cmocka_unit_test(cosine_passes_its_known_points),
        cmocka_unit_test(wsd_is_constant_then_linear),
        cmocka_unit_test(constant_stays),
        cmocka_unit_test(every_option_reaches_its_field),
        cmocka_unit_test(out_of_range_is_refused),
        cmocka_unit_test(contradictions_are_named),
        cmocka_unit_test(router_bias_moves_against_the_load),
    };

    return tsr_unit_test_main("schedule", tests, sizeof tests / sizeof tests[0]);
}
