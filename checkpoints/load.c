/* Loading: any layout takes its rows from a checkpoint of any other, and proves that it got them.
 */
#include "checkpoints/checkpoints_impl.h"

#include <inttypes.h>
#include <string.h>

static const tsr_ckpt_tensor *find_tensor(const tsr_ckpt_manifest *manifest, const char *name)
{
    for (int i = 0; i < manifest->tensor_count; ++i) {
        if (strcmp(manifest->tensors[i].name, name) == 0) {
            return &manifest->tensors[i];
        }
    }
    return NULL;
}

static void shape_text(const tsr_ckpt_tensor *tensor, char out[96])
{
    int at = snprintf(out, 96, "[");

    for (int axis = 0; axis < tensor->dims; ++axis) {
        at += snprintf(out + at, 96 - (size_t)at, "%s%" PRId64, axis > 0 ? ", " : "",
                       tensor->shape[axis]);
    }
    (void)snprintf(out + at, 96 - (size_t)at, "]");
}

static tsr_status check_extra(const tsr_ckpt_manifest *manifest, const tsr_param_table *table,
                              const char *path)
{
    for (int i = 0; i < manifest->tensor_count; ++i) {
        TSR_CHECK(tsr_param_find(table, manifest->tensors[i].name) >= 0, TSR_ERR_FORMAT,
                  "%s holds %s, which this model does not have", path, manifest->tensors[i].name);
    }
    return TSR_OK;
}

/* Bring the manifest's tensors into the order of the table. */
static tsr_status match(const tsr_ckpt_manifest *manifest, const tsr_param_table *table,
                        const char *path, tsr_ckpt_tensor *tensors_out)
{
    for (int i = 0; i < table->count; ++i) {
        const tsr_ckpt_tensor *stored = find_tensor(manifest, table->params[i].name);
        tsr_ckpt_tensor wanted;
        char have[96], want[96];
        TSR_TRY(tsr_ckpt_tensor_of(&table->params[i], &wanted));
        TSR_CHECK(stored != NULL, TSR_ERR_FORMAT, "%s does not hold %s, which this model has", path,
                  wanted.name);
        shape_text(stored, have);
        shape_text(&wanted, want);
        TSR_CHECK(strcmp(have, want) == 0, TSR_ERR_FORMAT, "%s: %s is %s, this model has %s", path,
                  wanted.name, have, want);
        tensors_out[i] = *stored;
    }
    return check_extra(manifest, table, path);
}

/* ---- rows ----------------------------------------------------------------------------------- */

typedef struct loader {
    tsr_ckpt_reader *reader;
    const tsr_ckpt_tensor *tensors; /* by parameter */
    float *chunk;                   /* for moments that are not f32 */
    int64_t chunk_floats;
    uint64_t *digests; /* [params, kinds] */
} loader;

static tsr_status load_kind(loader *self, const tsr_state_slice *slice, int kind)
{
    const tsr_ckpt_tensor *tensor = &self->tensors[slice->param];
    const int64_t step = self->chunk_floats / tensor->width;
    void *moments = kind == 1 ? slice->m : slice->v;
    const bool is_f32 = kind == 0 || slice->moment_dtype == TSR_F32;
    float *target = kind == 0 ? slice->master : moments;
    uint64_t *digest = &self->digests[slice->param * TSR_CKPT_KINDS + kind];

    for (int64_t row = slice->row_begin; row < slice->row_end; row += step) {
        const int64_t end = slice->row_end - row < step ? slice->row_end : row + step;
        const int64_t first = (row - slice->row_begin) * tensor->width;
        const int64_t count = (end - row) * tensor->width;
        float *data = is_f32 ? target + first : self->chunk;
        TSR_TRY(tsr_ckpt_reader_rows(self->reader, tensor, kind, row, end, data));
        *digest += tsr_ckpt_rows_digest(data, row, end - row, tensor->width);
        for (int64_t i = 0; i < count && !is_f32; ++i) {
            ((tsr_bf16 *)moments)[first + i] = tsr_f32_to_bf16(data[i]);
        }
    }
    return TSR_OK;
}

