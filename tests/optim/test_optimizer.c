/* The sharded optimizer against one rank alone and against AdamW written down in f64, with all
 * experts on each rank or spread over them. */
#include "tests/support/mpi_test.h"

#include "tests/optim/optim_fixture.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { STEPS = 4 };

static tsr_status set_up(optim_fixture *f, tsr_comm *comm, const char *device, bool is_far,
                         tsr_dtype compute, tsr_dtype moments, double clip_norm)
{
    const optim_options options = {.device = device,
                                   .is_far = is_far,
                                   .compute = compute,
                                   .moments = moments,
                                   .clip_norm = clip_norm};

    return optim_fixture_open(f, comm, &options);
}

static bool ranks_equal_one(tsr_dtype compute, tsr_dtype moments, bool is_far, int ep,
                            const int32_t owner[OPTIM_LAYERS * OPTIM_EXPERTS])
{
    const optim_options options = {.device = "cpu:plain",
                                   .is_far = is_far,
                                   .compute = compute,
                                   .moments = moments,
                                   .clip_norm = 8,
                                   .ep = ep,
                                   .owner = owner};
    optim_fixture many = {0}, one = {0};
    tsr_comm *alone = NULL;
    double norm_many = 0, norm_one = 0;
    bool ok = optim_fixture_ok(tsr_comm_create_self(&alone)) &&
              optim_fixture_ok(optim_fixture_open(&many, tsr_test_comm(), &options)) &&
              optim_fixture_ok(set_up(&one, alone, "cpu:plain", false, compute, moments, 8));

    for (int64_t step = 1; ok && step <= STEPS; ++step) {
        ok = optim_fixture_ok(optim_fixture_step(&many, step, &norm_many)) &&
             optim_fixture_ok(optim_fixture_step(&one, step, &norm_one));
        ok = ok && norm_many == norm_one && norm_one > 8; /* it is clipped */
        ok = ok && optim_fixture_equal_weights(&many, &one) &&
             optim_fixture_equal_state(&many, &one);
    }
    optim_fixture_close(&many);
    optim_fixture_close(&one);
    tsr_comm_destroy(&alone);
    return ok;
}

/* Every mesh of this many ranks, experts dealt evenly, or anyhow with ranks that have none. */
static void spread_experts_change_nothing(void **state)
{
    (void)state;
    const int ranks = tsr_comm_size(tsr_test_comm());
    bool ok = true;

    for (int ep = 1; ep <= ranks; ++ep) {
        int32_t even[OPTIM_LAYERS * OPTIM_EXPERTS];
        const int32_t last = ep - 1, mixed[OPTIM_LAYERS * OPTIM_EXPERTS] = {last, 0, last, 0, 0, 0};

        if (ranks % ep == 0) {
            tsr_expert_owners_even(OPTIM_LAYERS, OPTIM_EXPERTS, ep, even);
            ok = ranks_equal_one(TSR_F32, TSR_F32, false, ep, even) && ok;
            ok = ranks_equal_one(TSR_BF16, TSR_BF16, false, ep, mixed) && ok;
            ok = ranks_equal_one(TSR_BF16, TSR_F32, true, ep, mixed) && ok;
        }
    }
    assert_all_ranks(tsr_test_comm(), ok);
}

static void many_ranks_equal_one_to_the_bit(void **state)
{
    (void)state;
    bool ok = true;

    for (int compute = TSR_F32; compute <= TSR_BF16; ++compute) {
        for (int moments = TSR_F32; moments <= TSR_BF16; ++moments) {
            ok = ranks_equal_one((tsr_dtype)compute, (tsr_dtype)moments, false, 0, NULL) && ok;
        }
    }
    assert_all_ranks(tsr_test_comm(), ok);
}

/* The same where the host may not touch the device's memory: everything is staged. */
static void a_far_device_changes_nothing(void **state)
{
    (void)state;
    assert_all_ranks(tsr_test_comm(), ranks_equal_one(TSR_F32, TSR_F32, true, 0, NULL) &&
                                          ranks_equal_one(TSR_BF16, TSR_BF16, true, 0, NULL));
}

/* AdamW of one element in f64, from the start; betas are the f32 numbers that the operator gets. */
static double adamw_by_hand(double start, int param, int64_t at, bool has_decay)
{
    const double b1 = (double)0.9f, b2 = (double)0.95f, eps = 1e-8;
    double p = start, m = 0, v = 0;

    for (int64_t step = 1; step <= STEPS; ++step) {
        const double g = (double)optim_fixture_gradient(step, param, at);
        m = b1 * m + (1 - b1) * g;
        v = b2 * v + (1 - b2) * g * g;
        const double step_m = m / (1 - pow(b1, (double)step));
        const double step_v = v / (1 - pow(b2, (double)step));
        p -= optim_fixture_lr * (step_m / (sqrt(step_v) + eps) + (has_decay ? 0.1 * p : 0.0));
    }
    return p;
}

