#include "launch/banner.h"

#include "launch/metrics.h"

#include <unistd.h>

static const double gib = 1.0 / 1073741824.0;

static void print_model(const settings *s, const tsr_param_table *table)
{
    const tsr_model_config *m = &s->model;
    char all[16], active[16], flops[16];

    tsr_log(TSR_LOG_INFO,
            "model      mixtral, d %lld, %lld layers, %lld heads (%lld kv) of %lld, vocab %lld",
            (long long)m->hidden_size, (long long)m->num_hidden_layers,
            (long long)m->num_attention_heads, (long long)m->num_key_value_heads,
            (long long)m->head_dim, (long long)m->vocab_size);
    if (m->num_experts > 0) {
        tsr_log(TSR_LOG_INFO, "experts    %lld, %lld a token, width %lld%s",
                (long long)m->num_experts, (long long)m->num_experts_per_tok,
                (long long)m->moe_intermediate_size,
                m->n_shared_experts > 0 ? ", and shared ones" : "");
    }
    const double per_token = tsr_model_train_flops_per_token(m, table, s->data.seq_len);
    tsr_log(TSR_LOG_INFO, "size       %s parameters, %s active; %sFLOP a token of training",
            metrics_short((double)tsr_model_parameters(table), all),
            metrics_short((double)tsr_model_active_parameters(m, table), active),
            metrics_short(per_token, flops));
}

/* "4 (pp 1 x dp 2 x ep 2) on 2 nodes, along planes, 3 of 6 experts each" */
static void mesh_text(const settings *s, const tsr_mesh *mesh, char out[160])
{
    const int ranks = mesh->pp * mesh->dp * mesh->ep;
    const int64_t experts = s->model.num_experts, each = experts / mesh->ep;
    const tsr_seat *seats = tsr_comm_seats(mesh->world.flat);
    int nodes = 1;

    for (int r = 0; r < ranks; ++r) {
        nodes = seats[r].node >= nodes ? seats[r].node + 1 : nodes;
    }
    int at = snprintf(out, 160, "%d (pp %d x dp %d x ep %d)", ranks, mesh->pp, mesh->dp, mesh->ep);
    if (nodes > 1) {
        at += snprintf(out + at, 160 - (size_t)at, " on %d nodes%s", nodes,
                       mesh->world.host.rail != NULL ? ", along planes" : "");
    }
    if (mesh->ep > 1) {
        at += snprintf(out + at, 160 - (size_t)at, ", %lld", (long long)each);
        if (experts % mesh->ep > 0) {
            at += snprintf(out + at, 160 - (size_t)at, " or %lld", (long long)each + 1);
        }
        (void)snprintf(out + at, 160 - (size_t)at, " of %lld experts each", (long long)experts);
    }
}

static void print_data(const settings *s, const tsr_data *train, const tsr_data *valid)
{
    const double tokens_per_step = (double)s->train.global_batch * (double)s->data.seq_len;
    const double all = tokens_per_step * (double)s->train.steps;
    char have[16], checked[16], step[16], whole[16];

    if (train != NULL) {
        tsr_log(TSR_LOG_INFO, "data       %s tokens to train on, %s to validate on",
                metrics_short((double)tsr_data_tokens(train), have),
                metrics_short(valid != NULL ? (double)tsr_data_tokens(valid) : 0.0, checked));
    }
    tsr_log(TSR_LOG_INFO, "steps      %lld of %s tokens: %s tokens%s", (long long)s->train.steps,
            metrics_short(tokens_per_step, step), metrics_short(all, whole),
            s->train.recompute == TSR_RECOMPUTE_BLOCK ? ", recomputing blocks" : "");
    if (train != NULL) {
        tsr_log(TSR_LOG_INFO, "epochs     %.2f", all / (double)tsr_data_tokens(train));
    }
}

static void print_memory(const settings *s, const tsr_mesh *mesh, const trainer_plan *p)
{
    const double machine = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    char room[64] = "";

    if (mesh->ep > 1) {
        (void)snprintf(room, sizeof room, " (for up to %.3g times the rows of even loads)",
                       (1.0 + 1.0 / TSR_GROWING_SPARE) * s->experts.room);
    }
    tsr_log(TSR_LOG_INFO,
            "memory     %.2f GiB a rank: weights %.2f, gradients %.2f, optimizer %.2f, activations "
            "%.2f%s, checkpoint staging %.2f; this machine has %.1f GiB",
            (double)p->total * gib, (double)p->weights * gib, (double)p->gradients * gib,
            (double)p->optimizer * gib, (double)p->activations * gib, room,
            (double)p->staging * gib, machine * gib);
}

void banner_memory(const trainer *t, const step_result *r)
{
    double most = 0.0;

    for (int64_t l = 0; l < t->s->model.num_hidden_layers; ++l) {
        most = t->room[l] > most ? t->room[l] : most;
    }
    tsr_log(TSR_LOG_INFO,
            "step %lld: token copies take up to %.2f times the memory of even loads: %.3f GiB a "
            "rank are planned, %.3f before",
            (long long)t->step, most, (double)t->plan.model * gib, r->planned_bytes * gib);
}

void banner_run(const trainer *t, const tsr_data *train, const tsr_data *valid)
{
    const settings *s = t->s;
    char peak[16], mesh[160];

    tsr_log(TSR_LOG_INFO, "tessera    %s", TSR_VERSION);
    mesh_text(s, &t->mesh, mesh);
    tsr_log(TSR_LOG_INFO, "ranks      %s, %d thread%s each, compute %s", mesh,
            tsr_device_threads(t->device), tsr_device_threads(t->device) == 1 ? "" : "s",
            tsr_dtype_name(t->dtype));
    tsr_log(TSR_LOG_INFO, "device     %s, %s; GEMM peak of all ranks %sFLOP/s",
            tsr_device_name(t->device), tsr_device_description(t->device),
            metrics_short(t->peak_flops, peak));
    if (t->dtype == TSR_BF16 && !tsr_device_has_fast_bf16(t->device)) {
        tsr_log(TSR_LOG_WARN, "this processor has no bf16 multiply: f32 would be faster here");
    }
    print_model(s, &t->table);
    print_data(s, train, valid);
    print_memory(s, &t->mesh, &t->plan);
    tsr_log(TSR_LOG_INFO, "run folder %s", s->run.dir);
}

tsr_status banner_plan(const settings *s, const world *w, const tsr_data *train,
                       const tsr_data *valid)
{
    tsr_param_table table = {0};
    tsr_mesh mesh = {0};
    trainer_plan plan;
    char text[160];

    TSR_TRY(trainer_open_mesh(s, w, &mesh));
    tsr_status st = tsr_param_table_create(&s->model, &table);
    if (st == TSR_OK) {
        mesh_text(s, &mesh, text);
        tsr_log(TSR_LOG_INFO, "plan for   ranks %s, compute %s", text,
                tsr_dtype_name((tsr_dtype)s->precision.compute));
        print_model(s, &table);
        print_data(s, train, valid);
        st = trainer_estimate(s, &mesh, &plan);
    }
    if (st == TSR_OK) {
        print_memory(s, &mesh, &plan);
    }
    tsr_param_table_destroy(&table);
    st = tsr_comm_agree(w->comm, st);
    tsr_mesh_destroy(&mesh);
    return st;
}
