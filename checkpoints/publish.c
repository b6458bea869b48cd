/* Where a save goes and how it becomes the newest: rank 0's work around the manifest.
 *
 *   all ranks   shard.tmp, sync, rename ...            into root/step-N
 *   rank 0      manifest.h5.tmp, sync, rename          now it is a checkpoint
 *               latest -> step-N, old ones removed
 * A step that has a complete checkpoint already is written to step-N.new; only when that is
 * complete the old folder goes and the new one takes its name. Reading knows both names. */
#include "checkpoints/checkpoints_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static tsr_status remove_if_there(const char *folder)
{
    struct stat info;

    return lstat(folder, &info) == 0 ? tsr_ckpt_remove(folder) : TSR_OK;
}

tsr_status tsr_ckpt_target_set(const char *root, int64_t step, bool is_replacing,
                               tsr_ckpt_target *out)
{
    char name[40];

    *out = (tsr_ckpt_target){.step = step, .is_replacing = is_replacing};
    (void)snprintf(out->root, sizeof out->root, "%s", root);
    (void)snprintf(name, sizeof name, "step-%08" PRId64, step);
    TSR_TRY(tsr_ckpt_join(root, name, out->final));
    (void)snprintf(name, sizeof name, "step-%08" PRId64 "%s", step, is_replacing ? ".new" : "");
    return tsr_ckpt_join(root, name, out->work);
}

tsr_status tsr_ckpt_target_prepare(const char *root, int64_t step, uint64_t bytes,
                                   tsr_ckpt_target *out)
{
    tsr_ckpt_target target;

    TSR_TRY(tsr_ckpt_target_set(root, step, false, &target));
    const bool is_replacing = tsr_ckpt_exists(target.final, TSR_CKPT_MANIFEST);
    TSR_TRY(tsr_ckpt_target_set(root, step, is_replacing, &target));
    TSR_TRY(remove_if_there(target.work));
    TSR_TRY(tsr_ckpt_check_space(root, bytes));
    TSR_TRY(tsr_ckpt_make_folder(target.work));
    tsr_ckpt_point();
    *out = target;
    return TSR_OK;
}

static tsr_status point_latest(const tsr_ckpt_target *target)
{
    char link[TSR_TEXT_MAX], temporary[TSR_TEXT_MAX];
    const char *name = strrchr(target->final, '/') + 1; /* relative: the folder may be moved */

    TSR_TRY(tsr_ckpt_join(target->root, "latest", link));
    TSR_TRY(tsr_ckpt_join(target->root, "latest.tmp", temporary));
    (void)unlink(temporary);
    TSR_CHECK(symlink(name, temporary) == 0, TSR_ERR_IO, "cannot make link %s: %s", temporary,
              strerror(errno));
    tsr_ckpt_point();
    TSR_TRY(tsr_ckpt_rename(temporary, link));
    tsr_ckpt_point();
    return tsr_ckpt_sync_folder(target->root);
}

/* Of the complete checkpoints up to this step the newest `keep` stay. Later ones are not ours: they
 * are of a run that was wound back, and are replaced when their step comes again. */
static tsr_status drop_old(const tsr_ckpt_target *target, int64_t keep)
{
    tsr_ckpt_entry *entries = NULL;
    int count = 0;
    int64_t kept = 0;
    tsr_status st = TSR_OK;

    TSR_TRY(tsr_ckpt_list_root(target->root, &entries, &count));
    for (int i = count - 1; i >= 0 && st == TSR_OK; --i) {
        if (!entries[i].has_manifest || entries[i].step > target->step) {
            continue;
        }
        if (kept++ >= keep) {
            st = tsr_ckpt_remove(entries[i].path);
        }
    }
    tsr_mem_free(entries);
    return st;
}

static tsr_status take_final_name(const tsr_ckpt_target *target)
{
    tsr_ckpt_target aside;

    if (target->is_replacing) {
        TSR_TRY(remove_if_there(target->final));
        TSR_TRY(tsr_ckpt_rename(target->work, target->final));
        tsr_ckpt_point();
    } else {
        /* complete, but superseded: its taking the final name was cut short */
        TSR_TRY(tsr_ckpt_target_set(target->root, target->step, true, &aside));
        TSR_TRY(remove_if_there(aside.work));
    }
    return tsr_ckpt_sync_folder(target->root);
}

tsr_status tsr_ckpt_target_publish(const tsr_ckpt_target *target, int64_t keep)
{
    TSR_TRY(take_final_name(target));
    /* The checkpoint is complete; what follows is a convenience whose failure loses nothing. */
    if (point_latest(target) != TSR_OK) {
        tsr_log(TSR_LOG_WARN, "checkpoint step %" PRId64 ": %s", target->step, tsr_error_message());
    }
    if (keep > 0 && drop_old(target, keep) != TSR_OK) {
        tsr_log(TSR_LOG_WARN, "checkpoint step %" PRId64 ": an old one stays: %s", target->step,
                tsr_error_message());
    }
    return TSR_OK;
}
