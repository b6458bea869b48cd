/* `tessera ckpt`: look at checkpoints: ls, show, verify. */
#include "launch/cli.h"
#include "launch/settings.h"
#include "launch/world.h"

#include <jansson.h>
#include <string.h>
#include <sys/stat.h>

static const cli_option ckpt_options[] = {
    {"json", NULL, "print one JSON object on stdout"},
    {NULL, NULL, NULL},
};

static tsr_status list(const char *path, bool as_json)
{
    tsr_ckpt_entry *entries = NULL;
    json_t *rows = json_array();
    int count = 0;

    const tsr_status st = tsr_ckpt_list(path, &entries, &count);
    for (int i = 0; st == TSR_OK && i < count; ++i) {
        tsr_ckpt_info info = {0};
        const bool is_readable =
            entries[i].has_manifest && tsr_ckpt_open_info(entries[i].path, &info) == TSR_OK;
        const char *state = is_readable               ? "complete"
                            : entries[i].has_manifest ? tsr_error_message()
                                                      : "unfinished: no manifest";

        if (!as_json) {
            (void)printf("step %-9lld %9.1f MiB  %3d shard%s  %s  %s\n", (long long)entries[i].step,
                         (double)info.bytes / 1048576.0, info.shards, info.shards == 1 ? " " : "s",
                         state, entries[i].path);
        }
        (void)json_array_append_new(
            rows, json_pack("{s:I,s:s,s:b,s:s,s:I,s:i}", "step", (json_int_t)entries[i].step,
                            "path", entries[i].path, "complete", is_readable, "state", state,
                            "bytes", (json_int_t)info.bytes, "shards", info.shards));
        tsr_ckpt_info_free(&info);
    }
    if (st == TSR_OK && as_json) {
        json_t *object = json_pack("{s:O}", "checkpoints", rows);
        (void)json_dumpf(object, stdout, 0);
        (void)fputc('\n', stdout);
        json_decref(object);
    } else if (st == TSR_OK && count == 0) {
        (void)printf("no checkpoints in %s\n", path);
    }
    json_decref(rows);
    tsr_mem_free(entries);
    return st;
}

static void warn(void *context, const char *text)
{
    (void)context;
    tsr_log(TSR_LOG_WARN, "%s", text);
}

/* A run folder stands for its newest valid checkpoint; a checkpoint's folder for itself. */
static tsr_status resolve(const char *path, char resolved[TSR_TEXT_MAX])
{
    char checkpoints[TSR_TEXT_MAX + 16];
    tsr_ckpt_info info = {0};
    struct stat about;
    bool found = false;

    TSR_CHECK(strlen(path) < TSR_TEXT_MAX, TSR_ERR_ARG, "path of %zu bytes: %d at most",
              strlen(path), TSR_TEXT_MAX - 1);
    (void)snprintf(checkpoints, sizeof checkpoints, "%s/checkpoints", path);
    (void)snprintf(resolved, TSR_TEXT_MAX, "%s", path);
    if (stat(checkpoints, &about) == 0) {
        TSR_TRY(tsr_ckpt_find(path, warn, NULL, &found, &info));
        TSR_CHECK(found, TSR_ERR_FORMAT, "%s: holds no checkpoint", path);
        (void)snprintf(resolved, TSR_TEXT_MAX, "%s", info.path);
        tsr_ckpt_info_free(&info);
    }
    return TSR_OK;
}

static tsr_status show(const char *path, bool as_json)
{
    char at[TSR_TEXT_MAX];
    tsr_ckpt_info info = {0};

    TSR_TRY(resolve(path, at));
    TSR_TRY(tsr_ckpt_open_info(at, &info));
    if (as_json) {
        char digest[17];

        (void)snprintf(digest, sizeof digest, "%016llx", (unsigned long long)info.digest);
        json_t *object =
            json_pack("{s:s,s:I,s:I,s:I,s:i,s:i,s:I,s:s,s:s,s:s}", "path", info.path, "step",
                      (json_int_t)info.step, "tokens", (json_int_t)info.tokens, "data_position",
                      (json_int_t)info.data_position, "shards", info.shards, "tensors",
                      info.tensors, "bytes", (json_int_t)info.bytes, "digest", digest, "version",
                      info.version, "config", info.config_text);
        (void)json_dumpf(object, stdout, 0);
        (void)fputc('\n', stdout);
        json_decref(object);
        tsr_ckpt_info_free(&info);
        return TSR_OK;
    }
    (void)printf("path      %s\nstep      %lld\ntokens    %lld\nshards    %d, %.1f MiB\n"
                 "digest    %016llx\nversion   %s, format %d\n\n%s\n",
                 info.path, (long long)info.step, (long long)info.tokens, info.shards,
                 (double)info.bytes / 1048576.0, (unsigned long long)info.digest, info.version,
                 info.format, info.config_text);
    tsr_ckpt_info_free(&info);
    return tsr_ckpt_print_tensors(at, stdout);
}

static tsr_status verify(const char *path, bool as_json)
{
    char at[TSR_TEXT_MAX];

    TSR_TRY(resolve(path, at));
    TSR_TRY(tsr_ckpt_verify(at));
    if (as_json) {
        json_t *object = json_pack("{s:s,s:b}", "path", at, "valid", 1);
        (void)json_dumpf(object, stdout, 0);
        (void)fputc('\n', stdout);
        json_decref(object);
    } else {
        (void)printf("%s: valid, every file and tensor has its digest\n", at);
    }
    return TSR_OK;
}

static int run_ckpt(const cli_values *values, world *w)
{
    const char *what = values->positional[0], *path = values->positional[1];
    tsr_status st;

    if (strcmp(what, "ls") == 0) {
        st = list(path, w->json);
    } else if (strcmp(what, "show") == 0) {
        st = show(path, w->json);
    } else if (strcmp(what, "verify") == 0) {
        st = verify(path, w->json);
    } else {
        st = TSR_FAIL(TSR_ERR_ARG, "ckpt %s: must be ls, show or verify", what);
    }
    return st == TSR_OK ? EXIT_DONE : world_fail(w, st);
}

const cli_command cli_ckpt = {
    .name = "ckpt",
    .arguments = "ls|show|verify PATH",
    .summary = "List checkpoints of a run, show one, or check every byte of one.",
    .details =
        "PATH is a run folder (show and verify take its newest valid checkpoint) or one\n"
        "checkpoint's folder. verify ends with code 3 and names the file or tensor that is bad.\n",
    .min_positional = 2,
    .max_positional = 2,
    .options = ckpt_options,
    .run = run_ckpt,
    .needs_ranks = false,
};
