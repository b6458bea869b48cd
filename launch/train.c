/* `tessera train`: from the run file to the last checkpoint. */
#include "launch/banner.h"
#include "launch/cli.h"
#include "launch/figure.h"
#include "launch/metrics.h"
#include "launch/recording.h"
#include "launch/resume.h"
#include "launch/trainer.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct train_run {
    settings s;
    world *w;
    trainer t;
    tsr_data *train_data, *valid_data;
    tsr_ckpt_writer *writer;
    metrics shown;
    recording kept;
    char *config_text;
    int64_t first_step;            /* steps done before this start */
    int64_t saved_step;            /* newest step handed to the writer */
    int64_t stop_at;               /* from --stop-at */
    double loss, valid_loss;       /* newest; NaN: none */
    char checkpoint[TSR_TEXT_MAX]; /* newest published one */
} train_run;

static const cli_option train_options[] = {
    {"set", "section.key=value", "override one key of the run file; may be given again"},
    {"resume", "latest|auto|PATH",
     "continue: from the newest checkpoint of run.dir (auto: if there is one), or from PATH"},
    {"stop-at", "STEP", "save and stop after this step; schedules stay those of train.steps"},
    {"print-config", NULL, "print the resolved run file and stop"},
    {"help-config", NULL, "print all keys of a run file and stop"},
    {"dry-run", NULL, "check files and memory, print the plan and stop"},
    {"json", NULL, "print one JSON object on stdout at the end: step, losses, checkpoint"},
    {NULL, NULL, NULL},
};

/* ---- samples -------------------------------------------------------------------------------- */

static tsr_status next_sample(void *context, int64_t index, int32_t *tokens_out)
{
    const train_run *run = context;

    return tsr_data_sample(run->train_data, (uint64_t)run->s.run.seed, index, tokens_out);
}

static tsr_status open_data(train_run *run)
{
    const settings *s = &run->s;

    TSR_CHECK(s->data.train[0] != '\0', TSR_ERR_ARG,
              "data.train names no file; ./launch/corpus/make_corpus.py DIR makes a text to try");
    TSR_TRY(tsr_data_open(s->data.train, s->data.seq_len, s->model.vocab_size, &run->train_data));
    if (s->data.valid[0] != '\0') {
        TSR_TRY(
            tsr_data_open(s->data.valid, s->data.seq_len, s->model.vocab_size, &run->valid_data));
    }
    return TSR_OK;
}

/* ---- run folder and resuming ----------------------------------------------------------------- */

static tsr_status make_folder(const char *path)
{
    char part[TSR_TEXT_MAX];

    for (size_t i = 1; i <= strlen(path) && i < sizeof part; ++i) {
        if (path[i] == '/' || path[i] == '\0') {
            memcpy(part, path, i);
            part[i] = '\0';
            TSR_CHECK(mkdir(part, 0777) == 0 || errno == EEXIST, TSR_ERR_IO,
                      "run.dir: cannot make %s: %s", part, strerror(errno));
        }
    }
    return TSR_OK;
}

static tsr_status load_checkpoint(train_run *run, const char *path)
{
    tsr_ckpt_info info = {0};
    tsr_state_view view;

    tsr_status st = tsr_ckpt_open_info(path, &info);
    if (st == TSR_OK) {
        st = resume_check_model(&run->s, info.config_text);
    }
    tsr_ckpt_info_free(&info);
    TSR_TRY(tsr_comm_agree(run->t.comm, st));
    TSR_TRY(trainer_view(&run->t, NULL, &view));
    TSR_TRY(tsr_ckpt_load(run->t.comm, path, &view));
    TSR_TRY(trainer_restore(&run->t, &view));
    run->first_step = run->saved_step = run->t.step;
    tsr_log(TSR_LOG_INFO, "resumed from %s: step %lld, %lld tokens", path, (long long)run->t.step,
            (long long)run->t.tokens_seen);
    return TSR_OK;
}

