#include "tests/support/unit_test.h"

#include "tests/parallel/stage_rig.h"

#include <math.h>
#include <string.h>

static char plain[] = "cpu:plain", best[] = "cpu";

static bool gradients_are_equal(const rig *a, const rig *b)
{
    bool equal = true;

    for (int g = 0; g < TSR_GROUPS; ++g) {
        equal = equal && memcmp(a->weights.gradient[g], b->weights.gradient[g],
                                (size_t)a->table.group_elements[g] * sizeof(float)) == 0;
    }
    return equal;
}

/* Worst parameter: largest difference over largest element. */
static double gradient_difference(const rig *a, const rig *b)
{
    double worst = 0.0;

    for (int p = 0; p < a->table.count; ++p) {
        const tsr_param *param = &a->table.params[p];
        const double off =
            rig_difference(tsr_weights_gradient(&a->weights, p),
                           tsr_weights_gradient(&b->weights, p), param->rows * param->width);

        worst = off > worst || isnan(off) ? off : worst;
    }
    return worst;
}

/* As in test_golden.c: 12 products a layer, inner lengths of 36 or less, two sides. */
static const double rounding = 2.0 * (12.0 * 3.0 + 4.0) * 6.0 * 0x1p-24;

static void micro_batches_add_up_to_the_batch(void **state)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig whole = {0}, parts = {0};

    assert_ok(stage_rig_open(&whole, *state, &c, TSR_F32, 3, TSR_RECOMPUTE_NONE));
    assert_ok(stage_rig_open(&parts, *state, &c, TSR_F32, 2, TSR_RECOMPUTE_NONE));
    assert_ok(stage_rig_train(&whole, 0, 3, false));
    assert_ok(stage_rig_train(&parts, 0, 2, false));
    assert_ok(stage_rig_train(&parts, 2, 1, true));
    assert_true(gradient_difference(&parts.base, &whole.base) <= rounding);
    assert_true(fabs(parts.sums.loss / whole.sums.loss - 1.0) <= rounding);
    assert_true(fabs(parts.sums.aux_loss / whole.sums.aux_loss - 1.0) <= rounding);
    assert_int_equal(parts.sums.tokens, STAGE_TOKENS);
    assert_int_equal(parts.sums.sequences, 3);
    assert_memory_equal(parts.counts, whole.counts, sizeof whole.counts);
    double sum = 0.0;
    for (int i = 0; i < 15; ++i) {
        sum += whole.counts[i];
        assert_true(i >= 5 || whole.counts[i] == 0.0); /* the dense layer routes nothing */
    }
    assert_true(sum == 2.0 * 2.0 * STAGE_TOKENS);
    stage_rig_close(&whole);
    stage_rig_close(&parts);
}

/* A step must not see what the step before left in any buffer. */
static void a_repeated_step_is_equal_to_the_bit(void **state)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig once = {0}, again = {0};

    assert_ok(stage_rig_open(&once, *state, &c, TSR_F32, 3, TSR_RECOMPUTE_NONE));
    assert_ok(stage_rig_open(&again, *state, &c, TSR_F32, 3, TSR_RECOMPUTE_NONE));
    assert_ok(stage_rig_train(&once, 1, 2, false));
    assert_ok(stage_rig_train(&again, 0, 3, false));
    assert_ok(tsr_stage_evaluate(again.stage, again.tokens, 1, &again.sums));
    again.sums = (tsr_stage_sums){0};
    assert_ok(stage_rig_train(&again, 1, 2, false));
    assert_true(gradients_are_equal(&once.base, &again.base));
    assert_true(once.sums.loss == again.sums.loss && once.sums.aux_loss == again.sums.aux_loss);
    stage_rig_close(&once);
    stage_rig_close(&again);
}

static void check_recompute(const char *device, tsr_dtype dtype)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig kept = {0}, redone = {0};

    assert_ok(stage_rig_open(&kept, device, &c, dtype, 3, TSR_RECOMPUTE_NONE));
    assert_ok(stage_rig_open(&redone, device, &c, dtype, 3, TSR_RECOMPUTE_BLOCK));
    for (int64_t batch = 3; batch >= 1; --batch) {
        assert_ok(stage_rig_train(&kept, 0, batch, batch < 3));
        assert_ok(stage_rig_train(&redone, 0, batch, batch < 3));
    }
    assert_true(gradients_are_equal(&kept.base, &redone.base));
    assert_true(kept.sums.loss == redone.sums.loss && kept.sums.aux_loss == redone.sums.aux_loss);
    stage_rig_close(&kept);
    stage_rig_close(&redone);
}

static void recomputation_changes_no_bit(void **state)
{
    check_recompute(*state, TSR_F32);
    check_recompute(*state, TSR_BF16);
}

