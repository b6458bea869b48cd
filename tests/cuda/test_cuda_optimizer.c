/* The sharded optimizer on a GPU whose memory goes straight into collectives, against the same with
 * every collective staged through the host: equal to the bit, since sums have one order. */
#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"
#include "tests/optim/optim_fixture.h"

#include <math.h>
#include <string.h>

enum { STEPS = 2 };

typedef struct fixture {
    tsr_comm *comm;
    tsr_device *device;
    tsr_stream *stream;
    tsr_param_table table;
    tsr_weights weights;
    tsr_optimizer *optimizer;
    tsr_optim_config config;
} fixture;

static tsr_status set_up(fixture *f, tsr_dtype compute, bool by_nccl)
{
    const tsr_nccl_options options = {.buffer_bytes = 3 * 512, .checks_order = true};
    tsr_model_config model;

    *f = (fixture){.config = optim_fixture_config(TSR_F32, 1.0)};
    TSR_TRY(tsr_device_open("cuda:emulated", 1, &f->device));
    TSR_TRY(tsr_stream_create(f->device, &f->stream));
    TSR_TRY(optim_fixture_table(&model, &f->table));
    TSR_TRY(tsr_weights_create(&model, &f->table, f->device, compute, true, &f->weights));
    if (by_nccl) {
        TSR_TRY(tsr_comm_create_nccl(tsr_test_comm(), f->device, &options, &f->comm));
    }
    tsr_comm *const comm = by_nccl ? f->comm : tsr_test_comm();
    tsr_comm *groups[TSR_GROUPS] = {comm, comm, comm};
    TSR_TRY(tsr_optimizer_create(&f->config, &f->weights, groups, &f->optimizer));
    return tsr_optimizer_init(f->optimizer, 5, f->stream);
}

static void tear_down(fixture *f)
{
    tsr_optimizer_destroy(&f->optimizer);
    tsr_comm_destroy(&f->comm);
    tsr_weights_destroy(&f->weights);
    tsr_param_table_destroy(&f->table);
    tsr_stream_destroy(&f->stream);
    tsr_device_close(&f->device);
}

/* Every rank has gradients of its own, for which the order of summation matters. */
static tsr_status fill_gradients(fixture *f, int64_t step)
{
    static float near[1 << 16];

    for (int g = 0; g < TSR_GROUPS; ++g) {
        const int64_t count = f->table.group_elements[g];
        const uint64_t key = (uint64_t)(step * 1000 + g * 100 + tsr_comm_rank(tsr_test_comm()));

        TSR_CHECK(count <= 1 << 16, TSR_ERR_ARG, "the model is too large for this test");
        for (int64_t i = 0; i < count; ++i) {
            near[i] = (float)(tsr_rng_uniform(key, (uint64_t)i) - 0.5);
        }
        TSR_TRY(tsr_device_copy(f->device, f->weights.gradient[g], near,
                                (size_t)count * sizeof *near, TSR_COPY_HOST_TO_DEVICE, f->stream));
    }
    return TSR_OK;
}

static tsr_status step_once(fixture *f, int64_t step, double *norm_out)
{
    double squares = 0.0;

    TSR_TRY(fill_gradients(f, step));
    TSR_TRY(tsr_optimizer_reduce(f->optimizer, f->stream));
    TSR_TRY(tsr_optimizer_grad_squares(f->optimizer, f->stream, &squares));
    TSR_TRY(tsr_comm_all_reduce_f64(tsr_test_comm(), &squares, 1, TSR_REDUCE_SUM));
    *norm_out = sqrt(squares);
    return tsr_optimizer_step(f->optimizer, step, optim_fixture_lr, *norm_out, f->stream);
}

static bool equal_weights(fixture *a, fixture *b)
{
    static char copies[2][1 << 18];
    bool ok = true;

    for (int g = 0; ok && g < TSR_GROUPS; ++g) {
        const size_t bytes =
            (size_t)a->table.group_elements[g] * tsr_dtype_bytes(a->weights.dtype[g]);
        ok = bytes <= sizeof copies[0] &&
             optim_fixture_ok(tsr_device_copy(a->device, copies[0], a->weights.value[g], bytes,
                                              TSR_COPY_DEVICE_TO_HOST, a->stream)) &&
             optim_fixture_ok(tsr_device_copy(b->device, copies[1], b->weights.value[g], bytes,
                                              TSR_COPY_DEVICE_TO_HOST, b->stream)) &&
             optim_fixture_ok(tsr_stream_wait(a->stream)) &&
             optim_fixture_ok(tsr_stream_wait(b->stream)) &&
             memcmp(copies[0], copies[1], bytes) == 0;
    }
    return ok;
}

static bool nccl_equals_staging(tsr_dtype compute)
{
    fixture direct, staged;
    double direct_norm = 0.0, staged_norm = 0.0;
    bool ok = optim_fixture_ok(set_up(&direct, compute, true)) &&
              optim_fixture_ok(set_up(&staged, compute, false));

    ok = ok && equal_weights(&direct, &staged);
    for (int64_t step = 1; ok && step <= STEPS; ++step) {
        ok = optim_fixture_ok(step_once(&direct, step, &direct_norm)) &&
             optim_fixture_ok(step_once(&staged, step, &staged_norm)) &&
             direct_norm == staged_norm && direct_norm > 1.0 && equal_weights(&direct, &staged);
    }
    tear_down(&direct);
    tear_down(&staged);
    return ok;
}

static void f32_steps_equal_the_staged_ones(void **state)
{
    (void)state;
    assert_all_ranks(tsr_test_comm(), nccl_equals_staging(TSR_F32));
}

static void bf16_steps_equal_the_staged_ones(void **state)
{
    (void)state;
    assert_all_ranks(tsr_test_comm(), nccl_equals_staging(TSR_BF16));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(f32_steps_equal_the_staged_ones),
        cmocka_unit_test(bf16_steps_equal_the_staged_ones),
    };

    return tsr_mpi_test_main(argc, argv, "cuda optimizer", tests, sizeof tests / sizeof *tests);
}
