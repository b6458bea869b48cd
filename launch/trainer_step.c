/* One training step, and validation. */
#include "launch/trainer_impl.h"

#include "launch/reshard.h"

#include <math.h>
#include <string.h>

/* What a step sums over ranks in its one exchange, in this order; then the ranks' memory [P], peaks
 * and what is held; then the expert counts [L,E]. */
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
    SUM_OUTGROWN,
    SUM_BYTES, /* [TSR_TRAFFICS, TSR_LINKS] */
    SUM_SLOTS = SUM_BYTES + TSR_TRAFFICS * TSR_LINKS
};

static int64_t counts_at(const trainer *t)
{
    return SUM_SLOTS + 2 * (int64_t)tsr_comm_size(t->comm);
}

/* Where the layers' figures begin: what the rank at each position computed [P,L], then sums
 * [L, TSR_LAYER_FIGURES]. */
static int64_t figures_at(const trainer *t)
{
    return counts_at(t) + t->weights.layers * t->weights.experts;
}

int64_t trainer_totals_count(const trainer *t)
{
    const int64_t layers = t->weights.layers;

    return figures_at(t) + (tsr_comm_size(t->comm) + TSR_LAYER_FIGURES) * layers;
}

/* Reads the sequences of one pass. Where others wait for this rank's experts, all of its expert
 * group learn of a failure before anything is exchanged. */
static tsr_status agree_on_samples(trainer *t, tsr_status st)
{
    return t->mesh.ep > 1 ? tsr_comm_agree(t->mesh.expert.host.all, st) : st;
}

/* A pass that fails on one rank leaves the others in the middle of an exchange. */
static tsr_status pass_done(trainer *t, tsr_status st)
{
    t->w->must_abort = t->w->must_abort || (st != TSR_OK && t->mesh.ep > 1);
    return st;
}

static tsr_status read_samples(trainer *t, trainer_source *source, void *context, int64_t first,
                               int64_t count)
{
    const int64_t row = t->s->data.seq_len + 1;

    for (int64_t j = 0; j < count; ++j) {
        TSR_TRY(source(context, t->data_position + first + j, t->tokens + j * row));
    }
    return TSR_OK;
}

static int64_t batch_at(const trainer *t, int64_t i, int64_t end)
{
    return i >= end ? 0 : end - i < t->micro_batch ? end - i : t->micro_batch;
}

