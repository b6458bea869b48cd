#include "tests/checkpoints/state_fixture.h"

#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
    const char *name;
    int dims;
    int64_t shape[3];
} tensors[FIXTURE_PARAMS] = {
    {"model.embed_tokens.weight", 2, {19, 8}},
    {"model.layers.0.input_layernorm.weight", 1, {8}},
    {"model.layers.0.mlp.experts.gate_up_proj", 3, {5, 6, 8}},
    {"model.layers.0.mlp.experts.down_proj", 3, {5, 8, 3}},
    {"model.norm.weight", 1, {8}},
    {"lm_head.weight", 2, {19, 8}},
};

/* 8 significant bits, so that bf16 holds it too */
static float value_of(int param, int kind, int64_t element, int64_t step)
{
    const int64_t mix = element * 7 + param * 31 + kind * 57 + step * 13;

    return (float)(mix % 251 - 125) * (kind == 0 ? 0.03f : 0.0625f);
}

static void get_or_set(const tsr_state_slice *slice, int kind, int64_t at, float *value, bool set)
{
    void *moments = kind == 1 ? slice->m : slice->v;

    if (kind == 0 || slice->moment_dtype == TSR_F32) {
        float *place = (kind == 0 ? slice->master : (float *)moments) + at;
        *(set ? place : value) = *(set ? value : place);
    } else if (set) {
        ((tsr_bf16 *)moments)[at] = tsr_f32_to_bf16(*value);
    } else {
        *value = tsr_bf16_to_f32(((tsr_bf16 *)moments)[at]);
    }
}

static void make_table(fixture *self, int64_t scale)
{
    for (int i = 0; i < FIXTURE_PARAMS; ++i) {
        tsr_param *param = &self->params[i];
        (void)snprintf(param->name, sizeof param->name, "%s", tensors[i].name);
        param->dims = tensors[i].dims;
        param->rows = 1;
        for (int axis = 0; axis < param->dims; ++axis) {
            param->shape[axis] = tensors[i].shape[axis] * (axis < 2 ? scale : 1);
            param->rows *= axis + 1 < param->dims ? param->shape[axis] : 1;
        }
        param->width = param->shape[param->dims - 1];
        param->group = param->dims == 3 ? TSR_GROUP_EXPERT : TSR_GROUP_DENSE;
    }
    self->table = (tsr_param_table){.params = self->params, .count = FIXTURE_PARAMS};
}

static bool add_slice(fixture *self, int param, int64_t begin, int64_t end, tsr_dtype moments)
{
    const int64_t count = (end - begin) * self->params[param].width;
    const size_t each = tsr_dtype_bytes(moments);
    tsr_state_slice *slice = &self->slices[self->view.slice_count++];
    void *master = NULL;

    *slice = (tsr_state_slice){
        .param = param, .row_begin = begin, .row_end = end, .moment_dtype = moments};
    const bool ok =
        tsr_mem_alloc_array(TSR_MEM_OPTIMIZER, count, sizeof(float), &master) == TSR_OK &&
        tsr_mem_alloc_array(TSR_MEM_OPTIMIZER, count, each, &slice->m) == TSR_OK &&
        tsr_mem_alloc_array(TSR_MEM_OPTIMIZER, count, each, &slice->v) == TSR_OK;
    slice->master = master;
    return ok;
}

static bool cut_line(fixture *self, int64_t begin, int64_t end, tsr_dtype moments)
{
    int64_t first = 0;

    for (int i = 0; i < FIXTURE_PARAMS; ++i) {
        const int64_t rows = self->params[i].rows;
        const int64_t from = begin > first ? begin - first : 0;
        const int64_t to = end - first < rows ? end - first : rows;
        first += rows;
        /* a part without rows of a tensor keeps an empty slice in every other case */
        if (to > from ? !add_slice(self, i, from, to, moments)
                      : i % 2 == 0 && !add_slice(self, i, 0, 0, moments)) {
            return false;
        }
    }
    return true;
}

static bool cut_stripes(fixture *self, int part, int parts, tsr_dtype moments)
{
    for (int i = 0; i < 2 * FIXTURE_PARAMS; ++i) {
        const int64_t rows = self->params[i / 2].rows;
        const int stripe = i % 2 == 0 ? part : 2 * parts - 1 - part;
        if (!add_slice(self, i / 2, rows * stripe / (2 * parts), rows * (stripe + 1) / (2 * parts),
                       moments)) {
            return false;
        }
    }
    return true;
}

