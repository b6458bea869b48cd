#include "launch/trainer.h"

#include "launch/devices.h"
#include "launch/peak.h"

#include <string.h>

/* What a step sums over ranks in its one exchange, in this order; then a peak-memory slot a rank,
 * then the expert counts [L,E]. */
enum {
    SUM_LOSS,
    SUM_AUX,
    SUM_TOKENS,
    SUM_SEQUENCES,
    SUM_GRAD_SQUARES,
    SUM_FAILED,
    SUM_STOP,
    SUM_WRITTEN,
    SUM_WRITE_FAILED,
    SUM_BYTES, /* [TSR_TRAFFICS, TSR_LINKS] */
    SUM_SLOTS = SUM_BYTES + TSR_TRAFFICS * TSR_LINKS
};

static tsr_stage_options stage_options(const settings *s, const tsr_param_table *table,
                                       tsr_device *device, int64_t micro_batch)
{
    return (tsr_stage_options){
        .config = &s->model,
        .table = table,
        .device = device,
        .dtype = (tsr_dtype)s->precision.compute,
        .micro_batch = micro_batch,
        .seq_len = s->data.seq_len,
        .recompute = (tsr_recompute)s->train.recompute,
        .train = true,
    };
}

static int64_t micro_batch_of(const settings *s, int ranks, int rank, int64_t *begin, int64_t *end)
{
    tsr_batch_share(s->train.global_batch, ranks, rank, begin, end);
    const int64_t share = *end - *begin;
    return s->train.micro_batch > 0 && s->train.micro_batch < share ? s->train.micro_batch : share;
}

/* The whole table, who holds which experts, and what expert rank `part` holds. */
static tsr_status make_tables(const settings *s, int parts, int part, tsr_param_table *table,
                              int32_t **owner, tsr_param_table *local)
{
    const int64_t layers = s->model.num_hidden_layers, experts = s->model.num_experts;

    TSR_TRY(tsr_param_table_create(&s->model, table));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, layers * experts, sizeof **owner, (void **)owner));
    tsr_expert_owners_even(layers, experts, parts, *owner);
    return tsr_param_table_share(table, *owner, part, local);
}

/* Ranks that share each group of parameters. */
static void group_sizes(const tsr_mesh *mesh, int sizes_out[TSR_GROUPS])
{
    sizes_out[TSR_GROUP_FLOAT] = sizes_out[TSR_GROUP_DENSE] = mesh->dp * mesh->ep;
    sizes_out[TSR_GROUP_EXPERT] = mesh->dp;
}

tsr_status trainer_estimate(const settings *s, const tsr_mesh *mesh, trainer_plan *plan_out)
{
    const tsr_dtype compute = (tsr_dtype)s->precision.compute;
    const int first[TSR_GROUPS] = {0};
    int sizes[TSR_GROUPS];
    tsr_param_table table = {0}, local = {0};
    int32_t *owner = NULL;
    tsr_device *device = NULL;
    trainer_plan plan = {0};
    int64_t begin = 0, end = 0;
    tsr_status st = TSR_OK;

    group_sizes(mesh, sizes);
    TSR_TRY_GOTO(make_tables(s, mesh->ep, 0, &table, &owner, &local), done);
    TSR_TRY_GOTO(tsr_device_open("cpu", 1, &device), done);
    const int64_t micro = micro_batch_of(s, mesh->dp * mesh->ep, 0, &begin, &end);
    const tsr_stage_options options = stage_options(s, &local, device, micro);
    TSR_TRY_GOTO(tsr_stage_bytes(&options, &plan.activations), done);
    for (int g = 0; g < TSR_GROUPS; ++g) {
        const size_t elements = (size_t)local.group_elements[g];
        plan.weights += elements * tsr_dtype_bytes(g == TSR_GROUP_FLOAT ? TSR_F32 : compute);
        plan.gradients += elements * sizeof(float);
        plan.staging += elements / (size_t)sizes[g] * 3 * sizeof(float);
    }
    plan.optimizer = tsr_optimizer_bytes(&s->optim, &local, compute, sizes, first);
    plan.total = plan.weights + plan.gradients + plan.optimizer + plan.activations + plan.staging;
    *plan_out = plan;
done:
    tsr_device_close(&device);
    tsr_param_table_destroy(&local);
    tsr_mem_free(owner);
    tsr_param_table_destroy(&table);
    return st;
}