static tsr_status start_state(train_run *run, const char *resume)
{
    tsr_comm *comm = run->t.comm;
    char path[TSR_TEXT_MAX] = "";
    tsr_status st = TSR_OK;

    tsr_comm_set_phase("choosing a checkpoint", -1);
    if (tsr_comm_rank(comm) == 0) {
        st = resume_choose(run->s.run.dir, resume, path);
    }
    TSR_TRY(tsr_comm_agree(comm, st));
    TSR_TRY(tsr_comm_broadcast(comm, path, sizeof path, 0));
    if (path[0] != '\0') {
        tsr_comm_set_phase("loading a checkpoint", -1);
        return load_checkpoint(run, path);
    }
    tsr_comm_set_phase("initial weights", -1);
    return tsr_optimizer_init(run->t.optimizer, (uint64_t)run->s.run.seed, run->t.stream);
}

static tsr_status write_run_file(const train_run *run)
{
    char path[TSR_TEXT_MAX + 16];

    (void)snprintf(path, sizeof path, "%s/run.ini", run->s.run.dir);
    FILE *file = fopen(path, "w");
    TSR_CHECK(file != NULL, TSR_ERR_IO, "%s: %s", path, strerror(errno));
    const bool is_written = fputs(run->config_text, file) != EOF;
    TSR_CHECK(fclose(file) == 0 && is_written, TSR_ERR_IO, "%s: %s", path, strerror(errno));
    return TSR_OK;
}

static tsr_status open_run_folder(train_run *run)
{
    TSR_TRY(make_folder(run->s.run.dir));
    TSR_TRY(write_run_file(run));
    return metrics_open(&run->shown, run->s.run.dir, run->first_step, run->s.train.steps,
                        run->w->people);
}

/* ---- checkpoints on the way ------------------------------------------------------------------ */

static void report_save(train_run *run, const tsr_ckpt_result *result)
{
    if (result->ended) {
        (void)snprintf(run->checkpoint, sizeof run->checkpoint, "%s", result->path);
        tsr_log(TSR_LOG_INFO,
                "checkpoint step %lld: durable after %.1f s, %.1f MiB, digest %016llx, %s",
                (long long)result->step, result->seconds, (double)result->bytes / 1048576.0,
                (unsigned long long)result->digest, result->path);
    }
}

static tsr_status save(train_run *run)
{
    tsr_state_view view;
    double staged_s = 0.0;

    tsr_comm_set_phase("saving a checkpoint", run->t.step);
    TSR_TRY(trainer_view(&run->t, run->config_text, &view));
    TSR_TRY(tsr_ckpt_save(run->writer, &view, &staged_s));
    run->saved_step = run->t.step;
    tsr_log(TSR_LOG_INFO, "checkpoint step %lld: staged in %.2f s", (long long)run->t.step,
            staged_s);
    return TSR_OK;
}

static tsr_status finish_save(train_run *run)
{
    tsr_ckpt_result result = {0};

    tsr_comm_set_phase("finishing a checkpoint", run->t.step);
    TSR_TRY(tsr_ckpt_finish(run->writer, &result));
    report_save(run, &result);
    return TSR_OK;
}

/* A save that failed is told and tried again next time: the run goes on with the last good one. */
static tsr_status report_or_go_on(train_run *run, tsr_status st, const tsr_ckpt_result *result)
{
    if (st == TSR_ERR_IO || st == TSR_ERR_PEER) {
        tsr_log(TSR_LOG_ERROR, "checkpoint was not saved: %s", tsr_error_message());
        return TSR_OK;
    }
    report_save(run, result);
    return st;
}

static tsr_status create_writer(train_run *run)
{
    tsr_state_view view;

    TSR_TRY(trainer_view(&run->t, run->config_text, &view));
    return tsr_ckpt_writer_create(run->t.comm, run->s.run.dir, &run->s.checkpoint, &view,
                                  &run->writer);
}

/* Where owners have moved, a writer is needed that knows of the new slices. */
static tsr_status progress_save(train_run *run, const step_result *step)
{
    tsr_ckpt_result result = {0};
    tsr_status st;

    if (step->resharded == 0) {
        st = tsr_ckpt_progress(run->writer, step->checkpoint_written, step->checkpoint_failed,
                               &result);
        return report_or_go_on(run, st, &result);
    }
    st = tsr_ckpt_finish(run->writer, &result);
    TSR_TRY(report_or_go_on(run, st, &result));
    tsr_ckpt_writer_destroy(&run->writer);
    return create_writer(run);
}

