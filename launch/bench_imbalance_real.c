/* `tessera bench imbalance`: policies of placement against ep and against even loads, trained. */
#include "launch/bench.h"
#include "launch/figure.h"
#include "launch/imbalance.h"
#include "launch/imbalance_real.h"

#include <jansson.h>
#include <string.h>

enum { MAX_STEPS = 10000, ROUNDS = 10 };

/* Share of the speed with even loads, if only the experts' rows took longer. */
static double by_balance(const imbalance_bench *b, const imbalance_contender *c)
{
    return 1.0 / (1.0 + b->expert_share * (c->after - 1.0));
}

static double copy_bytes(const imbalance_contender *c)
{
    return c->bytes[TSR_TRAFFIC_SPARSE_ALL_GATHER] + c->bytes[TSR_TRAFFIC_SPARSE_REDUCE_SCATTER];
}

static double row_bytes(const imbalance_contender *c)
{
    return c->bytes[TSR_TRAFFIC_DISPATCH] + c->bytes[TSR_TRAFFIC_COMBINE];
}

static void print_head(const imbalance_bench *b, const char *load)
{
    const imbalance_contender *c = &b->contender[IMBALANCE_EVEN];
    const tsr_model_config *m = &c->s->model;
    const int ranks = tsr_comm_size(b->w->comm), here = tsr_comm_local_size(b->w->comm);
    const int64_t tokens = c->s->train.global_batch / ranks * c->s->data.seq_len;
    FILE *to = b->w->people;

    (void)fprintf(
        to,
        "measured | %d ranks, %d thread%s each, %s | load %s | %d rounds, medians\n"
        "%lld layers, d %lld, %lld experts of %lld, top-%lld | %lld tokens a rank | %.0f%% "
        "of the computation with even loads is the experts' rows\n",
        ranks, tsr_device_threads(c->t.device), tsr_device_threads(c->t.device) == 1 ? "" : "s",
        tsr_device_name(c->t.device), load, b->rounds, (long long)m->num_hidden_layers,
        (long long)m->hidden_size, (long long)m->num_experts, (long long)m->moe_intermediate_size,
        (long long)m->num_experts_per_tok, (long long)tokens, 100.0 * b->expert_share);
    if (tsr_device_is_host(c->t.device) && here > b->cores) {
        (void)fprintf(
            to,
            "%d ranks share %d cores: step ms is the work of all, not the slowest rank's; "
            "go by max/mean and `by balance`\n",
            here, b->cores);
    }
    (void)fprintf(to, "%-7s %7s %9s %7s %10s %8s %8s %7s %8s %7s %8s %8s %8s %7s %7s %6s %8s\n",
                  "policy", "owners", "max/mean", "worst", "by balance", "step ms", "least",
                  "vs ep", "of even", "copies", "exposed", "rows MB", "copy MB", "mem MB",
                  "planned", "off", "outgrown");
}

static void print_row(const imbalance_bench *b, const imbalance_contender *c)
{

    (void)fprintf(
        b->w->people,
        "%-7s %7.3f %9.3f %7.3f %9.1f%% %8.2f %8.2f %6.2fx %7.1f%% %7.1f %8.2f %8.2f %8.2f "
        "%7.2f %7.2f %5.2f%% %8d\n",
        c->name, c->before, c->after, c->worst, 100.0 * by_balance(b, c), c->median_ms, c->least_ms,
        c->over_ep, 100.0 * c->of_even, c->copies, c->exposed_ms, row_bytes(c) * 1e-6,
        copy_bytes(c) * 1e-6, imbalance_model_memory(c) * 1e-6, imbalance_planned_memory(c) * 1e-6,
        100.0 * c->most_off, c->outgrown);
}

static json_t *row_object(const imbalance_bench *b, const imbalance_contender *c)
{
    json_t *bytes = json_object(), *memory = json_object();
    json_t *plan = json_pack("{s:o,s:o,s:o,s:o}", "weights", figure_json((double)c->plan.weights),
                             "gradients", figure_json((double)c->plan.gradients), "optimizer",
                             figure_json((double)c->plan.optimizer), "activations_and_workspace",
                             figure_json((double)c->plan.activations));

    for (int i = 0; i < TSR_TRAFFICS; ++i) {
        (void)json_object_set_new(bytes, tsr_traffic_name((tsr_traffic)i),
                                  figure_json(c->bytes[i]));
    }
    for (int i = 0; i < TSR_MEM_TAGS; ++i) {
        (void)json_object_set_new(memory, tsr_mem_tag_name((tsr_mem_tag)i),
                                  figure_json(c->memory[i]));
    }
    return json_pack("{s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:i}",
                     "policy", c->name, "max_over_mean_of_owners", figure_json(c->before),
                     "max_over_mean", figure_json(c->after), "worst_max_over_mean",
                     figure_json(c->worst), "projected_share_of_even",
                     figure_json(by_balance(b, c)), "step_ms", figure_json(c->median_ms),
                     "least_step_ms", figure_json(c->least_ms), "speedup_over_ep",
                     figure_json(c->over_ep), "share_of_even", figure_json(c->of_even), "copies",
                     figure_json(c->copies), "exposed_ms", figure_json(c->exposed_ms), "loss",
                     figure_json(c->loss), "bytes", bytes, "memory", memory, "memory_bytes",
                     figure_json(imbalance_model_memory(c)), "planned_memory", plan,
                     "most_off_plan", figure_json(c->most_off), "rounds_outgrown", c->outgrown);
}