/* Rows [begin, end) of a share's tensor, a slice for each run of the whole one. */
static bool add_runs(fixture *self, int index, const tsr_param *param, int64_t begin, int64_t end,
                     tsr_dtype moments)
{
    bool ok = true;

    while (ok && begin < end) {
        const int64_t run = tsr_param_run_end(param, begin), stop = run < end ? run : end;
        const int64_t row = tsr_param_global_row(param, begin);
        ok = self->view.slice_count < FIXTURE_SLICES &&
             add_slice(self, index, row, row + stop - begin, moments);
        begin = stop;
    }
    return ok;
}

static bool cut_mesh(fixture *self, int ep, bool in_turn, int part, int parts, tsr_dtype moments)
{
    int32_t owner[4 * FIXTURE_EXPERTS];
    tsr_param_table local = {0};
    const int64_t experts = self->params[2].shape[0];
    bool ok = experts <= 4 * FIXTURE_EXPERTS;

    if (ok) {
        tsr_expert_owners_even(1, experts, ep, owner);
        for (int64_t e = 0; in_turn && e < experts; ++e) {
            owner[e] = (int32_t)(e % ep);
        }
        ok = tsr_param_table_share(&self->table, owner, part % ep, &local) == TSR_OK;
    }
    for (int i = 0; ok && i < FIXTURE_PARAMS; ++i) {
        const bool is_expert = local.params[i].group == TSR_GROUP_EXPERT;
        const int64_t rows = local.params[i].rows;
        const int sharers = is_expert ? parts / ep : parts, place = is_expert ? part / ep : part;
        ok = add_runs(self, i, &local.params[i], rows * place / sharers,
                      rows * (place + 1) / sharers, moments);
    }
    tsr_param_table_destroy(&local);
    return ok;
}

bool fixture_make(fixture *out, fixture_cut cut, int part, int parts, tsr_dtype moments,
                  int64_t step, int64_t scale)
{
    int64_t rows = 0;
    bool ok;

    memset(out, 0, sizeof *out);
    make_table(out, scale);
    out->view = (tsr_state_view){.table = &out->table,
                                 .slices = out->slices,
                                 .router_bias = out->bias,
                                 .layers = FIXTURE_LAYERS,
                                 .experts = FIXTURE_EXPERTS};
    for (int i = 0; i < FIXTURE_PARAMS; ++i) {
        rows += out->params[i].rows;
    }
    if (cut == CUT_STRIPED) {
        ok = cut_stripes(out, part, parts, moments);
    } else if (cut == CUT_SPREAD) {
        ok = cut_mesh(out, parts, true, part, parts, moments);
    } else if (cut == CUT_MESH) {
        ok = cut_mesh(out, parts % 2 == 0 ? 2 : parts, false, part, parts, moments);
    } else if (cut == CUT_LAST) {
        ok = cut_line(out, 0, part == parts - 1 ? rows : 0, moments);
    } else {
        ok = cut_line(out, rows * part / parts, rows * (part + 1) / parts, moments);
    }
    if (ok) {
        fixture_set_step(out, step);
    } else {
        fixture_free(out);
    }
    return ok;
}

void fixture_free(fixture *self)
{
    for (int i = 0; i < self->view.slice_count; ++i) {
        tsr_mem_free(self->slices[i].master);
        tsr_mem_free(self->slices[i].m);
        tsr_mem_free(self->slices[i].v);
    }
    self->view.slice_count = 0;
}

static void for_all(const fixture *self, int64_t step, bool is_wipe)
{
    for (int i = 0; i < self->view.slice_count; ++i) {
        const tsr_state_slice *slice = &self->slices[i];
        const int64_t width = self->params[slice->param].width, first = slice->row_begin * width;
        const int64_t count = slice->row_end * width - first;
        for (int kind = 0; kind < 3; ++kind) {
            for (int64_t at = 0; at < count; ++at) {
                float value = is_wipe ? -7.0f : value_of(slice->param, kind, first + at, step);
                get_or_set(slice, kind, at, &value, true);
            }
        }
    }
}