static void the_fast_device_agrees_with_the_plain_one(void **state)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig fast = {0}, oracle = {0};

    (void)state;
    assert_ok(stage_rig_open(&fast, best, &c, TSR_F32, 3, TSR_RECOMPUTE_NONE));
    assert_ok(stage_rig_open(&oracle, plain, &c, TSR_F32, 3, TSR_RECOMPUTE_NONE));
    assert_ok(stage_rig_train(&fast, 0, 3, false));
    assert_ok(stage_rig_train(&oracle, 0, 3, false));
    assert_memory_equal(fast.counts, oracle.counts, sizeof fast.counts);
    assert_true(gradient_difference(&fast.base, &oracle.base) <= rounding);
    assert_true(fabs(fast.sums.loss / oracle.sums.loss - 1.0) <= rounding);
    stage_rig_close(&fast);
    stage_rig_close(&oracle);
}

/* Equal weights, rounded to bf16. */
static void copy_weights(rig *to, const rig *from)
{
    for (int p = 0; p < to->table.count; ++p) {
        const int64_t count = to->table.params[p].rows * to->table.params[p].width;

        for (int64_t i = 0; i < count; ++i) {
            const float value = rig_get(from, p, i);
            rig_set(to, p, i, 1, &value);
        }
    }
}

static void bf16_is_off_by_its_rounding(void **state)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig coarse = {0}, fine = {0};
    /* 40 roundings of 2^-9 on the way, independent of each other, each carried on with a factor of
     * up to two by norms and products: 2 sqrt(40) 2^-9. The norm over all elements is compared. */
    const double tolerance = 2.0 * sqrt(40.0) * 0x1p-9;

    assert_ok(stage_rig_open(&coarse, *state, &c, TSR_BF16, 3, TSR_RECOMPUTE_NONE));
    assert_ok(stage_rig_open(&fine, *state, &c, TSR_F32, 3, TSR_RECOMPUTE_NONE));
    copy_weights(&fine.base, &coarse.base);
    assert_ok(stage_rig_train(&coarse, 0, 3, false));
    assert_ok(stage_rig_train(&fine, 0, 3, false));
    /* the seed is one where rounding does not change which experts are chosen */
    assert_memory_equal(coarse.counts, fine.counts, sizeof fine.counts);
    assert_true(fabs(coarse.sums.loss / fine.sums.loss - 1.0) <= tolerance);
    for (int g = 0; g < TSR_GROUPS; ++g) {
        double difference = 0.0, squares = 0.0;

        for (int64_t i = 0; i < fine.base.table.group_elements[g]; ++i) {
            const double f = (double)fine.base.weights.gradient[g][i];
            const double d = (double)coarse.base.weights.gradient[g][i] - f;

            difference += d * d;
            squares += f * f;
        }
        assert_true(sqrt(difference / squares) <= tolerance);
        assert_true(difference > 0.0); /* bf16 was used at all */
    }
    stage_rig_close(&coarse);
    stage_rig_close(&fine);
}

static void evaluation_gives_the_loss_of_training(void **state)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig r = {0};
    tsr_stage *small = NULL;
    tsr_stage_sums evaluated = {0}, alone = {0};

    assert_ok(stage_rig_open(&r, *state, &c, TSR_F32, 3, TSR_RECOMPUTE_NONE));
    tsr_stage_options options = stage_rig_options(&r.base, 3);
    options.train = false;
    assert_ok(tsr_stage_create(&options, &r.base.weights, &small));
    assert_ok(stage_rig_train(&r, 0, 3, false));
    const float before = r.base.weights.gradient[TSR_GROUP_EXPERT][7];
    assert_ok(tsr_stage_evaluate(r.stage, r.tokens, 3, &evaluated));
    assert_ok(tsr_stage_evaluate(small, r.tokens, 3, &alone));
    assert_true(evaluated.loss == r.sums.loss && evaluated.aux_loss == r.sums.aux_loss);
    assert_true(alone.loss == r.sums.loss && alone.aux_loss == r.sums.aux_loss);
    assert_int_equal(evaluated.tokens, STAGE_TOKENS);
    assert_true(r.base.weights.gradient[TSR_GROUP_EXPERT][7] == before);
    tsr_stage_destroy(&small);
    stage_rig_close(&r);
}

static void check_no_allocation(const char *device, tsr_dtype dtype, tsr_recompute recompute)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig r = {0};

    assert_ok(stage_rig_open(&r, device, &c, dtype, 3, recompute));
    const int64_t calls = tsr_mem_alloc_calls();
    for (int64_t batch = 1; batch <= 3; ++batch) {
        assert_ok(stage_rig_train(&r, 0, batch, batch > 1));
        assert_ok(tsr_stage_evaluate(r.stage, r.tokens, batch, &r.sums));
    }
    assert_int_equal(tsr_mem_alloc_calls(), calls);
    stage_rig_close(&r);
}

static void steps_allocate_nothing(void **state)
{
    check_no_allocation(*state, TSR_F32, TSR_RECOMPUTE_NONE);
    check_no_allocation(*state, TSR_BF16, TSR_RECOMPUTE_BLOCK);
}

static size_t live(void)
{
    return tsr_mem_live_bytes(TSR_MEM_ACTIVATIONS) + tsr_mem_live_bytes(TSR_MEM_WORKSPACE);
}

