/* `tessera bench step`: the training step as it is, on random tokens, of a model that stays as it
 * was made: from noise a gate learns within a few steps to send most tokens to few experts, which
 * real text does not teach it. */
#include "launch/bench.h"
#include "launch/figure.h"
#include "launch/trainer.h"

#include <jansson.h>

static const double held_lr = 1e-6;

enum { WARM_UP = 2, PROFILED = 2, MAX_STEPS = 10000 };

tsr_status bench_random_sample(void *context, int64_t index, int32_t *tokens_out)
{
    const settings *s = context;
    const uint64_t key = tsr_rng_key((uint64_t)s->run.seed, "bench");
    const int64_t row = s->data.seq_len + 1;

    for (int64_t i = 0; i < row; ++i) {
        uint32_t words[4];

        tsr_rng_words(key, (uint64_t)(index * row + i), words);
        tokens_out[i] = (int32_t)(words[0] % (uint64_t)s->model.vocab_size);
    }
    return TSR_OK;
}

static tsr_status run_steps(trainer *t, int steps, double *ms, step_result *last)
{
    const step_flags flags = {0};

    for (int i = 0; i < steps; ++i) {
        TSR_TRY(trainer_step(t, bench_random_sample, (void *)t->s, &flags, last));
        if (ms != NULL) {
            ms[i] = last->ms;
            tsr_log(TSR_LOG_INFO,
                    "step %d | %.1f ms | %.0f tok/s | %.0f%% of the GEMM peak | loss %.3f", i + 1,
                    last->ms, last->tokens_per_s, 100.0 * last->gemm_share, last->loss);
        }
    }
    return TSR_OK;
}

/* Operators one after another, each waited for: where the time of a step goes. */
static tsr_status profile(trainer *t, json_t *rows)
{
    step_result last;
    int count = 0;

    tsr_op_profile_enable(true);
    tsr_op_profile_reset();
    const tsr_status st = run_steps(t, PROFILED, NULL, &last);
    tsr_op_profile_enable(false);
    TSR_TRY(st);
    const tsr_op_profile *table = tsr_op_profile_get(&count);
    tsr_log(TSR_LOG_INFO, "%-24s %8s %10s %7s %10s %8s", "operator", "calls", "ms/step", "share",
            "GFLOP/s", "GB/s");
    for (int i = 0; i < count; ++i) {
        const double ms = 1e3 * table[i].seconds / PROFILED;

        if (table[i].calls == 0) {
            continue;
        }
        const double gflops = 1e-9 * table[i].flops / table[i].seconds;
        const double gbytes = 1e-9 * table[i].bytes / table[i].seconds;
        tsr_log(TSR_LOG_INFO, "%-24s %8lld %10.2f %6.1f%% %10.1f %8.1f", table[i].name,
                (long long)table[i].calls / PROFILED, ms, 100.0 * ms / last.ms, gflops, gbytes);
        (void)json_array_append_new(
            rows, json_pack("{s:s,s:I,s:o,s:o,s:o}", "name", table[i].name, "calls",
                            (json_int_t)table[i].calls / PROFILED, "ms", figure_json(ms), "gflops",
                            figure_json(gflops), "gbytes_per_s", figure_json(gbytes)));
    }
    return TSR_OK;
}

static tsr_status measure(trainer *t, int steps, bool with_profile, double *ms, json_t *object)
{
    step_result last;
    json_t *all = json_array(), *operators = json_array();

    (void)json_object_set_new(object, "step_ms", all);
    (void)json_object_set_new(object, "operators", operators);
    TSR_TRY(tsr_optimizer_init(t->optimizer, (uint64_t)t->s->run.seed, t->stream));
    TSR_TRY(trainer_measure_peak(t));
    TSR_TRY(run_steps(t, WARM_UP, NULL, &last));
    const int64_t blocks_before = tsr_mem_alloc_calls();
    TSR_TRY(run_steps(t, steps, ms, &last));
    const int64_t blocks = tsr_mem_alloc_calls() - blocks_before;
    const double mem_bytes = last.mem_bytes;
    if (with_profile) {
        TSR_TRY(profile(t, operators));
    }
    for (int i = 0; i < steps; ++i) {
        (void)json_array_append_new(all, figure_json(ms[i]));
    }
    const double median_ms = bench_median(ms, steps);
    const double rate = 1e3 * (double)last.tokens / median_ms;
    json_t *rest = json_pack(
        "{s:o,s:o,s:o,s:o,s:o,s:s,s:s,s:s,s:i,s:i,s:I,s:o,s:I}", "tokens_per_s", figure_json(rate),
        "mem_gib", figure_json(mem_bytes / 1073741824.0), "gflops",
        figure_json(1e-9 * rate * t->flops_per_token), "peak_gflops",
        figure_json(1e-9 * t->peak_flops), "gemm_share",
        figure_json(rate * t->flops_per_token / t->peak_flops), "device",
        tsr_device_name(t->device), "compute", tsr_dtype_name(t->dtype), "revision", TSR_REVISION,
        "ranks", tsr_comm_size(t->w->comm), "threads", tsr_device_threads(t->device),
        "tokens_per_step", (json_int_t)last.tokens, "expert_max_over_mean",
        figure_json(last.expert_max_over_mean), "allocations", (json_int_t)blocks);
    (void)json_object_update(object, rest);
    json_decref(rest);
    tsr_log(TSR_LOG_INFO, "median %.1f ms, %.0f tokens/s, %.2f GiB", median_ms, rate,
            mem_bytes / 1073741824.0);
    return TSR_OK;
}

static tsr_status read_settings(const cli_values *values, world *w, settings *s, int64_t *steps)
{
    TSR_CHECK(values->positional_count == 2, TSR_ERR_ARG, "bench step: missing RUN.ini");
    TSR_TRY(cli_get_int(&cli_bench, values, "steps", 1, MAX_STEPS, 8, steps));
    TSR_TRY(settings_read_file(s, w->comm, values->positional[1], values->set, values->set_count));
    if (s->optim.lr > held_lr) {
        tsr_log(TSR_LOG_INFO, "optim.lr = %g is held at %g: tokens are random", s->optim.lr,
                held_lr);
    }
    s->optim.lr = s->optim.min_lr = held_lr;
    return world_set_run(w, s->run.timeout_s, &s->topology);
}

tsr_status bench_step(const cli_values *values, world *w)
{
    static settings s; /* large: holds texts */
    trainer t = {0};
    double *ms = NULL;
    int64_t steps = 0;
    json_t *object = json_object();

    tsr_status st = read_settings(values, w, &s, &steps);
    if (st == TSR_OK) {
        st = tsr_mem_alloc_array(TSR_MEM_OTHER, steps, sizeof *ms, (void **)&ms);
    }
    if (st == TSR_OK) {
        st = trainer_create(&t, &s, w);
    }
    if (st == TSR_OK) {
        st = measure(&t, (int)steps, cli_get(&cli_bench, values, "profile") != NULL, ms, object);
    }
    if (st == TSR_OK && tsr_comm_rank(w->comm) == 0 && (w->json || w->people != stdout)) {
        (void)json_dumpf(object, stdout, JSON_REAL_PRECISION(9));
        (void)fputc('\n', stdout);
    }
    json_decref(object);
    tsr_mem_free(ms);
    trainer_destroy(&t);
    return st;
}