static tsr_status load_slices(loader *self, const tsr_state_view *view)
{
    for (int i = 0; i < view->slice_count; ++i) {
        for (int kind = 0; kind < TSR_CKPT_KINDS; ++kind) {
            TSR_TRY(load_kind(self, &view->slices[i], kind));
        }
    }
    return TSR_OK;
}

static tsr_status check_digests(const loader *self, int params, const char *path)
{
    for (int i = 0; i < params * TSR_CKPT_KINDS; ++i) {
        const tsr_ckpt_tensor *tensor = &self->tensors[i / TSR_CKPT_KINDS];
        const uint64_t wanted = tensor->digest[i % TSR_CKPT_KINDS];
        /* the files are sound; a source that HDF5 cannot open has been read as zeros */
        TSR_CHECK(self->digests[i] == wanted, TSR_ERR_FORMAT,
                  "%s: %s/%s was read with digest %016" PRIx64 ", must have %016" PRIx64
                  "; if files cannot be locked here, set HDF5_USE_FILE_LOCKING=FALSE",
                  path, tsr_ckpt_kind_names[i % TSR_CKPT_KINDS], tensor->name, self->digests[i],
                  wanted);
    }
    return TSR_OK;
}

static tsr_status take_bias(const tsr_ckpt_manifest *manifest, const char *path, int64_t layers,
                            int64_t experts, float *out)
{
    const size_t bytes = (size_t)(layers * experts) * sizeof(float);

    if (manifest->router_bias == NULL) {
        memset(out, 0, bytes); /* saved by a model that does not use one */
        return TSR_OK;
    }
    TSR_CHECK(manifest->layers == layers && manifest->experts == experts, TSR_ERR_FORMAT,
              "%s: router bias is [%" PRId64 ", %" PRId64 "], this model has [%" PRId64 ", %" PRId64
              "]",
              path, manifest->layers, manifest->experts, layers, experts);
    memcpy(out, manifest->router_bias, bytes);
    return TSR_OK;
}

static tsr_status take_state(const tsr_ckpt_manifest *manifest, const char *path,
                             tsr_state_view *view)
{
    if (view->router_bias != NULL) {
        TSR_TRY(take_bias(manifest, path, view->layers, view->experts, view->router_bias));
    }
    TSR_TRY(tsr_ckpt_manifest_read_arrays(path, view->arrays, view->array_count));
    view->step = manifest->step;
    view->tokens = manifest->tokens;
    view->data_position = manifest->data_position;
    view->seed = manifest->seed;
    return TSR_OK;
}

/* ---- loading -------------------------------------------------------------------------------- */

static tsr_status take_memory(const tsr_state_view *view, loader *self, tsr_ckpt_tensor **tensors)
{
    const int params = view->table->count;
    void *block = NULL;

    self->chunk_floats =
        (int64_t)4 * TSR_CKPT_CHUNK; /* long reads: each costs HDF5 a walk of the mapping */
    for (int i = 0; i < params; ++i) {
        const int64_t width = view->table->params[i].width;
        self->chunk_floats = width > self->chunk_floats ? width : self->chunk_floats;
    }
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, params, sizeof(tsr_ckpt_tensor), &block));
    *tensors = block;
    self->tensors = block;
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, (int64_t)params * TSR_CKPT_KINDS,
                                sizeof(uint64_t), &block));
    self->digests = block;
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, self->chunk_floats, sizeof(float), &block));
    self->chunk = block;
    return TSR_OK;
}

