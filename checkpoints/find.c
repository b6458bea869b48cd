/* Listing a run's checkpoints and finding the newest that can be believed. */
#include "checkpoints/checkpoints_impl.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- listing -------------------------------------------------------------------------------- */

/* "step-00000020" or "step-00000020.new" */
static bool parse_name(const char *name, int64_t *step_out)
{
    char *end = NULL;

    if (strncmp(name, "step-", 5) != 0 || !isdigit((unsigned char)name[5])) {
        return false;
    }
    errno = 0;
    *step_out = strtoll(name + 5, &end, 10);
    return errno == 0 && end - (name + 5) >= 8 && (*end == '\0' || strcmp(end, ".new") == 0);
}

/* Oldest first; of one step "step-N" is later than "step-N.new", so that it is tried first. */
static int by_step(const void *left, const void *right)
{
    const tsr_ckpt_entry *a = left, *b = right;

    if (a->step != b->step) {
        return a->step < b->step ? -1 : 1;
    }
    return strcmp(b->path, a->path);
}

static tsr_status count_entries(DIR *list, int *count_out)
{
    struct dirent *entry;
    int64_t step;
    int count = 0;

    while ((entry = readdir(list)) != NULL) {
        count += parse_name(entry->d_name, &step);
        TSR_CHECK(count < 1000000, TSR_ERR_FORMAT, "more than a million checkpoints in one folder");
    }
    rewinddir(list);
    *count_out = count;
    return TSR_OK;
}

static tsr_status fill_entries(DIR *list, const char *root, tsr_ckpt_entry *entries, int most,
                               int *count_out)
{
    struct dirent *entry;
    struct stat info;
    int count = 0;

    while ((entry = readdir(list)) != NULL && count < most) {
        tsr_ckpt_entry *at = &entries[count];
        if (!parse_name(entry->d_name, &at->step)) {
            continue;
        }
        TSR_TRY(tsr_ckpt_join(root, entry->d_name, at->path));
        if (lstat(at->path, &info) == 0 && S_ISDIR(info.st_mode)) {
            at->has_manifest = tsr_ckpt_exists(at->path, TSR_CKPT_MANIFEST);
            ++count;
        }
    }
    *count_out = count;
    return TSR_OK;
}

tsr_status tsr_ckpt_list_root(const char *root, tsr_ckpt_entry **entries_out, int *count_out)
{
    void *block = NULL;
    int most = 0, count = 0;
    tsr_status st;

    DIR *list = opendir(root);
    TSR_CHECK(list != NULL, TSR_ERR_IO, "cannot list %s: %s", root, strerror(errno));
    TSR_TRY_GOTO(count_entries(list, &most), out_list);
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, most, sizeof(tsr_ckpt_entry), &block),
                 out_list);
    st = fill_entries(list, root, block, most, &count);
    if (st != TSR_OK) {
        tsr_mem_free(block);
        goto out_list;
    }
    qsort(block, (size_t)count, sizeof(tsr_ckpt_entry), by_step);
    *entries_out = block;
    *count_out = count;

out_list:
    (void)closedir(list);
    return st;
}

tsr_status tsr_ckpt_list(const char *run_dir, tsr_ckpt_entry **entries_out, int *count_out)
{
    char root[TSR_TEXT_MAX];

    TSR_CHECK(tsr_ckpt_exists(run_dir, "."), TSR_ERR_IO, "no such folder: %s", run_dir);
    TSR_TRY(tsr_ckpt_join(run_dir, "checkpoints", root));
    if (!tsr_ckpt_exists(root, ".")) { /* a run that has saved nothing yet */
        void *block = NULL;
        TSR_TRY(tsr_mem_alloc(TSR_MEM_CHECKPOINT, 0, &block));
        *entries_out = block;
        *count_out = 0;
        return TSR_OK;
    }
    return tsr_ckpt_list_root(root, entries_out, count_out);
}

/* ---- finding -------------------------------------------------------------------------------- */

void tsr_ckpt_info_free(tsr_ckpt_info *info)
{
    tsr_mem_free(info->config_text);
    *info = (tsr_ckpt_info){.step = 0};
}