void fixture_set_step(fixture *self, int64_t step)
{
    for_all(self, step, false);
    for (int i = 0; i < FIXTURE_LAYERS * FIXTURE_EXPERTS; ++i) {
        self->bias[i] = (float)(i + step) * 0.125f;
    }
    self->view.step = step;
    self->view.tokens = step * 2048;
    self->view.data_position = step * 8;
    self->view.seed = UINT64_MAX - 41;
    self->view.config_text = "[model]\nfamily = mixtral\nvocab_size = 19\n";
}

void fixture_wipe(fixture *self)
{
    for_all(self, 0, true);
    memset(self->bias, 0, sizeof self->bias);
    self->view.step = self->view.tokens = self->view.data_position = -1;
    self->view.seed = 0;
    self->view.config_text = NULL;
}

static bool slice_holds(const fixture *self, const tsr_state_slice *slice, int kind, int64_t step)
{
    const int64_t width = self->params[slice->param].width, first = slice->row_begin * width;

    for (int64_t at = 0; at < slice->row_end * width - first; ++at) {
        const float wanted = value_of(slice->param, kind, first + at, step);
        float value = 0.0f;
        get_or_set(slice, kind, at, &value, false);
        if (memcmp(&value, &wanted, sizeof value) != 0) {
            (void)fprintf(stderr, "%s kind %d element %" PRId64 ": %g, must be %g\n",
                          self->params[slice->param].name, kind, first + at, (double)value,
                          (double)wanted);
            return false;
        }
    }
    return true;
}

bool fixture_holds(const fixture *self, int64_t step)
{
    const tsr_state_view *view = &self->view;

    if (view->step != step || view->tokens != step * 2048 || view->data_position != step * 8 ||
        view->seed != UINT64_MAX - 41) {
        (void)fprintf(stderr, "step %" PRId64 ", must be %" PRId64 ", or its counters differ\n",
                      view->step, step);
        return false;
    }
    for (int i = 0; i < FIXTURE_LAYERS * FIXTURE_EXPERTS; ++i) {
        const float wanted = (float)(i + step) * 0.125f;
        if (memcmp(&self->bias[i], &wanted, sizeof wanted) != 0) {
            (void)fprintf(stderr, "bias %d differs\n", i);
            return false;
        }
    }
    for (int i = 0; i < view->slice_count; ++i) {
        for (int kind = 0; kind < 3; ++kind) {
            if (!slice_holds(self, &self->slices[i], kind, step)) {
                return false;
            }
        }
    }
    return true;
}

tsr_status fixture_save(tsr_comm *comm, const char *run_dir, const fixture *self,
                        const tsr_checkpoint_config *config, tsr_ckpt_result *result_out)
{
    tsr_ckpt_writer *writer = NULL;
    double staged_s = 0.0;

    TSR_TRY(tsr_ckpt_writer_create(comm, run_dir, config, &self->view, &writer));
    tsr_status st = tsr_ckpt_save(writer, &self->view, &staged_s);
    if (st == TSR_OK) {
        st = tsr_ckpt_finish(writer, result_out);
    }
    tsr_ckpt_writer_destroy(&writer);
    return st;
}

/* ---- files ---------------------------------------------------------------------------------- */

bool fixture_folder(const char *parent, char out[TSR_TEXT_MAX])
{
    const char *base = parent != NULL ? parent : "/tmp";

    (void)snprintf(out, TSR_TEXT_MAX, "%s/tessera-test-XXXXXX", base);
    return mkdtemp(out) != NULL;
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *at)
{
    (void)info;
    (void)kind;
    (void)at;
    return remove(path);
}

void fixture_remove(const char *path)
{
    (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

bool fixture_flip(const char *path, int64_t offset)
{
    unsigned char byte = 0;
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    const off_t at = offset >= 0 ? offset : fixture_file_size(path) + offset;
    const bool has_read = fd >= 0 && pread(fd, &byte, 1, at) == 1;

    byte ^= 0x10;
    const bool ok = has_read && pwrite(fd, &byte, 1, at) == 1;
    if (fd >= 0) {
        (void)close(fd);
    }
    return ok;
}

int64_t fixture_file_size(const char *path)
{
    struct stat info;

    return stat(path, &info) == 0 ? (int64_t)info.st_size : -1;
}
