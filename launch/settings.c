#include "launch/settings.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUN_FILE_MAX = 1 << 20 };

static const tsr_option run_options[] = {
    {"run", "dir", TSR_OPTION_PATH, "runs/run", 0, 0, NULL, NULL,
     "folder of this run: metrics, checkpoints, resolved run file", offsetof(run_config, dir)},
    {"run", "seed", TSR_OPTION_INT, "1", 0, 9007199254740992.0, NULL, NULL,
     "initial weights and data order are a function of it", offsetof(run_config, seed)},
    {"run", "device", TSR_OPTION_CHOICE, "auto", 0, 0, "auto cpu cuda", NULL,
     "where to compute; auto takes the best that this build has", offsetof(run_config, device)},
    {"run", "threads", TSR_OPTION_INT, "0", 0, 4096, NULL, NULL,
     "threads a rank; 0: its share of the cores it may use", offsetof(run_config, threads)},
    {"run", "timeout_s", TSR_OPTION_REAL, "600", 1, 86400, NULL, "s",
     "a peer that does not answer for so long ends the run", offsetof(run_config, timeout_s)},
    {"run", "loads_every", TSR_OPTION_INT, "0", 0, 1e12, NULL, "steps",
     "write the tokens of each expert to loads.csv every so many steps; 0: never",
     offsetof(run_config, loads_every)},
    {"run", "trace_steps", TSR_OPTION_INT, "0", 0, 1000, NULL, "steps",
     "record so many steps, from the third on, for trace viewers: trace/rank-0000.json, ...",
     offsetof(run_config, trace_steps)},
};

static const tsr_option train_options[] = {
    {"train", "steps", TSR_OPTION_INT, "1000", 1, 1e12, NULL, "steps", "length of the run",
     offsetof(train_config, steps)},
    {"train", "global_batch", TSR_OPTION_INT, "8", 1, 1e9, NULL, "sequences",
     "sequences of one step, over all ranks", offsetof(train_config, global_batch)},
    {"train", "micro_batch", TSR_OPTION_INT, "0", 0, 1e6, NULL, "sequences",
     "sequences a rank runs at once; 0: its whole share", offsetof(train_config, micro_batch)},
    {"train", "valid_every", TSR_OPTION_INT, "0", 0, 1e12, NULL, "steps",
     "validate every so many steps, and at the end; 0: never", offsetof(train_config, valid_every)},
    {"train", "valid_tokens", TSR_OPTION_INT, "65536", 1, 1e12, NULL, "tokens",
     "length of one validation, from the start of data.valid",
     offsetof(train_config, valid_tokens)},
    {"train", "recompute", TSR_OPTION_CHOICE, "none", 0, 0, "none block", NULL,
     "block: run each layer's forward again in backward, to save memory",
     offsetof(train_config, recompute)},
};

static const tsr_option precision_options[] = {
    {"precision", "compute", TSR_OPTION_CHOICE, "f32", 0, 0, "f32 bf16", NULL,
     "type of activations and working weights; sums and master weights are f32",
     offsetof(precision_config, compute)},
};

#define TABLE(options_, target_)                                                                   \
    (tsr_option_table)                                                                             \
    {                                                                                              \
        .options = (options_), .count = (int)(sizeof(options_) / sizeof(options_)[0]),             \
        .target = (target_)                                                                        \
    }

void settings_tables(settings *s)
{
    s->tables[0] = TABLE(run_options, &s->run);
    s->tables[1] = tsr_model_options(&s->model);
    s->tables[2] = tsr_data_options(&s->data);
    s->tables[3] = TABLE(train_options, &s->train);
    s->tables[4] = tsr_optim_options(&s->optim);
    s->tables[5] = TABLE(precision_options, &s->precision);
    s->tables[6] = tsr_parallel_options(&s->parallel);
    s->tables[7] = tsr_experts_options(&s->experts);
    s->tables[8] = tsr_topology_options(&s->topology);
    s->tables[9] = tsr_checkpoint_options(&s->checkpoint);
}

