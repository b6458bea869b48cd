/* The sharded optimizer on a GPU whose memory goes straight into collectives, against the same with
 * every collective staged through the host: equal to the bit, since sums have one order. */
#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"
#include "optim/optim.h"

#include <math.h>
#include <stdio.h>
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

static bool ok_or_say(tsr_status st)
{
    if (st != TSR_OK) {
        (void)fprintf(stderr, "%s\n", tsr_error_message());
    }
    return st == TSR_OK;
}

/* Odd sizes: rows do not divide by ranks, nor widths by vectors. */
static const tsr_model_config small = {.vocab_size = 37,
                                       .hidden_size = 24,
                                       .num_hidden_layers = 1,
                                       .num_attention_heads = 3,
                                       .num_key_value_heads = 1,
                                       .head_dim = 8,
                                       .moe_intermediate_size = 13,
                                       .num_experts = 3,
                                       .num_experts_per_tok = 2,
                                       .rms_norm_eps = 1e-5,
                                       .rope_theta = 1e4,
                                       .initializer_range = 0.02,
                                       .norm_topk_prob = true,
                                       .routed_scaling_factor = 1.0};

static tsr_status set_up(fixture *f, tsr_dtype compute, bool by_nccl)
{
    static tsr_config_errors errors;
    const tsr_nccl_options options = {.buffer_bytes = 3 * 512, .checks_order = true};
    tsr_model_config model = small;

    *f = (fixture){.config = {.lr = 0.01,
                              .beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.1,
                              .clip_norm = 1.0,
                              .moments = TSR_F32}};
    TSR_TRY(tsr_device_open("cuda:emulated", 1, &f->device));
    TSR_TRY(tsr_stream_create(f->device, &f->stream));
    tsr_model_config_check(&model, &errors);
    TSR_CHECK(errors.count == 0, TSR_ERR_ARG, "%s", errors.text);
    TSR_TRY(tsr_param_table_create(&model, &f->table));
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
    return tsr_optimizer_step(f->optimizer, step, 0.01, *norm_out, f->stream);
}

static bool equal_weights(fixture *a, fixture *b)
{
    static char copies[2][1 << 18];
    bool ok = true;

    for (int g = 0; ok && g < TSR_GROUPS; ++g) {
        const size_t bytes =
            (size_t)a->table.group_elements[g] * tsr_dtype_bytes(a->weights.dtype[g]);
        ok = bytes <= sizeof copies[0] &&
             ok_or_say(tsr_device_copy(a->device, copies[0], a->weights.value[g], bytes,
                                       TSR_COPY_DEVICE_TO_HOST, a->stream)) &&
             ok_or_say(tsr_device_copy(b->device, copies[1], b->weights.value[g], bytes,
                                       TSR_COPY_DEVICE_TO_HOST, b->stream)) &&
             ok_or_say(tsr_stream_wait(a->stream)) && ok_or_say(tsr_stream_wait(b->stream)) &&
             memcmp(copies[0], copies[1], bytes) == 0;
    }
    return ok;
}

static bool nccl_equals_staging(tsr_dtype compute)
{
    fixture direct, staged;
    double direct_norm = 0.0, staged_norm = 0.0;
    bool ok =
        ok_or_say(set_up(&direct, compute, true)) && ok_or_say(set_up(&staged, compute, false));

    ok = ok && equal_weights(&direct, &staged);
    for (int64_t step = 1; ok && step <= STEPS; ++step) {
        ok = ok_or_say(step_once(&direct, step, &direct_norm)) &&
             ok_or_say(step_once(&staged, step, &staged_norm)) && direct_norm == staged_norm &&
             direct_norm > 1.0 && equal_weights(&direct, &staged);
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