static tsr_status run_micro_batches(trainer *t, trainer_source *source, void *context,
                                    double *counts, tsr_stage_sums *sums)
{
    const int64_t global = t->s->train.global_batch;
    const float loss_scale = (float)(1.0 / ((double)global * (double)t->s->data.seq_len));
    const int64_t passes = trainer_passes(t, global);

    sums->counts = counts;
    for (int64_t pass = 0, i = t->share_begin; pass < passes; ++pass, i += t->micro_batch) {
        const int64_t batch = batch_at(t, i, t->share_end);

        if (batch == 0 && t->mesh.ep == 1) {
            break;
        }
        TSR_TRY(agree_on_samples(t, read_samples(t, source, context, i, batch)));
        TSR_TRY(pass_done(t, tsr_stage_train(t->stage, t->tokens, batch, pass > 0, loss_scale,
                                             1.0f / (float)global, sums)));
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

const double *trainer_counts(const trainer *t)
{
    return t->weights.experts > 0 ? t->totals + counts_at(t) : NULL;
}

/* Largest over mean of `count` loads; 0 without any. */
static double max_over_mean(const double *loads, int count)
{
    double most = 0.0, all = 0.0;

    for (int i = 0; i < count; ++i) {
        most = loads[i] > most ? loads[i] : most;
        all += loads[i];
    }
    return all > 0.0 ? most * (double)count / all : 0.0;
}

/* Where experts are spread: loads of ranks before and after placement, replicas taken together. */
static void read_balance(trainer *t, step_result *result)
{
    const int64_t layers = t->weights.layers, experts = t->weights.experts;
    const int ranks = tsr_comm_size(t->comm);
    const double *computed = t->totals + figures_at(t), *figures = computed + ranks * layers;
    const double *counts = trainer_counts(t);
    const double passes = (double)trainer_passes(t, t->s->train.global_batch);

    for (int64_t l = t->s->model.first_k_dense_replace; l < layers; ++l) {
        const double *own = figures + l * TSR_LAYER_FIGURES;
        layer_balance *b = &t->balance[l];

        memset(t->owner_load, 0, (size_t)t->mesh.ep * sizeof *t->owner_load);
        for (int64_t e = 0; e < experts; ++e) {
            t->owner_load[t->owner[l * experts + e]] += counts[l * experts + e];
        }
        b->before = max_over_mean(t->owner_load, t->mesh.ep);
        memset(t->owner_load, 0, (size_t)t->mesh.ep * sizeof *t->owner_load);
        for (int position = 0; position < ranks; ++position) {
            t->owner_load[position % t->mesh.ep] += computed[position * layers + l];
        }
        b->after = max_over_mean(t->owner_load, t->mesh.ep);
        b->copies = own[TSR_LAYER_COPIES] / (ranks * passes);
        b->bytes = own[TSR_LAYER_COPY_BYTES] / ranks;
        b->exposed_ms = own[TSR_LAYER_EXPOSED_MS] / ranks;
    }
    result->balance = t->balance;
    result->first_layer = t->s->model.first_k_dense_replace;
    result->layers = layers;
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
    result->has_outgrown = sum[SUM_OUTGROWN] > 0.0;
    memcpy(result->bytes, sum + SUM_BYTES, sizeof result->bytes);
    for (int r = 0; r < ranks; ++r) {
        result->mem_bytes = fmax(result->mem_bytes, sum[SUM_SLOTS + r]);
        result->held_bytes = fmax(result->held_bytes, sum[SUM_SLOTS + ranks + r]);
    }
    result->planned_bytes = (double)t->plan.model;
    find_imbalance(sum + counts_at(t), t->weights.layers, t->weights.experts, result);
    if (t->balance != NULL) {
        read_balance(t, result);
    }
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
    sum[SUM_OUTGROWN] = tsr_stage_has_outgrown(t->stage);
    for (int64_t l = 0; l < t->weights.layers; ++l) {
        const int64_t at =
            figures_at(t) + tsr_comm_rank(t->mesh.dense.flat) * t->weights.layers + l;
        sum[at] = sums->layers[l * TSR_LAYER_FIGURES + TSR_LAYER_COMPUTED];
    }
    tsr_traffic_read(bytes);
    for (int i = 0; i < TSR_TRAFFICS * TSR_LINKS; ++i) {
        int64_t *now = &bytes[i / TSR_LINKS][i % TSR_LINKS];
        int64_t *before = &t->bytes_before[i / TSR_LINKS][i % TSR_LINKS];
        sum[SUM_BYTES + i] = (double)(*now - *before);
        *before = *now;
    }
    sum[SUM_SLOTS + tsr_comm_rank(t->comm)] =
        (double)tsr_mem_peak_resident() + (double)tsr_device_peak_bytes(t->device);
    sum[SUM_SLOTS + tsr_comm_size(t->comm) + tsr_comm_rank(t->comm)] = (double)trainer_held_bytes();
    TSR_TRY(tsr_comm_all_reduce_f64(t->comm, sum, t->totals_count, TSR_REDUCE_SUM));
    return sum[SUM_FAILED] > 0.0 ? tsr_comm_agree(t->comm, local) : TSR_OK;
}

static tsr_status update_router_bias(trainer *t)
{
    const double rate = t->s->model.router_bias_update_rate;
    const double *counts = t->totals + counts_at(t);

    if (t->router_bias == NULL || rate <= 0.0) {
        return TSR_OK;
    }
    tsr_router_bias_update(t->router_bias, counts, t->weights.layers, t->weights.experts, rate);
    return trainer_send_router_bias(t);
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

/* Some steps after the start, when times have settled. */
static tsr_status measure_budget(trainer *t)
{
    enum { SETTLED = 3 };
    int budget = 0;

    if (!t->s->experts.measure || t->s->parallel.placement == TSR_PLACEMENT_EP || t->mesh.ep == 1 ||
        t->steps_here != SETTLED) {
        return TSR_OK;
    }
    TSR_TRY(tsr_stage_measure_budget(t->stage, &budget));
    tsr_log(TSR_LOG_INFO, "%d copies of experts come to a rank under a layer's attention", budget);
    return TSR_OK;
}

tsr_status trainer_step(trainer *t, trainer_source *source, void *context, const step_flags *flags,
                        step_result *result_out)
{
    const int64_t step = t->step + 1;
    const int64_t start = tsr_trace_clock();
    int64_t part_start = start;
    tsr_stage_sums sums = {0};
    step_result result = {.lr = tsr_lr_at(&t->s->optim, step, t->s->train.steps)};
    reshard_move moved;
    double squares = 0.0;

    memset(t->totals, 0, (size_t)t->totals_count * sizeof *t->totals);
    double *counts = t->weights.experts > 0 ? t->totals + counts_at(t) : NULL;
    sums.layers = t->totals + figures_at(t) + tsr_comm_size(t->comm) * t->weights.layers;
    tsr_comm_set_phase("forward and backward", step);
    const tsr_status local = run_micro_batches(t, source, context, counts, &sums);

    /* where a peer is lost, the exchange would only wait for it once more */
    if (t->w->must_abort || local == TSR_ERR_COMM || local == TSR_ERR_TIMEOUT) {
        return local;
    }
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
    tsr_stage_observe(t->stage, trainer_counts(t));
    ++t->steps_here;
    TSR_TRY(measure_budget(t));
    TSR_TRY(tsr_stream_wait(t->stream));
    end_part(&result, STEP_UPDATE, step, &part_start);
    t->step = step;
    t->tokens_seen += result.tokens;
    result.tokens_seen = t->tokens_seen;
    t->data_position += t->s->train.global_batch;
    TSR_TRY(trainer_plan_anew(t, &result));
    TSR_TRY(reshard_if_due(t, &moved));
    result.resharded = moved.experts;
    t->has_settled = t->has_settled && moved.experts == 0;
    const double seconds = 1e-9 * (double)(tsr_trace_clock() - start);
    result.ms = 1e3 * seconds;
    result.tokens_per_s = (double)result.tokens / seconds;
    result.gemm_share =
        t->peak_flops > 0.0 ? result.tokens_per_s * t->flops_per_token / t->peak_flops : 0.0;
    *result_out = result;
    return TSR_OK;
}

/* ---- validation ----------------------------------------------------------------------------- */

static tsr_status read_windows(trainer *t, const tsr_data *data, int64_t first, int64_t count)
{
    const int64_t row = t->s->data.seq_len + 1;

    for (int64_t j = 0; j < count; ++j) {
        TSR_TRY(tsr_data_window(data, first + j, t->tokens + j * row));
    }
    return TSR_OK;
}

static tsr_status evaluate_share(trainer *t, const tsr_data *data, int64_t windows,
                                 tsr_stage_sums *sums)
{
    const int ranks = t->mesh.dp * t->mesh.ep;
    const int64_t passes = trainer_passes(t, windows);
    int64_t begin = 0, end = 0;

    tsr_batch_share(windows, ranks, tsr_comm_rank(t->mesh.dense.flat), &begin, &end);
    for (int64_t pass = 0, i = begin; pass < passes; ++pass, i += t->micro_batch) {
        const int64_t batch = batch_at(t, i, end);

        if (batch == 0 && t->mesh.ep == 1) {
            break;
        }
        TSR_TRY(agree_on_samples(t, read_windows(t, data, i, batch)));
        TSR_TRY(pass_done(t, tsr_stage_evaluate(t->stage, t->tokens, batch, sums)));
    }
    return TSR_OK;
}

tsr_status trainer_validate(trainer *t, const tsr_data *data, int64_t max_tokens, double *loss_out,
                            int64_t *tokens_out)
{
    const int64_t seq = t->s->data.seq_len;
    int64_t windows = tsr_data_windows(data);
    tsr_stage_sums sums = {0};

    if (max_tokens > 0 && windows > max_tokens / seq) {
        windows = max_tokens >= seq ? max_tokens / seq : 1;
    }
    tsr_comm_set_phase("validation", t->step);
    const tsr_status local = evaluate_share(t, data, windows, &sums);
    if (t->w->must_abort) {
        return local;
    }
    TSR_TRY(tsr_comm_agree(t->comm, local));
    double totals[2] = {sums.loss, (double)sums.tokens};
    TSR_TRY(tsr_comm_all_reduce_f64(t->comm, totals, 2, TSR_REDUCE_SUM));
    *loss_out = totals[0] / totals[1];
    *tokens_out = (int64_t)totals[1];
    return TSR_OK;
}