static void a_stage_takes_what_it_says(void **state)
{
    const tsr_model_config c = stage_rig_config();
    rig r = {0};
    size_t bytes[2][2][2];

    (void)state;
    for (int kind = 0; kind < 8; ++kind) {
        const int dtype = kind & 1, recompute = kind >> 1 & 1, train = kind >> 2;
        tsr_stage *stage = NULL;

        assert_ok(rig_open(&r, plain, &c, (tsr_dtype)dtype));
        tsr_stage_options options = stage_rig_options(&r, 3);
        options.recompute = (tsr_recompute)recompute;
        options.train = train == 1;
        const int64_t calls = tsr_mem_alloc_calls();
        assert_ok(tsr_stage_bytes(&options, &bytes[train][recompute][dtype]));
        assert_int_equal(tsr_mem_alloc_calls(), calls);
        const size_t before = live();
        assert_ok(tsr_stage_create(&options, &r.weights, &stage));
        assert_int_equal(live() - before, bytes[train][recompute][dtype]);
        tsr_stage_destroy(&stage);
        assert_int_equal(live(), before);
        rig_close(&r);
    }
    assert_true(bytes[1][1][0] < bytes[1][0][0]); /* recomputation saves memory */
    assert_true(bytes[0][0][0] < bytes[1][1][0]); /* so does not training */
    assert_true(bytes[1][0][1] < bytes[1][0][0]); /* and bf16 */
}

static void a_loss_that_is_not_finite_is_no_error(void **state)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig r = {0};
    const float bad = NAN;

    assert_ok(stage_rig_open(&r, *state, &c, TSR_F32, 3, TSR_RECOMPUTE_NONE));
    rig_set(&r.base, tsr_param_find(&r.base.table, "model.layers.1.input_layernorm.weight"), 3, 1,
            &bad);
    assert_ok(stage_rig_train(&r, 0, 3, false));
    assert_true(isnan(r.sums.loss));
    stage_rig_close(&r);
}

static void mistakes_are_named(void **state)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig r = {0};
    tsr_stage *other = NULL;
    size_t bytes = 0;

    (void)state;
    assert_ok(stage_rig_open(&r, plain, &c, TSR_F32, 2, TSR_RECOMPUTE_NONE));
    assert_int_equal(stage_rig_train(&r, 0, 3, false), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "3 sequences, the stage takes 1 to 2"));
    assert_int_equal(stage_rig_train(&r, 0, 0, false), TSR_ERR_ARG);
    r.tokens[5] = 40;
    assert_int_equal(stage_rig_train(&r, 0, 1, false), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "token 5 is 40, the vocabulary has 40"));
    r.tokens[5] = -1;
    assert_int_equal(tsr_stage_evaluate(r.stage, r.tokens, 1, &r.sums), TSR_ERR_ARG);
    tsr_stage_options options = stage_rig_options(&r.base, 2);
    options.micro_batch = 0;
    assert_int_equal(tsr_stage_create(&options, &r.base.weights, &other), TSR_ERR_ARG);
    options.micro_batch = INT32_MAX;
    assert_int_equal(tsr_stage_bytes(&options, &bytes), TSR_ERR_ARG);
    options.micro_batch = 2;
    tsr_weights bare = r.base.weights;
    bare.gradient[TSR_GROUP_DENSE] = NULL;
    assert_int_equal(tsr_stage_create(&options, &bare, &other), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "weights with gradients"));
    options.train = false;
    assert_ok(tsr_stage_create(&options, &bare, &other));
    r.tokens[5] = 0;
    assert_int_equal(tsr_stage_train(other, r.tokens, 1, false, 1.0f, 1.0f, &r.sums),
                     TSR_ERR_STATE);
    tsr_stage_destroy(&other);
    stage_rig_close(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(micro_batches_add_up_to_the_batch, plain),
        cmocka_unit_test_prestate(micro_batches_add_up_to_the_batch, best),
        cmocka_unit_test_prestate(a_repeated_step_is_equal_to_the_bit, plain),
        cmocka_unit_test_prestate(a_repeated_step_is_equal_to_the_bit, best),
        cmocka_unit_test_prestate(recomputation_changes_no_bit, plain),
        cmocka_unit_test_prestate(recomputation_changes_no_bit, best),
        cmocka_unit_test(the_fast_device_agrees_with_the_plain_one),
        cmocka_unit_test_prestate(bf16_is_off_by_its_rounding, plain),
        cmocka_unit_test_prestate(bf16_is_off_by_its_rounding, best),
        cmocka_unit_test_prestate(evaluation_gives_the_loss_of_training, plain),
        cmocka_unit_test_prestate(evaluation_gives_the_loss_of_training, best),
        cmocka_unit_test_prestate(steps_allocate_nothing, plain),
        cmocka_unit_test_prestate(steps_allocate_nothing, best),
        cmocka_unit_test(a_stage_takes_what_it_says),
        cmocka_unit_test_prestate(a_loss_that_is_not_finite_is_no_error, plain),
        cmocka_unit_test_prestate(a_loss_that_is_not_finite_is_no_error, best),
        cmocka_unit_test(mistakes_are_named),
    };

    return tsr_unit_test_main("parallel.stage", tests, sizeof tests / sizeof tests[0]);
}