/*
 * With u = 2^-24 and t <= 4 steps, sizes in units where |g| is 1/2 to 1 (scaling cancels):
 * m and v carry t roundings each of at most 3 u, the corrections 1 - b^t up to 20 u (b2 = 0.95: the
 * error u of b^t over 0.05), the quotient, its root, the decay and lr a few more: at most 100 u of
 * the update, which is at most 2 lr; adding it to p costs u |p|, |p| <= 1.1.
 * bf16 moments: t more roundings of 2^-9 in m (relative to at most 1, where root v is at least 1/2:
 * 2 t 2^-9) and t/2 in root v: 2.5 t 2^-9 of an update of at most 2 lr.
 */
static double tolerance(tsr_dtype moments)
{
    const double u = 1.0 / (1 << 24), moment = moments == TSR_BF16 ? 2.5 * STEPS / 512.0 : 0.0;

    return STEPS * (2 * optim_fixture_lr * (100 * u + moment) + 1.1 * u);
}

static bool follows_the_formula(const char *device, tsr_dtype moments)
{
    optim_fixture f = {0};
    float start = 0;
    double norm = 0;
    const tsr_state_slice *slices = NULL;
    int count = 0;
    bool ok = optim_fixture_ok(set_up(&f, tsr_test_comm(), device, false, TSR_F32, moments, 0));

    for (int64_t step = 1; ok && step <= STEPS; ++step) {
        ok = optim_fixture_ok(optim_fixture_step(&f, step, &norm));
    }
    ok = ok && tsr_optimizer_slices(f.optimizer, &slices, &count) == TSR_OK;
    for (int i = 0; ok && i < count; ++i) {
        const tsr_param *param = &f.table.params[slices[i].param];
        const int64_t first = slices[i].row_begin * param->width;
        for (int64_t at = first; ok && at < slices[i].row_end * param->width; ++at) {
            tsr_param_init(param, 5, at, 1, &start);
            const double p = adamw_by_hand((double)start, slices[i].param, at, param->has_decay);
            ok = fabs(p - (double)slices[i].master[at - first]) <= tolerance(moments);
        }
    }
    optim_fixture_close(&f);
    return ok;
}

static void steps_follow_the_formula(void **state)
{
    (void)state;
    bool ok = true;

    ok = follows_the_formula("cpu:plain", TSR_F32) && ok;
    ok = follows_the_formula("cpu", TSR_F32) && ok;
    ok = follows_the_formula("cpu", TSR_BF16) && ok;
    assert_all_ranks(tsr_test_comm(), ok);
}

/* One step from zero moments moves m by (1 - b1) g scale: shows the factor that clipping applied.
 */
static void clipping_scales_the_gradient(void **state)
{
    (void)state;
    const double limits[] = {0.0, 1e6, 2.0};
    bool ok = true;

    for (size_t i = 0; i < sizeof limits / sizeof *limits; ++i) {
        optim_fixture f = {0};
        const tsr_state_slice *slices = NULL;
        double norm = 0;
        int count = 0;
        ok = optim_fixture_ok(
                 set_up(&f, tsr_test_comm(), "cpu:plain", false, TSR_F32, TSR_F32, limits[i])) &&
             optim_fixture_ok(optim_fixture_step(&f, 1, &norm)) &&
             tsr_optimizer_slices(f.optimizer, &slices, &count) == TSR_OK && ok;
        const double scale = limits[i] == 2.0 ? 2.0 / norm : 1.0;
        for (int k = 0; ok && k < count; ++k) {
            const int64_t first = slices[k].row_begin * f.table.params[slices[k].param].width;
            const double m =
                0.1 * scale * (double)optim_fixture_gradient(1, slices[k].param, first);
            /* scale, 1 - b1 (0.1 off by 0.25 u of 0.9) and two products: below 8 u relative */
            ok = fabs((double)*(float *)slices[k].m - m) <= 8.0 / (1 << 24) * fabs(m);
        }
        optim_fixture_close(&f);
    }
    assert_all_ranks(tsr_test_comm(), ok);
}

