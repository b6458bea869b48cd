#include "launch/resume.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static void report_problem(void *context, const char *text)
{
    (void)context;
    tsr_log(TSR_LOG_WARN, "%s", text);
}

tsr_status resume_choose(const char *dir, const char *resume, char path[TSR_TEXT_MAX])
{
    const bool by_name =
        resume != NULL && strcmp(resume, "latest") != 0 && strcmp(resume, "auto") != 0;
    tsr_ckpt_info info = {0};
    struct stat about;
    bool found = false;

    path[0] = '\0';
    if (!by_name && stat(dir, &about) != 0 && errno == ENOENT) {
        TSR_CHECK(resume == NULL || strcmp(resume, "latest") != 0, TSR_ERR_FORMAT,
                  "--resume latest: %s does not exist; --resume auto starts afresh then", dir);
        return TSR_OK;
    }
    if (resume == NULL) {
        tsr_ckpt_entry *entries = NULL;
        int count = 0, complete = 0;

        TSR_TRY(tsr_ckpt_list(dir, &entries, &count));
        for (int i = 0; i < count; ++i) {
            complete += entries[i].has_manifest;
        }
        tsr_mem_free(entries);
        TSR_CHECK(
            complete == 0, TSR_ERR_ARG,
            "%s holds %d checkpoint%s already: add --resume latest to continue, or choose another "
            "run.dir",
            dir, complete, complete == 1 ? "" : "s");
        return TSR_OK;
    }
    TSR_TRY(tsr_ckpt_find(by_name ? resume : dir, report_problem, NULL, &found, &info));
    TSR_CHECK(found || strcmp(resume, "auto") == 0, TSR_ERR_FORMAT,
              "--resume %s: no checkpoint in %s; --resume auto starts afresh then", resume,
              by_name ? resume : dir);
    if (found) {
        (void)snprintf(path, TSR_TEXT_MAX, "%s", info.path);
    }
    tsr_ckpt_info_free(&info);
    return TSR_OK;
}

tsr_status resume_check_model(const settings *now, const char *then_text)
{
    settings then = {0};

    TSR_TRY(settings_read(&then, then_text, "config of the checkpoint", NULL, 0));
#define SAME(field, format, type)                                                                  \
    TSR_CHECK(now->model.field == then.model.field, TSR_ERR_ARG,                                   \
              "model." #field " = " format " in the run file, " format " in the checkpoint",       \
              (type)now->model.field, (type)then.model.field)
    SAME(num_attention_heads, "%lld", long long);
    SAME(num_key_value_heads, "%lld", long long);
    SAME(head_dim, "%lld", long long);
    SAME(num_experts_per_tok, "%lld", long long);
    SAME(n_group, "%lld", long long);
    SAME(topk_group, "%lld", long long);
    SAME(rope_theta, "%g", double);
    SAME(rms_norm_eps, "%g", double);
    SAME(scoring_func, "%d", int);
    SAME(norm_topk_prob, "%d", int);
    SAME(routed_scaling_factor, "%g", double);
#undef SAME
    if (now->run.seed != then.run.seed) {
        tsr_log(TSR_LOG_WARN, "run.seed is %lld, the checkpoint's is %lld: the data order changes",
                (long long)now->run.seed, (long long)then.run.seed);
    }
    return TSR_OK;
}
