#include "tests/optim/optim_fixture.h"

#include "runtime/device_impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

tsr_optim_config optim_fixture_config(tsr_dtype moments, double clip_norm)
{
    return (tsr_optim_config){.lr = optim_fixture_lr,
                              .beta1 = 0.9,
                              .beta2 = 0.95,
                              .eps = 1e-8,
                              .weight_decay = 0.1,
                              .clip_norm = clip_norm,
                              .moments = (int)moments};
}

/* Odd sizes: rows do not divide by ranks, nor widths by vectors. */
tsr_status optim_fixture_table(tsr_model_config *model, tsr_param_table *table)
{
    static tsr_config_errors errors;

    *model = (tsr_model_config){.vocab_size = 37,
                                .hidden_size = 24,
                                .num_hidden_layers = OPTIM_LAYERS,
                                .num_attention_heads = 3,
                                .num_key_value_heads = 1,
                                .head_dim = 8,
                                .moe_intermediate_size = 13,
                                .num_experts = OPTIM_EXPERTS,
                                .num_experts_per_tok = 2,
                                .rms_norm_eps = 1e-5,
                                .rope_theta = 1e4,
                                .initializer_range = 0.02,
                                .norm_topk_prob = true,
                                .routed_scaling_factor = 1.0};
    tsr_model_config_check(model, &errors);
    TSR_CHECK(errors.count == 0, TSR_ERR_ARG, "%s", errors.text);
    return tsr_param_table_create(model, table);
}

tsr_status optim_fixture_open(optim_fixture *f, tsr_comm *comm, const optim_options *options)
{
    tsr_comm *groups[TSR_GROUPS] = {comm, comm, comm};
    const int part = options->ep > 0 ? tsr_comm_rank(comm) % options->ep : 0;
    const tsr_param_table *table = &f->table;
    tsr_model_config model;

    *f = (optim_fixture){.config = optim_fixture_config(options->moments, options->clip_norm),
                         .comm = comm};
    TSR_TRY(tsr_device_open(options->device, 1, &f->device));
    f->device->is_host = !options->is_far;
    TSR_TRY(tsr_stream_create(f->device, &f->stream));
    TSR_TRY(optim_fixture_table(&model, &f->table));
    if (options->ep > 0) {
        TSR_TRY(tsr_comm_split(comm, part, tsr_comm_rank(comm), &f->replica));
        TSR_TRY(tsr_param_table_share(&f->table, options->owner, part, &f->local));
        groups[TSR_GROUP_EXPERT] = f->replica;
        table = &f->local;
    }
    TSR_TRY(tsr_weights_create(&model, table, f->device, options->compute, true, &f->weights));
    TSR_TRY(tsr_optimizer_create(&f->config, &f->weights, groups, &f->optimizer));
    return tsr_optimizer_init(f->optimizer, 5, f->stream);
}

void optim_fixture_close(optim_fixture *f)
{
    tsr_optimizer_destroy(&f->optimizer);
    tsr_comm_destroy(&f->replica);
    tsr_weights_destroy(&f->weights);
    tsr_param_table_destroy(&f->local);
    tsr_param_table_destroy(&f->table);
    tsr_stream_destroy(&f->stream);
    tsr_device_close(&f->device);
}

/* Of the whole world: 1/2 to 1 in size, either sign; never near zero, see `tolerance`. */
float optim_fixture_gradient(int64_t step, int param, int64_t at)
{
    const double u = tsr_rng_uniform((uint64_t)(step * 1000 + param), (uint64_t)at);
    const double size = (double)(512 + (int)(fabs(2.0 * u - 1.0) * 512.0)) / 1024.0;

    return (float)(u < 0.5 ? -size : size);
}

/* Rank 0's part is what remains when each other rank of the group gives rank / 1024. */
static void fill_gradients(optim_fixture *f, int64_t step)
{
    for (int i = 0; i < f->table.count; ++i) {
        const tsr_param *param = &f->weights.table->params[i];
        const bool is_replica = param->group == TSR_GROUP_EXPERT && f->replica != NULL;
        const tsr_comm *comm = is_replica ? f->replica : f->comm;
        const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
        const int others = size * (size - 1) / 2;
        float *gradient = tsr_weights_gradient(&f->weights, i);

        for (int64_t at = 0; at < param->rows * param->width; ++at) {
            const int64_t whole =
                tsr_param_global_row(param, at / param->width) * param->width + at % param->width;
            const float rest = optim_fixture_gradient(step, i, whole) - (float)others / 1024.0f;
            gradient[at] = rank == 0 ? rest : (float)rank / 1024.0f;
        }
    }
}

tsr_status optim_fixture_step(optim_fixture *f, int64_t step, double *norm_out)
{
    double squares = 0.0;

    fill_gradients(f, step);
    TSR_TRY(tsr_optimizer_reduce(f->optimizer, f->stream));
    TSR_TRY(tsr_optimizer_grad_squares(f->optimizer, f->stream, &squares));
    TSR_TRY(tsr_comm_all_reduce_f64(f->comm, &squares, 1, TSR_REDUCE_SUM));
    *norm_out = sqrt(squares);
    return tsr_optimizer_step(f->optimizer, step, optim_fixture_lr, *norm_out, f->stream);
}

bool optim_fixture_ok(tsr_status st)
{
    if (st != TSR_OK) {
        (void)fprintf(stderr, "%s\n", tsr_error_message());
    }
    return st == TSR_OK;
}

/* Rows that a holds against the same ones of b, which holds all. */
bool optim_fixture_equal_weights(const optim_fixture *a, const optim_fixture *b)
{
    bool ok = true;

    for (int i = 0; i < a->table.count; ++i) {
        const tsr_param *param = &a->weights.table->params[i];
        const size_t bytes = (size_t)param->width * tsr_dtype_bytes(a->weights.dtype[param->group]);
        const char *mine = tsr_weights_value(&a->weights, i);
        const char *all = tsr_weights_value(&b->weights, i);
        for (int64_t row = 0; row < param->rows; ++row) {
            const int64_t whole = tsr_param_global_row(param, row);
            ok = ok && memcmp(mine + (size_t)row * bytes, all + (size_t)whole * bytes, bytes) == 0;
        }
    }
    return ok;
}

/* Own rows of the sharded state against the same rows of the state of one rank. */
bool optim_fixture_equal_state(optim_fixture *sharded, optim_fixture *whole)
{
    const tsr_state_slice *own = NULL, *all = NULL;
    int own_count = 0, all_count = 0;
    bool ok = tsr_optimizer_slices(sharded->optimizer, &own, &own_count) == TSR_OK &&
              tsr_optimizer_slices(whole->optimizer, &all, &all_count) == TSR_OK &&
              all_count == whole->table.count;

    for (int i = 0; ok && i < own_count; ++i) {
        const int64_t width = whole->table.params[own[i].param].width;
        const size_t first = (size_t)(own[i].row_begin * width);
        const size_t count = (size_t)((own[i].row_end - own[i].row_begin) * width);
        const size_t moment_bytes = tsr_dtype_bytes(own[i].moment_dtype);
        const tsr_state_slice *other = &all[own[i].param];
        ok = memcmp(own[i].master, other->master + first, count * sizeof(float)) == 0 &&
             memcmp(own[i].m, (char *)other->m + first * moment_bytes, count * moment_bytes) == 0 &&
             memcmp(own[i].v, (char *)other->v + first * moment_bytes, count * moment_bytes) == 0;
    }
    return ok;
}