/* Everything that may fail on this rank alone; the caller agrees on the outcome. */
static tsr_status create_local(trainer *t, int threads)
{
    const settings *s = t->s;
    const tsr_mesh *mesh = &t->mesh;
    const int position = tsr_comm_rank(mesh->dense.flat);

    TSR_TRY(devices_open((device_choice)s->run.device, t->w, threads, &t->device));
    TSR_TRY(tsr_stream_create(t->device, &t->stream));
    TSR_TRY(make_tables(s, mesh->ep, mesh->ep_rank, &t->table, &t->owner, &t->local));
    TSR_TRY(tsr_weights_create(&s->model, &t->local, t->device, t->dtype, true, &t->weights));
    t->micro_batch =
        micro_batch_of(s, mesh->dp * mesh->ep, position, &t->share_begin, &t->share_end);
    const tsr_stage_options options = stage_options(s, &t->local, t->device, t->micro_batch);
    TSR_TRY(tsr_stage_create(&options, &t->weights, &t->stage));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_DATA, t->micro_batch * (s->data.seq_len + 1),
                                sizeof *t->tokens, (void **)&t->tokens));
    if (t->weights.router_bias != NULL) {
        TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, t->weights.layers * t->weights.experts,
                                    sizeof *t->router_bias, (void **)&t->router_bias));
    }
    t->totals_count = SUM_SLOTS + tsr_comm_size(t->comm) + t->weights.layers * t->weights.experts;
    return tsr_mem_alloc_array(TSR_MEM_OTHER, t->totals_count, sizeof *t->totals,
                               (void **)&t->totals);
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
    TSR_CHECK(mesh->ep == 1, TSR_ERR_UNSUPPORTED,
              "parallel.ep = %d: expert parallelism is not built yet, set parallel.ep = 1",
              mesh->ep);
    if (s->model.num_experts < mesh->ep && tsr_comm_rank(mesh->world.flat) == 0) {
        tsr_log(TSR_LOG_WARN,
                "parallel.ep = %d, but the model has %lld experts: %lld ranks of each expert "
                "group hold none",
                mesh->ep, (long long)s->model.num_experts,
                (long long)(mesh->ep - s->model.num_experts));
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
    tsr_comm *const groups[TSR_GROUPS] = {
        [TSR_GROUP_FLOAT] = t->mesh.dense.device.all,
        [TSR_GROUP_DENSE] = t->mesh.dense.device.all,
        [TSR_GROUP_EXPERT] = t->mesh.replica.device.all,
    };
    TSR_TRY(tsr_optimizer_create(&s->optim, &t->weights, groups, &t->optimizer));
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

tsr_status trainer_view(trainer *t, const char *config_text, tsr_state_view *view_out)
{
    tsr_state_view view = {
        .table = &t->table,
        .router_bias = t->router_bias,
        .layers = t->weights.layers,
        .experts = t->weights.experts,
        .step = t->step,
        .tokens = t->tokens_seen,
        .data_position = t->data_position,
        .seed = (uint64_t)t->s->run.seed,
        .config_text = config_text,
    };

    TSR_TRY(tsr_optimizer_slices(t->optimizer, &view.slices, &view.slice_count));
    *view_out = view;
    return TSR_OK;
}

static tsr_status send_router_bias(trainer *t)
{
    const size_t bytes = (size_t)(t->weights.layers * t->weights.experts) * sizeof *t->router_bias;

    return tsr_device_copy(t->device, t->weights.router_bias, t->router_bias, bytes,
                           TSR_COPY_HOST_TO_DEVICE, t->stream);
}

tsr_status trainer_restore(trainer *t, const tsr_state_view *view)
{
    t->step = view->step;
    t->tokens_seen = view->tokens;
    t->data_position = view->data_position;
    if (t->router_bias != NULL) {
        TSR_TRY(send_router_bias(t));
    }
    return tsr_optimizer_refresh(t->optimizer, t->stream);
}

/* ---- one step ------------------------------------------------------------------------------- */

static tsr_status run_micro_batches(trainer *t, trainer_source *source, void *context,
                                    double *counts, tsr_stage_sums *sums)
{
    const int64_t row = t->s->data.seq_len + 1, global = t->s->train.global_batch;
    const float loss_scale = (float)(1.0 / ((double)global * (double)t->s->data.seq_len));

    sums->counts = counts;
    for (int64_t i = t->share_begin; i < t->share_end; i += t->micro_batch) {
        const int64_t left = t->share_end - i;
        const int64_t batch = left < t->micro_batch ? left : t->micro_batch;

        for (int64_t j = 0; j < batch; ++j) {
            TSR_TRY(source(context, t->data_position + i + j, t->tokens + j * row));
        }
        TSR_TRY(tsr_stage_train(t->stage, t->tokens, batch, i > t->share_begin, loss_scale,
                                1.0f / (float)global, sums));
    }
    return TSR_OK;
}

/* Largest load over mean load, of the layer where that is worst. */
static void find_imbalance(const double *counts, int64_t layers, int64_t experts,
                           step_result *result)
{
    for (int64_t l = 0; l < layers; ++l) {
        double most = 0.0, all = 0.0;

        for (int64_t e = 0; e < experts; ++e) {
            const double count = counts[l * experts + e];
            most = count > most ? count : most;
            all += count;
        }
        const double ratio = all > 0.0 ? most * (double)experts / all : 0.0;
        if (ratio > result->expert_max_over_mean) {
            result->expert_max_over_mean = ratio;
            result->worst_layer = (int)l;
        }
    }
}

static void read_totals(trainer *t, step_result *result)
{
    const double *sum = t->totals;
    const int ranks = tsr_comm_size(t->comm);

    result->loss = sum[SUM_LOSS] / sum[SUM_TOKENS];
    result->aux_loss = sum[SUM_AUX] / sum[SUM_SEQUENCES];
    result->tokens = (int64_t)sum[SUM_TOKENS];
    result->stop_wanted = (int)sum[SUM_STOP];
    result->checkpoint_written = (int)sum[SUM_WRITTEN];
    result->checkpoint_failed = (int)sum[SUM_WRITE_FAILED];
    memcpy(result->bytes, sum + SUM_BYTES, sizeof result->bytes);
    for (int r = 0; r < ranks; ++r) {
        result->mem_bytes =
            sum[SUM_SLOTS + r] > result->mem_bytes ? sum[SUM_SLOTS + r] : result->mem_bytes;
    }
    find_imbalance(sum + SUM_SLOTS + ranks, t->weights.layers, t->weights.experts, result);
}

/* The step's one exchange: sums, flags and counters of all ranks. */
static tsr_status exchange_totals(trainer *t, const tsr_stage_sums *sums, const step_flags *flags,
                                  tsr_status local, double squares)
{
    double *sum = t->totals;
    int64_t bytes[TSR_TRAFFICS][TSR_LINKS];

    sum[SUM_LOSS] = sums->loss;
    sum[SUM_AUX] = sums->aux_loss;
    sum[SUM_TOKENS] = (double)sums->tokens;
    sum[SUM_SEQUENCES] = (double)sums->sequences;
    sum[SUM_GRAD_SQUARES] = squares;
    sum[SUM_FAILED] = local != TSR_OK;
    sum[SUM_STOP] = flags->wants_stop;
    sum[SUM_WRITTEN] = flags->checkpoint == TSR_CKPT_WRITTEN;
    sum[SUM_WRITE_FAILED] = flags->checkpoint == TSR_CKPT_FAILED;
    tsr_traffic_read(bytes);
    for (int i = 0; i < TSR_TRAFFICS * TSR_LINKS; ++i) {
        int64_t *now = &bytes[i / TSR_LINKS][i % TSR_LINKS];
        int64_t *before = &t->bytes_before[i / TSR_LINKS][i % TSR_LINKS];
        sum[SUM_BYTES + i] = (double)(*now - *before);
        *before = *now;
    }
    sum[SUM_SLOTS + tsr_comm_rank(t->comm)] =
        (double)tsr_mem_peak_resident() + (double)tsr_device_peak_bytes(t->device);
    TSR_TRY(tsr_comm_all_reduce_f64(t->comm, sum, t->totals_count, TSR_REDUCE_SUM));
    return sum[SUM_FAILED] > 0.0 ? tsr_comm_agree(t->comm, local) : TSR_OK;
}

static tsr_status update_router_bias(trainer *t)
{
    const double rate = t->s->model.router_bias_update_rate;
    const double *counts = t->totals + SUM_SLOTS + tsr_comm_size(t->comm);

    if (t->router_bias == NULL || rate <= 0.0) {
        return TSR_OK;
    }
    tsr_router_bias_update(t->router_bias, counts, t->weights.layers, t->weights.experts, rate);
    return send_router_bias(t);
}

const char *step_part_name(step_part part)
{
    static const char *const names[STEP_PARTS] = {"forward_backward", "reduce", "totals", "update"};

    return names[part];
}

/* A part has ended: its time, and that of the next one's beginning. */
static void end_part(step_result *result, step_part part, int64_t step, int64_t *began_ns)
{
    const int64_t now = tsr_trace_clock();

    result->part_ms[part] = 1e-6 * (double)(now - *began_ns);
    tsr_trace_end(TSR_TRACE_STEP, step_part_name(part), step, *began_ns);
    *began_ns = now;
}

const double *trainer_counts(const trainer *t)
{
    return t->weights.experts > 0 ? t->totals + SUM_SLOTS + tsr_comm_size(t->comm) : NULL;
}

tsr_status trainer_step(trainer *t, trainer_source *source, void *context, const step_flags *flags,
                        step_result *result_out)
{
    const int64_t step = t->step + 1;
    const int64_t start = tsr_trace_clock();
    int64_t part_start = start;
    tsr_stage_sums sums = {0};
    step_result result = {.lr = tsr_lr_at(&t->s->optim, step, t->s->train.steps)};
    double squares = 0.0;

    memset(t->totals, 0, (size_t)t->totals_count * sizeof *t->totals);
    double *counts = t->weights.experts > 0 ? t->totals + SUM_SLOTS + tsr_comm_size(t->comm) : NULL;
    tsr_comm_set_phase("forward and backward", step);
    const tsr_status local = run_micro_batches(t, source, context, counts, &sums);

    /* A rank that failed goes on to the exchange, where the others learn of it. */
    end_part(&result, STEP_FORWARD_BACKWARD, step, &part_start);
    tsr_comm_set_phase("gradient reduce-scatter", step);
    TSR_TRY(tsr_optimizer_reduce(t->optimizer, t->stream));
    TSR_TRY(tsr_optimizer_grad_squares(t->optimizer, t->stream, &squares));
    end_part(&result, STEP_REDUCE, step, &part_start);
    tsr_comm_set_phase("step totals", step);
    TSR_TRY(exchange_totals(t, &sums, flags, local, squares));
    read_totals(t, &result);
    result.grad_norm = __builtin_sqrt(t->totals[SUM_GRAD_SQUARES]);
    TSR_CHECK(
        __builtin_isfinite(result.loss) && __builtin_isfinite(result.grad_norm), TSR_ERR_RANGE,
        "step %lld: loss %g, gradient norm %g: not finite, the update was not made; resume from "
        "the last checkpoint with a smaller optim.lr or optim.clip_norm",
        (long long)step, result.loss, result.grad_norm);

    end_part(&result, STEP_TOTALS, step, &part_start);
    tsr_comm_set_phase("optimizer and weight all-gather", step);
    TSR_TRY(tsr_optimizer_step(t->optimizer, step, result.lr, result.grad_norm, t->stream));
    TSR_TRY(update_router_bias(t));
    TSR_TRY(tsr_stream_wait(t->stream));
    end_part(&result, STEP_UPDATE, step, &part_start);
    t->step = step;
    t->tokens_seen += result.tokens;
    result.tokens_seen = t->tokens_seen;
    t->data_position += t->s->train.global_batch;
    const double seconds = 1e-9 * (double)(part_start - start);
    result.ms = 1e3 * seconds;
    result.tokens_per_s = (double)result.tokens / seconds;
    result.gemm_share =
        t->peak_flops > 0.0 ? result.tokens_per_s * t->flops_per_token / t->peak_flops : 0.0;
    *result_out = result;
    return TSR_OK;
}

/* ---- validation ----------------------------------------------------------------------------- */

static tsr_status evaluate_share(trainer *t, const tsr_data *data, int64_t begin, int64_t end,
                                 tsr_stage_sums *sums)
{
    const int64_t row = t->s->data.seq_len + 1;

    for (int64_t i = begin; i < end; i += t->micro_batch) {
        const int64_t batch = end - i < t->micro_batch ? end - i : t->micro_batch;

        for (int64_t j = 0; j < batch; ++j) {
            TSR_TRY(tsr_data_window(data, i + j, t->tokens + j * row));
        }
        TSR_TRY(tsr_stage_evaluate(t->stage, t->tokens, batch, sums));
    }
    return TSR_OK;
}

tsr_status trainer_validate(trainer *t, const tsr_data *data, int64_t max_tokens, double *loss_out,
                            int64_t *tokens_out)
{
    const int64_t seq = t->s->data.seq_len;
    int64_t windows = tsr_data_windows(data), begin = 0, end = 0;
    tsr_stage_sums sums = {0};

    if (max_tokens > 0 && windows > max_tokens / seq) {
        windows = max_tokens >= seq ? max_tokens / seq : 1;
    }
    tsr_comm_set_phase("validation", t->step);
    tsr_batch_share(windows, tsr_comm_size(t->mesh.dense.flat), tsr_comm_rank(t->mesh.dense.flat),
                    &begin, &end);
    TSR_TRY(tsr_comm_agree(t->comm, evaluate_share(t, data, begin, end, &sums)));
    double totals[2] = {sums.loss, (double)sums.tokens};
    TSR_TRY(tsr_comm_all_reduce_f64(t->comm, totals, 2, TSR_REDUCE_SUM));
    *loss_out = totals[0] / totals[1];
    *tokens_out = (int64_t)totals[1];
    return TSR_OK;
}
