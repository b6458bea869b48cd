#include "launch/trainer_impl.h"

#include "launch/devices.h"
#include "launch/peak.h"

#include <string.h>

/* Sequences that a rank runs at once: equal on all, so that all make as many passes. */
static int64_t trainer_micro_batch(const settings *s, int ranks)
{
    int64_t begin = 0, largest = 0;

    tsr_batch_share(s->train.global_batch, ranks, 0, &begin, &largest);
    return s->train.micro_batch > 0 && s->train.micro_batch < largest ? s->train.micro_batch
                                                                      : largest;
}

tsr_stage_options trainer_stage_options(const settings *s, const tsr_param_table *table,
                                        tsr_device *device, const tsr_mesh *mesh,
                                        const double *room)
{
    return (tsr_stage_options){
        .config = &s->model,
        .table = table,
        .device = device,
        .dtype = (tsr_dtype)s->precision.compute,
        .micro_batch = trainer_micro_batch(s, mesh->dp * mesh->ep),
        .seq_len = s->data.seq_len,
        .recompute = (tsr_recompute)s->train.recompute,
        .train = true,
        .expert_ranks = mesh->ep,
        .experts = &mesh->expert,
        .dispatch = (tsr_dispatch_choice)s->parallel.dispatch,
        .dispatch_chunks = s->parallel.dispatch_chunks,
        .room = room,
        .placement = (tsr_placement_policy)s->parallel.placement,
        .copies = &s->experts,
    };
}

int64_t trainer_passes(const trainer *t, int64_t sequences)
{
    int64_t begin = 0, largest = 0;

    tsr_batch_share(sequences, t->mesh.dp * t->mesh.ep, 0, &begin, &largest);
    return (largest + t->micro_batch - 1) / t->micro_batch;
}

/* The whole table, who holds which experts, and what expert rank `part` holds. */
tsr_status trainer_make_tables(const settings *s, int parts, int part, tsr_param_table *table,
                               int32_t **owner, tsr_param_table *local)
{
    const int64_t layers = s->model.num_hidden_layers, experts = s->model.num_experts;

    TSR_TRY(tsr_param_table_create(&s->model, table));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, layers * experts, sizeof **owner, (void **)owner));
    tsr_expert_owners_even(layers, experts, parts, *owner);
    return tsr_param_table_share(table, *owner, part, local);
}

/* Everything that may fail on this rank alone; the caller agrees on the outcome. */
static tsr_status create_local(trainer *t, int threads)
{
    const settings *s = t->s;
    const tsr_mesh *mesh = &t->mesh;
    const int position = tsr_comm_rank(mesh->dense.flat);

    TSR_TRY(devices_open((device_choice)s->run.device, t->w, threads, &t->device));
    TSR_TRY(tsr_stream_create(t->device, &t->stream));
    TSR_TRY(trainer_make_tables(s, mesh->ep, mesh->ep_rank, &t->table, &t->owner, &t->local));
    TSR_TRY(tsr_weights_create(&s->model, &t->local, t->device, t->dtype, true, &t->weights));
    t->micro_batch = trainer_micro_batch(s, mesh->dp * mesh->ep);
    tsr_batch_share(s->train.global_batch, mesh->dp * mesh->ep, position, &t->share_begin,
                    &t->share_end);
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_DATA, t->micro_batch * (s->data.seq_len + 1),
                                sizeof *t->tokens, (void **)&t->tokens));
    if (t->weights.router_bias != NULL) {
        TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, t->weights.layers * t->weights.experts,
                                    sizeof *t->router_bias, (void **)&t->router_bias));
    }
    if (mesh->ep > 1) {
        TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, t->weights.layers, sizeof *t->balance,
                                    (void **)&t->balance));
        TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, mesh->ep, sizeof *t->owner_load,
                                    (void **)&t->owner_load));
    }
    TSR_TRY(trainer_take_room(t));
    t->totals_count = trainer_totals_count(t);
    return tsr_mem_alloc_array(TSR_MEM_OTHER, t->totals_count, sizeof *t->totals,
                               (void **)&t->totals);
}

/* Once the groups' communicators are there; local too. */
static tsr_status create_stage(trainer *t)
{
    tsr_stage_options options =
        trainer_stage_options(t->s, &t->local, t->device, &t->mesh, t->room);

    options.owner = t->owner;
    options.shares = t->mesh.dp * trainer_passes(t, t->s->train.global_batch);
    options.copies_comm = tsr_mesh_copies(&t->mesh);
    TSR_TRY(tsr_stage_create(&options, &t->weights, &t->stage));
    return trainer_take_arrays(t);
}

/* GPUs of one rank each talk by NCCL; ranks that share one have to ask for mpi. Collective. */
static tsr_status use_nccl_if_wanted(trainer *t)
{
    const tsr_collectives_choice choice = (tsr_collectives_choice)t->s->parallel.collectives;
    const tsr_nccl_options options = {0};
    const bool is_wanted = choice == TSR_COLLECTIVES_NCCL ||
                           (choice == TSR_COLLECTIVES_AUTO && !tsr_device_is_host(t->device));

    return is_wanted ? tsr_mesh_use_nccl(&t->mesh, t->device, &options) : TSR_OK;
}