static bool tiles(int ep, const int32_t owner[OPTIM_LAYERS * OPTIM_EXPERTS])
{
    const optim_options options = {.device = "cpu:plain", .ep = ep, .owner = owner};
    enum { MOST_ROWS = 256 };
    static uint64_t owners[64 * MOST_ROWS];
    optim_fixture f = {0};
    const tsr_state_slice *slices = NULL;
    int count = 0;
    bool ok = optim_fixture_ok(optim_fixture_open(&f, tsr_test_comm(), &options)) &&
              tsr_optimizer_slices(f.optimizer, &slices, &count) == TSR_OK && f.table.count <= 64;

    memset(owners, 0, sizeof owners);
    for (int i = 0; ok && i < count; ++i) {
        for (int64_t row = slices[i].row_begin; row < slices[i].row_end; ++row) {
            ++owners[slices[i].param * MOST_ROWS + row];
        }
    }
    ok = tsr_comm_all_reduce_u64(tsr_test_comm(), owners, 64 * MOST_ROWS, TSR_REDUCE_SUM) ==
             TSR_OK &&
         ok;
    for (int i = 0; ok && i < f.table.count; ++i) {
        for (int64_t row = 0; row < MOST_ROWS; ++row) {
            ok = ok && owners[i * MOST_ROWS + row] == (row < f.table.params[i].rows ? 1 : 0);
        }
    }
    optim_fixture_close(&f);
    return ok;
}

static void slices_tile_every_row_once(void **state)
{
    (void)state;
    const int ranks = tsr_comm_size(tsr_test_comm());
    int32_t even[OPTIM_LAYERS * OPTIM_EXPERTS];
    const int32_t mixed[OPTIM_LAYERS * OPTIM_EXPERTS] = {ranks - 1, 0, ranks - 1, 0, 0, 0};

    tsr_expert_owners_even(OPTIM_LAYERS, OPTIM_EXPERTS, ranks, even);
    assert_all_ranks(tsr_test_comm(), tiles(0, NULL) && tiles(ranks, even) && tiles(ranks, mixed));
}