static void fill_info(const char *path, tsr_ckpt_manifest *manifest, tsr_ckpt_info *out)
{
    *out = (tsr_ckpt_info){.step = manifest->step,
                           .tokens = manifest->tokens,
                           .data_position = manifest->data_position,
                           .seed = manifest->seed,
                           .digest = manifest->digest,
                           .shards = manifest->shard_count,
                           .tensors = manifest->tensor_count,
                           .format = TSR_CKPT_FORMAT};
    for (int i = 0; i < manifest->shard_count; ++i) {
        out->bytes += manifest->shards[i].bytes;
    }
    (void)snprintf(out->path, sizeof out->path, "%s", path);
    memcpy(out->version, manifest->version, sizeof out->version);
    out->config_text = manifest->config_text;
    manifest->config_text = NULL;
}

static tsr_status read_info(const char *path, bool with_shards, tsr_ckpt_info *out)
{
    tsr_ckpt_manifest manifest;

    TSR_TRY(tsr_ckpt_manifest_read(path, true, &manifest));
    const tsr_status st = with_shards ? tsr_ckpt_check_shards(path, &manifest, 0, 1, true) : TSR_OK;
    if (st == TSR_OK) {
        fill_info(path, &manifest, out);
    }
    tsr_ckpt_manifest_free(&manifest);
    return st;
}

tsr_status tsr_ckpt_open_info(const char *path, tsr_ckpt_info *info_out)
{
    TSR_CHECK(tsr_ckpt_exists(path, "."), TSR_ERR_IO, "no such folder: %s", path);
    return read_info(path, false, info_out);
}

typedef struct teller {
    tsr_ckpt_report *report;
    void *context;
} teller;

static void tell(const teller *to, const char *fmt, ...) TSR_PRINTF(2, 3);
static void tell(const teller *to, const char *fmt, ...)
{
    char text[2048];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (to->report != NULL) {
        to->report(to->context, text);
    }
}

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? slash + 1 : path;
}

static tsr_status find_newest(const char *run_dir, const teller *to, bool *found_out,
                              tsr_ckpt_info *info_out)
{
    tsr_ckpt_entry *entries = NULL;
    char reason[1024] = "";
    int count = 0, broken = 0;
    bool is_found = false;
    tsr_status st = TSR_OK;

    TSR_TRY(tsr_ckpt_list(run_dir, &entries, &count));
    for (int i = count - 1; i >= 0 && !is_found; --i) {
        const char *name = last_part(entries[i].path);
        if (!entries[i].has_manifest) {
            tell(to, "%s: no manifest, so it was not finished and is no checkpoint", name);
            continue;
        }
        st = read_info(entries[i].path, true, info_out);
        is_found = st == TSR_OK;
        if (is_found && broken > 0) {
            tell(to, "%s: valid, used instead of %d newer one%s", name, broken,
                 broken > 1 ? "s" : "");
        } else if (!is_found) {
            tell(to, "%s: %s", name, tsr_error_message());
            if (broken++ == 0) {
                (void)snprintf(reason, sizeof reason, "%s", tsr_error_message());
            }
        }
    }
    tsr_mem_free(entries);
    TSR_CHECK(is_found || broken == 0, TSR_ERR_FORMAT,
              "%s: none of %d checkpoints is valid; the newest: %s", run_dir, broken, reason);
    *found_out = is_found;
    return TSR_OK;
}

/* A folder that looks like one checkpoint rather than a run. */
static bool is_checkpoint(const char *path)
{
    int64_t step;

    return tsr_ckpt_exists(path, TSR_CKPT_MANIFEST) || parse_name(last_part(path), &step);
}

tsr_status tsr_ckpt_find(const char *path, tsr_ckpt_report *report, void *context, bool *found_out,
                         tsr_ckpt_info *info_out)
{
    const teller to = {.report = report, .context = context};

    TSR_CHECK(tsr_ckpt_exists(path, "."), TSR_ERR_IO, "no such folder: %s", path);
    if (!is_checkpoint(path)) {
        return find_newest(path, &to, found_out, info_out);
    }
    const tsr_status st = read_info(path, true, info_out);
    if (st != TSR_OK) {
        tell(&to, "%s: %s", last_part(path), tsr_error_message());
        return st;
    }
    *found_out = true;
    return TSR_OK;
}