/* ---- the loop -------------------------------------------------------------------------------- */

static tsr_status validate(train_run *run)
{
    double loss = 0.0;
    int64_t tokens = 0;

    if (run->valid_data == NULL) {
        return TSR_OK;
    }
    TSR_TRY(trainer_validate(&run->t, run->valid_data, run->s.train.valid_tokens, &loss, &tokens));
    run->valid_loss = loss;
    metrics_validation(&run->shown, run->t.step, loss, tokens);
    return TSR_OK;
}

static bool is_due(int64_t step, int64_t every)
{
    return every > 0 && step % every == 0;
}

static tsr_status loop(train_run *run)
{
    const settings *s = &run->s;
    bool stopped = false;

    while (run->t.step < s->train.steps && !stopped) {
        const step_flags flags = {.wants_stop =
                                      world_signal() != 0 || run->t.step + 1 >= run->stop_at,
                                  .checkpoint = tsr_ckpt_local_phase(run->writer)};
        step_result result;

        TSR_TRY(recording_before_step(&run->kept, run->t.step));
        TSR_TRY(trainer_step(&run->t, next_sample, run, &flags, &result));
        run->loss = result.loss;
        metrics_step(&run->shown, run->t.step, &result);
        if (result.is_planned_anew) {
            banner_memory(&run->t, &result);
        }
        recording_loads(&run->kept, run->t.step, trainer_counts(&run->t), run->t.weights.layers,
                        run->t.weights.experts);
        TSR_TRY(progress_save(run, &result));
        stopped = result.stop_wanted > 0;
        if (!stopped && is_due(run->t.step, s->train.valid_every) && run->t.step < s->train.steps) {
            TSR_TRY(validate(run));
        }
        if (!stopped && is_due(run->t.step, s->checkpoint.every)) {
            TSR_TRY(save(run));
        }
    }
    if (!stopped && s->train.valid_every > 0) {
        TSR_TRY(validate(run));
    }
    if (run->saved_step != run->t.step) {
        TSR_TRY(save(run));
    }
    TSR_TRY(finish_save(run));
    if (stopped) {
        tsr_log(TSR_LOG_INFO, "stopped after step %lld as asked; continue with --resume latest",
                (long long)run->t.step);
    }
    return TSR_OK;
}

/* ---- wiring ---------------------------------------------------------------------------------- */

static tsr_status train(train_run *run, const char *resume, bool is_dry)
{
    tsr_comm *comm = run->w->comm;
    const bool is_first = tsr_comm_rank(comm) == 0;

    TSR_TRY(tsr_comm_agree(comm, open_data(run)));
    TSR_TRY(tsr_comm_agree(comm,
                           tsr_config_to_text(run->s.tables, SETTINGS_TABLES, &run->config_text)));
    if (is_dry) {
        return banner_plan(&run->s, run->w, run->train_data, run->valid_data);
    }
    TSR_TRY(trainer_create(&run->t, &run->s, run->w));
    comm = run->t.comm;
    TSR_TRY(start_state(run, resume));
    TSR_TRY(tsr_comm_agree(comm, is_first ? open_run_folder(run) : TSR_OK));
    TSR_TRY(tsr_comm_agree(comm, recording_open(&run->kept, &run->s.run, comm, run->first_step)));
    TSR_TRY(create_writer(run));
    const char *kill_at = getenv("TESSERA_TEST_KILL_AT"); /* for tests: die while saving */
    tsr_ckpt_kill_at(kill_at != NULL ? atoi(kill_at) : 0);
    TSR_TRY(trainer_measure_peak(&run->t));
    banner_run(&run->t, run->train_data, run->valid_data);
    world_catch_signals();
    const tsr_status st = loop(run);
    /* where the others are in the middle of an exchange they would not come to finish it */
    if (st != TSR_OK && st != TSR_ERR_COMM && st != TSR_ERR_TIMEOUT && !run->w->must_abort) {
        tsr_ckpt_result result;
        char why[TSR_TEXT_MAX]; /* finishing what is in flight must not hide the cause */

        (void)snprintf(why, sizeof why, "%s", tsr_error_message());
        if (tsr_ckpt_finish(run->writer, &result) == TSR_OK) {
            report_save(run, &result);
        }
        return TSR_FAIL(st, "%s", why);
    }
    return st;
}