/* Working copies hold what the parameter's rule says, whatever P is. */
static void first_weights_do_not_depend_on_ranks(void **state)
{
    (void)state;
    optim_fixture f = {0};
    bool ok =
        optim_fixture_ok(set_up(&f, tsr_test_comm(), "cpu:plain", false, TSR_BF16, TSR_F32, 0));

    for (int i = 0; ok && i < f.table.count; ++i) {
        const tsr_param *param = &f.table.params[i];
        const void *value = tsr_weights_value(&f.weights, i);
        for (int64_t at = 0; ok && at < param->rows * param->width; ++at) {
            float start = 0;
            tsr_param_init(param, 5, at, 1, &start);
            ok = f.weights.dtype[param->group] == TSR_F32
                     ? ((const float *)value)[at] == start
                     : ((const tsr_bf16 *)value)[at] == tsr_f32_to_bf16(start);
        }
    }
    optim_fixture_close(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* As a checkpoint does when it loads: write through the slices, refresh, all ranks see it. */
static bool loading_reaches_all(tsr_dtype compute, bool is_far)
{
    optim_fixture f = {0};
    const tsr_state_slice *slices = NULL;
    int count = 0;
    bool ok =
        optim_fixture_ok(set_up(&f, tsr_test_comm(), "cpu:plain", is_far, compute, TSR_F32, 0)) &&
        tsr_optimizer_slices(f.optimizer, &slices, &count) == TSR_OK;

    for (int i = 0; ok && i < count; ++i) {
        const int64_t width = f.table.params[slices[i].param].width;
        for (int64_t at = slices[i].row_begin * width; at < slices[i].row_end * width; ++at) {
            slices[i].master[at - slices[i].row_begin * width] =
                (float)(slices[i].param * 2 + (int)(at % 2)); /* exact in bf16 */
            ((float *)slices[i].m)[at - slices[i].row_begin * width] = 3.0f;
        }
    }
    ok = optim_fixture_ok(tsr_optimizer_refresh(f.optimizer, f.stream)) && ok;
    for (int i = 0; ok && i < f.table.count; ++i) {
        const tsr_param *param = &f.table.params[i];
        const void *value = tsr_weights_value(&f.weights, i);
        for (int64_t at = 0; ok && at < param->rows * param->width; ++at) {
            const float expected = (float)(i * 2 + (int)(at % 2));
            ok = f.weights.dtype[param->group] == TSR_F32
                     ? ((const float *)value)[at] == expected
                     : ((const tsr_bf16 *)value)[at] == tsr_f32_to_bf16(expected);
        }
    }
    ok = ok && tsr_optimizer_slices(f.optimizer, &slices, &count) == TSR_OK;
    for (int i = 0; ok && i < count; ++i) { /* the moments came back from the device too */
        ok = *(float *)slices[i].m == 3.0f;
    }
    optim_fixture_close(&f);
    return ok;
}

static void a_loaded_state_reaches_all_ranks(void **state)
{
    (void)state;
    bool ok = loading_reaches_all(TSR_F32, false);

    ok = loading_reaches_all(TSR_BF16, false) && ok;
    ok = loading_reaches_all(TSR_BF16, true) && ok;
    assert_all_ranks(tsr_test_comm(), ok);
}

static void bad_steps_change_nothing(void **state)
{
    (void)state;
    optim_fixture f = {0}, untouched = {0};
    tsr_comm *comm = tsr_test_comm();
    bool ok = optim_fixture_ok(set_up(&f, comm, "cpu:plain", false, TSR_F32, TSR_F32, 1)) &&
              optim_fixture_ok(set_up(&untouched, comm, "cpu:plain", false, TSR_F32, TSR_F32, 1));

    ok = ok &&
         tsr_optimizer_step(f.optimizer, 3, optim_fixture_lr, (double)NAN, f.stream) ==
             TSR_ERR_RANGE &&
         strstr(tsr_error_message(), "in step 3, must be finite") != NULL;
    ok = ok && tsr_optimizer_step(f.optimizer, 3, optim_fixture_lr, (double)INFINITY, f.stream) ==
                   TSR_ERR_RANGE;
    ok = ok && tsr_optimizer_step(f.optimizer, 0, optim_fixture_lr, 1.0, f.stream) == TSR_ERR_ARG &&
         strstr(tsr_error_message(), "step = 0, must be >= 1") != NULL;
    ok = ok && optim_fixture_equal_weights(&f, &untouched);
    optim_fixture_close(&f);
    optim_fixture_close(&untouched);
    assert_all_ranks(comm, ok);
}

static void memory_is_as_announced(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
    const int sizes[TSR_GROUPS] = {size, size, size}, ranks[TSR_GROUPS] = {rank, rank, rank};
    bool ok = true;

    for (int compute = TSR_F32; compute <= TSR_BF16; ++compute) {
        optim_fixture f = {0};
        const size_t before = tsr_mem_live_bytes(TSR_MEM_OPTIMIZER);
        ok = optim_fixture_ok(
                 set_up(&f, comm, "cpu:plain", false, (tsr_dtype)compute, TSR_BF16, 0)) &&
             ok;
        const size_t taken = tsr_mem_live_bytes(TSR_MEM_OPTIMIZER) - before;
        const size_t announced =
            tsr_optimizer_bytes(&f.config, &f.table, (tsr_dtype)compute, sizes, ranks);
        /* what is not state: cuts, one slice a parameter, and the object itself */
        const size_t rest =
            (size_t)f.table.count * (sizeof(tsr_state_slice) + sizeof(int64_t)) + 2048;
        ok = ok && taken >= announced && taken <= announced + rest;
        optim_fixture_close(&f);
    }
    assert_all_ranks(comm, ok);
}

static void steps_allocate_nothing(void **state)
{
    (void)state;
    optim_fixture f = {0};
    double norm = 0;
    bool ok =
        optim_fixture_ok(set_up(&f, tsr_test_comm(), "cpu:plain", false, TSR_BF16, TSR_F32, 1)) &&
        optim_fixture_ok(optim_fixture_step(&f, 1, &norm));
    const int64_t calls = tsr_mem_alloc_calls();

    ok = ok && optim_fixture_ok(optim_fixture_step(&f, 2, &norm)) && tsr_mem_alloc_calls() == calls;
    optim_fixture_close(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

static void weights_without_gradients_are_refused(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm(), *groups[TSR_GROUPS] = {comm, comm, comm};
    optim_fixture f = {.config = optim_fixture_config(TSR_F32, 0)};
    tsr_model_config model;
    bool ok = tsr_device_open("cpu:plain", 1, &f.device) == TSR_OK &&
              optim_fixture_table(&model, &f.table) == TSR_OK &&
              tsr_weights_create(&model, &f.table, f.device, TSR_F32, false, &f.weights) == TSR_OK;

    ok = ok && tsr_optimizer_create(&f.config, &f.weights, groups, &f.optimizer) == TSR_ERR_ARG &&
         strstr(tsr_error_message(), "no gradients") != NULL && f.optimizer == NULL;
    optim_fixture_close(&f);
    assert_all_ranks(comm, ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_ranks_equal_one_to_the_bit),
        cmocka_unit_test(a_far_device_changes_nothing),
        cmocka_unit_test(spread_experts_change_nothing),
        cmocka_unit_test(steps_follow_the_formula),
        cmocka_unit_test(clipping_scales_the_gradient),
        cmocka_unit_test(slices_tile_every_row_once),
        cmocka_unit_test(first_weights_do_not_depend_on_ranks),
        cmocka_unit_test(a_loaded_state_reaches_all_ranks),
        cmocka_unit_test(bad_steps_change_nothing),
        cmocka_unit_test(memory_is_as_announced),
        cmocka_unit_test(steps_allocate_nothing),
        cmocka_unit_test(weights_without_gradients_are_refused),
    };

    return tsr_mpi_test_main(argc, argv, "optimizer", tests, sizeof tests / sizeof tests[0]);
}