/* Everything that is local: what the manifest says, whether it fits, and this rank's shards. */
static tsr_status examine(const char *path, const tsr_state_view *view, int rank, int size,
                          loader *self, tsr_ckpt_tensor **tensors, tsr_ckpt_manifest *manifest)
{
    TSR_TRY(tsr_ckpt_check_view(view));
    TSR_TRY(take_memory(view, self, tensors));
    TSR_TRY(tsr_ckpt_manifest_read(path, true, manifest));
    TSR_TRY(match(manifest, view->table, path, *tensors));
    TSR_TRY(tsr_ckpt_check_shards(path, manifest, rank, size, true));
    return tsr_ckpt_check_shards(path, manifest, 0, 1, false); /* and all are seen from here */
}

tsr_status tsr_ckpt_load(tsr_comm *comm, const char *path, tsr_state_view *view)
{
    loader self = {.reader = NULL};
    tsr_ckpt_tensor *tensors = NULL;
    tsr_ckpt_manifest manifest = {0};
    tsr_status st;

    st = examine(path, view, tsr_comm_rank(comm), tsr_comm_size(comm), &self, &tensors, &manifest);
    TSR_TRY_GOTO(tsr_comm_agree(comm, st), out);
    st = tsr_ckpt_reader_open(path, &self.reader);
    st = st != TSR_OK ? st : load_slices(&self, view);
    TSR_TRY_GOTO(tsr_comm_agree(comm, st), out);
    TSR_TRY_GOTO(tsr_comm_all_reduce_u64(comm, self.digests,
                                         (int64_t)view->table->count * TSR_CKPT_KINDS,
                                         TSR_REDUCE_SUM),
                 out);
    TSR_TRY_GOTO(check_digests(&self, view->table->count, path), out);
    st = tsr_comm_agree(comm, take_state(&manifest, path, view));

out:
    tsr_ckpt_reader_close(&self.reader);
    tsr_mem_free(self.chunk);
    tsr_mem_free(self.digests);
    tsr_mem_free(tensors);
    tsr_ckpt_manifest_free(&manifest);
    return st;
}

tsr_status tsr_ckpt_read_weights(const char *path, const tsr_param_table *table, int param,
                                 float *out)
{
    tsr_ckpt_manifest manifest = {0};
    tsr_ckpt_reader *reader = NULL;
    tsr_ckpt_tensor stored, wanted;
    tsr_status st;

    TSR_CHECK(param >= 0 && param < table->count, TSR_ERR_ARG, "param = %d, table has %d", param,
              table->count);
    TSR_TRY(tsr_ckpt_tensor_of(&table->params[param], &wanted));
    TSR_TRY(tsr_ckpt_manifest_read(path, false, &manifest));
    TSR_TRY_GOTO(tsr_ckpt_check_shards(path, &manifest, 0, 1, false), out);
    TSR_TRY_GOTO(tsr_ckpt_reader_open(path, &reader), out);
    TSR_TRY_GOTO(tsr_ckpt_reader_tensor(reader, wanted.name, &stored), out);
    if (stored.dims != wanted.dims ||
        memcmp(stored.shape, wanted.shape, sizeof stored.shape) != 0) {
        char have[96], want[96];
        shape_text(&stored, have);
        shape_text(&wanted, want);
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s: %s is %s, this model has %s", path, wanted.name, have,
                      want);
        goto out;
    }
    TSR_TRY_GOTO(tsr_ckpt_reader_rows(reader, &stored, 0, 0, stored.rows, out), out);
    if (tsr_ckpt_rows_digest(out, 0, stored.rows, stored.width) != stored.digest[0]) {
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s: master/%s does not have its digest: damaged", path,
                      stored.name);
    }

out:
    tsr_ckpt_reader_close(&reader);
    tsr_ckpt_manifest_free(&manifest);
    return st;
}

tsr_status tsr_ckpt_read_router_bias(const char *path, int64_t layers, int64_t experts, float *out)
{
    tsr_ckpt_manifest manifest = {0};

    TSR_TRY(tsr_ckpt_manifest_read(path, false, &manifest));
    const tsr_status st = take_bias(&manifest, path, layers, experts, out);
    tsr_ckpt_manifest_free(&manifest);
    return st;
}