static void print_json(const train_run *run)
{
    json_t *object = json_pack("{s:I,s:I,s:s}", "step", (json_int_t)run->t.step, "tokens",
                               (json_int_t)run->t.tokens_seen, "run_dir", run->s.run.dir);

    if (!isnan(run->loss)) {
        (void)json_object_set_new(object, "loss", figure_json(run->loss));
    }
    if (!isnan(run->valid_loss)) {
        (void)json_object_set_new(object, "valid_loss", figure_json(run->valid_loss));
    }
    if (run->checkpoint[0] != '\0') {
        (void)json_object_set_new(object, "checkpoint", json_string(run->checkpoint));
    }
    (void)json_dumpf(object, stdout, JSON_REAL_PRECISION(9));
    (void)fputc('\n', stdout);
    json_decref(object);
}

static void close_run(train_run *run)
{
    metrics_close(&run->shown);
    recording_close(&run->kept);
    if (run->w->must_abort) {
        return; /* the rest waits for others, and they for this rank */
    }
    tsr_ckpt_writer_destroy(&run->writer);
    trainer_destroy(&run->t);
    tsr_data_close(&run->train_data);
    tsr_data_close(&run->valid_data);
    tsr_mem_free(run->config_text);
}

static int run_train(const cli_values *values, world *w)
{
    static train_run run; /* large: the settings hold texts */
    const char *resume = cli_get(&cli_train, values, "resume");
    const bool is_dry = cli_get(&cli_train, values, "dry-run") != NULL;

    run = (train_run){.w = w, .loss = NAN, .valid_loss = NAN};
    if (cli_get(&cli_train, values, "help-config") != NULL) {
        settings_tables(&run.s);
        tsr_config_help(stdout, run.s.tables, SETTINGS_TABLES);
        return EXIT_DONE;
    }
    tsr_status st = values->positional_count == 1
                        ? settings_read_file(&run.s, w->comm, values->positional[0], values->set,
                                             values->set_count)
                        : TSR_FAIL(TSR_ERR_ARG, "train: missing RUN.ini; see tessera train --help");
    if (st == TSR_OK) {
        st = cli_get_int(&cli_train, values, "stop-at", 1, INT64_MAX, INT64_MAX, &run.stop_at);
    }
    if (st == TSR_OK && cli_get(&cli_train, values, "print-config") != NULL) {
        if (tsr_comm_rank(w->comm) == 0) {
            tsr_config_print(stdout, run.s.tables, SETTINGS_TABLES);
        }
        return EXIT_DONE;
    }
    if (st == TSR_OK) {
        st = world_set_run(w, run.s.run.timeout_s, &run.s.topology);
    }
    if (st == TSR_OK) {
        st = train(&run, resume, is_dry);
    }
    if (st == TSR_OK && w->json && tsr_comm_rank(w->comm) == 0) {
        print_json(&run);
    }
    const int code = st == TSR_OK ? EXIT_DONE : world_fail(w, st);
    close_run(&run);
    return code;
}

const cli_command cli_train = {
    .name = "train",
    .arguments = "RUN.ini [--set section.key=value]... [--resume latest|auto|PATH]",
    .summary = "Train a model as the run file says; alone, under mpirun or under srun.",
    .details = "Progress goes to the terminal, measurements to run.dir/metrics.jsonl, state to\n"
               "run.dir/checkpoints. SIGTERM and SIGUSR1 save and stop with exit code 0.\n",
    .min_positional = 0,
    .max_positional = 1,
    .options = train_options,
    .run = run_train,
    .needs_ranks = true,
};