static void check_across_sections(settings *s, tsr_config_errors *errors)
{
    tsr_nic first;

    if (tsr_topology_choose(&s->topology, 0, &first) != TSR_OK) {
        tsr_config_error(errors, "[topology] %s", tsr_error_message());
    }
    tsr_model_config_check(&s->model, errors);
    tsr_optim_config_check(&s->optim, s->train.steps, errors);
    tsr_experts_config_check(&s->experts, errors);
    if (s->data.vocab == 0 && s->model.vocab_size < 256) {
        tsr_config_error(errors, "[model] vocab_size = %lld: data.vocab = bytes needs at least 256",
                         (long long)s->model.vocab_size);
    }
    if (s->train.valid_every > 0 && s->data.valid[0] == '\0') {
        tsr_config_error(errors, "[train] valid_every = %lld: data.valid names no file",
                         (long long)s->train.valid_every);
    }
    if (s->train.micro_batch > s->train.global_batch) {
        tsr_config_error(errors, "[train] micro_batch = %lld: more than global_batch = %lld",
                         (long long)s->train.micro_batch, (long long)s->train.global_batch);
    }
}

tsr_status settings_read(settings *s, const char *text, const char *file_name,
                         const char *const *overrides, int override_count)
{
    tsr_config_errors errors = {0};

    memset(s, 0, sizeof *s);
    settings_tables(s);
    tsr_config_read(text, file_name, overrides, override_count, s->tables, SETTINGS_TABLES,
                    &errors);
    if (errors.count == 0) {
        check_across_sections(s, &errors);
    }
    if (errors.count > 0) {
        size_t length = strlen(errors.text);
        while (length > 0 && errors.text[length - 1] == '\n') {
            errors.text[--length] = '\0';
        }
        return TSR_FAIL(TSR_ERR_ARG, "%d error%s in the run file\n%s", errors.count,
                        errors.count == 1 ? "" : "s", errors.text);
    }
    return TSR_OK;
}

static tsr_status read_text(const char *path, char *text, int64_t *length_out)
{
    FILE *file = fopen(path, "rb");

    TSR_CHECK(file != NULL, TSR_ERR_ARG, "run file %s: %s", path, strerror(errno));
    const size_t length = fread(text, 1, RUN_FILE_MAX, file);
    const bool is_bad = ferror(file) != 0, is_long = length == RUN_FILE_MAX;

    (void)fclose(file);
    TSR_CHECK(!is_bad, TSR_ERR_ARG, "run file %s: cannot be read (is it a folder?)", path);
    TSR_CHECK(!is_long, TSR_ERR_ARG, "run file %s: longer than %d bytes", path, RUN_FILE_MAX - 1);
    TSR_CHECK(memchr(text, '\0', length) == NULL, TSR_ERR_ARG, "run file %s: not a text file",
              path);
    *length_out = (int64_t)length;
    return TSR_OK;
}

tsr_status settings_read_file(settings *s, tsr_comm *comm, const char *path,
                              const char *const *overrides, int override_count)
{
    char *text = NULL;
    int64_t length = 0;
    tsr_status st = tsr_mem_alloc(TSR_MEM_OTHER, RUN_FILE_MAX, (void **)&text);

    if (st == TSR_OK && tsr_comm_rank(comm) == 0) {
        st = read_text(path, text, &length);
    }
    st = tsr_comm_agree(comm, st);
    if (st == TSR_OK) {
        st = tsr_comm_broadcast(comm, &length, sizeof length, 0);
    }
    if (st == TSR_OK) {
        st = tsr_comm_broadcast(comm, text, (size_t)length, 0);
    }
    if (st == TSR_OK) {
        text[length] = '\0';
        st = settings_read(s, text, path, overrides, override_count);
        if (st != TSR_OK && tsr_comm_rank(comm) != 0) {
            st = TSR_FAIL(TSR_ERR_PEER,
                          "rank 0 reports the same"); /* equal everywhere: say it once */
        }
    }
    tsr_mem_free(text);
    return st;
}