static void report(const imbalance_bench *b, const char *load)
{
    const settings *s = b->contender[IMBALANCE_EVEN].s;
    json_t *rows = json_array();

    print_head(b, load);
    for (int i = 0; i < b->contenders; ++i) {
        print_row(b, &b->contender[i]);
        (void)json_array_append_new(rows, row_object(b, &b->contender[i]));
    }
    if (b->w->json || b->w->people != stdout) {
        json_t *object = json_pack("{s:b,s:s,s:s,s:i,s:i,s:i,s:I,s:I,s:i,s:o,s:o}", "modelled", 0,
                                   "revision", TSR_REVISION, "load", load, "ranks",
                                   tsr_comm_size(b->w->comm), "cores", b->cores, "threads",
                                   tsr_device_threads(b->contender[IMBALANCE_EVEN].t.device),
                                   "experts", (json_int_t)s->model.num_experts, "moe_layers",
                                   (json_int_t)tsr_model_moe_layers(&s->model), "rounds", b->rounds,
                                   "expert_share", figure_json(b->expert_share), "policies", rows);
        (void)json_dumpf(object, stdout, JSON_REAL_PRECISION(9));
        (void)fputc('\n', stdout);
        json_decref(object);
    } else {
        json_decref(rows);
    }
}

/* --slots and --experts are keys of the run file. */
static tsr_status read_keys(const cli_values *values, const char **keys, char words[2][64],
                            int *count_out)
{
    static const char *const options[] = {"slots", "experts"};
    static const char *const names[] = {"experts.slots", "model.num_experts"};
    int count = 0;

    for (; count < values->set_count; ++count) {
        keys[count] = values->set[count];
    }
    for (int i = 0; i < 2; ++i) {
        const char *value = cli_get(&cli_bench, values, options[i]);

        if (value != NULL) {
            TSR_CHECK(snprintf(words[i], 64, "%s=%s", names[i], value) < 64, TSR_ERR_ARG,
                      "--%s %s: too long", options[i], value);
            keys[count++] = words[i];
        }
    }
    *count_out = count;
    return TSR_OK;
}

static tsr_status run(const cli_values *values, imbalance_bench *b)
{
    const char *load_text = cli_get(&cli_bench, values, "load");
    const char *policy = cli_get(&cli_bench, values, "policy");
    const char *keys[CLI_MAX_REPEAT + 2];
    char words[2][64];
    bool is_wanted[TSR_PLACEMENT_POLICIES];
    tsr_load_options load = {.seed = 1};
    int64_t rounds = 0;
    int count = 0;

    load_text = load_text != NULL ? load_text : "zipf:0.8";
    TSR_TRY(tsr_load_parse(load_text, &load));
    TSR_TRY(imbalance_find_policies(policy != NULL ? policy : "all", is_wanted));
    TSR_TRY(cli_get_int(&cli_bench, values, "steps", 1, MAX_STEPS, ROUNDS, &rounds));
    TSR_TRY(read_keys(values, keys, words, &count));
    b->rounds = (int)rounds;
    TSR_TRY(imbalance_start(b, &load, is_wanted, keys, count));
    TSR_TRY(imbalance_measure(b));
    TSR_TRY(world_host_cores(b->w, &b->cores));
    if (tsr_comm_rank(b->w->comm) == 0) {
        report(b, load_text);
    }
    return TSR_OK;
}

tsr_status bench_imbalance_real(const cli_values *values, world *w)
{
    static const char *const modelled[] = {"ranks", "cluster", "model", "rematerialize"};
    static imbalance_bench b; /* large: holds trainers */

    for (size_t i = 0; i < sizeof modelled / sizeof *modelled; ++i) {
        TSR_CHECK(cli_get(&cli_bench, values, modelled[i]) == NULL, TSR_ERR_ARG,
                  "--%s goes with --modelled; here ranks are mpirun's, and --set section.key=value "
                  "changes the model",
                  modelled[i]);
    }
    TSR_CHECK(tsr_comm_size(w->comm) > 1, TSR_ERR_ARG,
              "bench imbalance: one rank has nothing to balance: start it by mpirun on 2 or more, "
              "or say --modelled");
    b = (imbalance_bench){.w = w};
    const tsr_status st = run(values, &b);
    imbalance_stop(&b);
    return st;
}