/* Equal on all ranks. */
static tsr_status check_mesh(const settings *s, const tsr_mesh *mesh)
{
    const int ranks = mesh->pp * mesh->dp * mesh->ep;

    TSR_CHECK(s->train.global_batch >= ranks, TSR_ERR_ARG,
              "train.global_batch = %lld: each of the %d ranks needs at least one sequence a step",
              (long long)s->train.global_batch, ranks);
    TSR_CHECK(mesh->ep == 1 || tsr_model_moe_layers(&s->model) > 0, TSR_ERR_ARG,
              "parallel.ep = %d, but the model has no experts to spread: set parallel.ep = 1",
              mesh->ep);
    if (s->model.num_experts < mesh->ep && tsr_comm_rank(mesh->world.flat) == 0) {
        tsr_log(TSR_LOG_WARN,
                "parallel.ep = %d, but the model has %lld experts: of each expert group's ranks "
                "%lld hold none",
                mesh->ep, (long long)s->model.num_experts,
                (long long)(mesh->ep - s->model.num_experts));
    }
    if (s->parallel.placement == TSR_PLACEMENT_SWAP && mesh->ep > 1 &&
        s->experts.reshard_every == 0 && tsr_comm_rank(mesh->world.flat) == 0) {
        tsr_log(TSR_LOG_WARN, "parallel.placement = swap moves owners every experts.reshard_every "
                              "steps, which is 0: they stay as they are");
    }
    return TSR_OK;
}

tsr_status trainer_open_mesh(const settings *s, const world *w, tsr_mesh *mesh_out)
{
    tsr_mesh mesh = {0};
    tsr_status st = tsr_mesh_create(&s->parallel, w->comm, &mesh);

    st = st != TSR_OK ? st : check_mesh(s, &mesh);
    if (st == TSR_OK) {
        *mesh_out = mesh;
        return TSR_OK;
    }
    tsr_mesh_destroy(&mesh);
    if ((st == TSR_ERR_ARG || st == TSR_ERR_UNSUPPORTED) && tsr_comm_rank(w->comm) != 0) {
        return TSR_FAIL(TSR_ERR_PEER,
                        "rank 0 reports the same"); /* equal everywhere: say it once */
    }
    return st;
}

tsr_status trainer_create_optimizer(trainer *t)
{
    tsr_comm *const groups[TSR_GROUPS] = {
        [TSR_GROUP_FLOAT] = t->mesh.dense.device.all,
        [TSR_GROUP_DENSE] = t->mesh.dense.device.all,
        [TSR_GROUP_EXPERT] = t->mesh.replica.device.all,
    };

    return tsr_optimizer_create(&t->s->optim, &t->weights, groups, &t->optimizer);
}

tsr_status trainer_create(trainer *t, const settings *s, world *w)
{
    int threads = (int)s->run.threads;

    *t = (trainer){.s = s, .w = w, .dtype = (tsr_dtype)s->precision.compute};
    TSR_TRY(trainer_open_mesh(s, w, &t->mesh));
    t->comm = t->mesh.world.host.all;
    if (threads == 0) {
        TSR_TRY(world_thread_share(w, &threads));
    }
    TSR_TRY(tsr_comm_agree(t->comm, create_local(t, threads)));
    TSR_TRY(use_nccl_if_wanted(t));
    TSR_TRY(tsr_comm_agree(t->comm, create_stage(t)));
    TSR_TRY(trainer_create_optimizer(t));
    TSR_TRY(tsr_comm_agree(t->comm, trainer_plan_start(t)));
    t->flops_per_token = tsr_model_train_flops_per_token(&s->model, &t->table, s->data.seq_len);
    tsr_traffic_read(t->bytes_before); /* what starting took is not the first step's */
    return TSR_OK;
}

void trainer_destroy(trainer *t)
{
    tsr_optimizer_destroy(&t->optimizer);
    tsr_stage_destroy(&t->stage);
    tsr_mesh_destroy(&t->mesh);
    tsr_weights_destroy(&t->weights);
    tsr_param_table_destroy(&t->local);
    tsr_mem_free(t->owner);
    tsr_param_table_destroy(&t->table);
    tsr_stream_destroy(&t->stream);
    tsr_device_close(&t->device);
    tsr_mem_free(t->tokens);
    tsr_mem_free(t->totals);
    tsr_mem_free(t->router_bias);
    tsr_mem_free(t->balance);
    tsr_mem_free(t->owner_load);
    tsr_mem_free(t->room);
    tsr_mem_free(t->met);
    for (int i = 0; i < t->array_count; ++i) {
        tsr_mem_free(t->arrays[i].values);
    }
    *t = (trainer){0};
}

tsr_status trainer_measure_peak(trainer *t)
{
    double rate = 0.0;

    TSR_TRY(tsr_comm_barrier(t->comm));
    TSR_TRY(tsr_comm_agree(t->comm, peak_measure(t->device, t->stream, t->dtype, &rate)));
    TSR_TRY(tsr_comm_all_reduce_f64(t->comm, &rate, 1, TSR_REDUCE_SUM));
    t->peak_flops = rate;
    return TSR_OK;
}
