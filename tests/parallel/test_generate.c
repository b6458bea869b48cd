#include "tests/support/unit_test.h"

#include "tests/parallel/stage_rig.h"

#include <math.h>
#include <string.h>

static double token_loss(const float *logits, int32_t target)
{
    double sum = 0.0;

    for (int v = 0; v < 40; ++v) {
        sum += exp((double)logits[v]);
    }
    return log(sum) - (double)logits[target];
}

/* One token at a time through the cache: the losses add up to those of the whole sequence. */
static void check_singles(const char *device, tsr_dtype dtype, double tolerance)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig r = {0};
    tsr_kv_cache cache = {0};
    float logits[40];
    double sum = 0.0;

    assert_ok(stage_rig_open(&r, device, &c, dtype, 3, TSR_RECOMPUTE_NONE));
    assert_ok(tsr_stage_cache_create(r.stage, STAGE_SEQ, &cache));
    for (int64_t s = 0; s < STAGE_SEQ; ++s) {
        assert_ok(tsr_stage_next_logits(r.stage, &cache, r.tokens + s, 1, logits));
        assert_int_equal(cache.length, s + 1);
        sum += token_loss(logits, r.tokens[s + 1]);
    }
    assert_ok(tsr_stage_evaluate(r.stage, r.tokens, 1, &r.sums));
    assert_true(fabs(sum / r.sums.loss - 1.0) <= tolerance);
    tsr_stage_cache_destroy(r.stage, &cache);
    tsr_stage_cache_destroy(r.stage, &cache); /* empty: fine */
    stage_rig_close(&r);
}

/* 40 products of inner length 36 or less, each sqrt(36) roundings, on both sides; for bf16 see
 * test_stage.c: a sum in another order may round to the neighbour. */
static void cached_steps_equal_the_whole_sequence(void **state)
{
    check_singles(*state, TSR_F32, 2.0 * 40.0 * 6.0 * 0x1p-24);
    check_singles(*state, TSR_BF16, 2.0 * sqrt(40.0) * 0x1p-9);
}

/* A prompt at once, or in pieces, or longer than what training sees: the same next logits. */
static void prompts_may_come_in_pieces(void **state)
{
    const tsr_model_config c = stage_rig_config();
    static const int64_t pieces[] = {4, 1, 13, 1, 1};
    stage_rig r = {0};
    tsr_kv_cache whole = {0}, cut = {0};
    float expected[40], logits[40];
    int64_t done = 0;

    assert_ok(stage_rig_open(&r, *state, &c, TSR_F32, 3, TSR_RECOMPUTE_NONE));
    assert_ok(tsr_stage_cache_create(r.stage, 2 * STAGE_SEQ, &whole));
    assert_ok(tsr_stage_cache_create(r.stage, 2 * STAGE_SEQ, &cut));
    assert_ok(tsr_stage_next_logits(r.stage, &whole, r.tokens, 20, expected));
    for (int i = 0; i < 5; ++i) {
        assert_ok(tsr_stage_next_logits(r.stage, &cut, r.tokens + done, pieces[i], logits));
        done += pieces[i];
    }
    assert_int_equal(done, 20);
    assert_int_equal(cut.length, whole.length);
    assert_true(rig_difference(logits, expected, 40) <= 2.0 * 40.0 * 6.0 * 0x1p-24);
    tsr_stage_cache_destroy(r.stage, &whole);
    tsr_stage_cache_destroy(r.stage, &cut);
    stage_rig_close(&r);
}

static void what_does_not_fit_is_refused(void **state)
{
    const tsr_model_config c = stage_rig_config();
    stage_rig r = {0};
    tsr_kv_cache cache = {0};
    float logits[40];

    (void)state;
    assert_ok(stage_rig_open(&r, "cpu:plain", &c, TSR_F32, 1, TSR_RECOMPUTE_NONE));
    assert_int_equal(tsr_stage_cache_create(r.stage, 0, &cache), TSR_ERR_ARG);
    assert_ok(tsr_stage_cache_create(r.stage, 14, &cache));
    assert_int_equal(tsr_stage_next_logits(r.stage, &cache, r.tokens, 0, logits), TSR_ERR_ARG);
    assert_int_equal(tsr_stage_next_logits(r.stage, &cache, r.tokens, 12, logits), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "12 tokens at once, must be 1 to 11"));
    assert_ok(tsr_stage_next_logits(r.stage, &cache, r.tokens, 11, logits));
    assert_int_equal(tsr_stage_next_logits(r.stage, &cache, r.tokens, 4, logits), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "the cache has room for 14"));
    r.tokens[0] = 40;
    assert_int_equal(tsr_stage_next_logits(r.stage, &cache, r.tokens, 1, logits), TSR_ERR_ARG);
    assert_int_equal(cache.length, 11); /* refused calls leave it as it was */
    tsr_stage_cache_destroy(r.stage, &cache);
    stage_rig_close(&r);
}

int main(void)
{
    static char plain[] = "cpu:plain", best[] = "cpu";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(cached_steps_equal_the_whole_sequence, plain),
        cmocka_unit_test_prestate(cached_steps_equal_the_whole_sequence, best),
        cmocka_unit_test_prestate(prompts_may_come_in_pieces, plain),
        cmocka_unit_test_prestate(prompts_may_come_in_pieces, best),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };

    return tsr_unit_test_main("parallel.generate", tests, sizeof tests / sizeof tests[0]);
}
