/* Saving. One thread a rank writes its shard; everything collective happens in the caller.
 *
 *   save      all: check, agree; rank 0 makes the folder; all: copy, start the thread
 *   (steps)   callers exchange tsr_ckpt_local_phase() until all have written or failed
 *   progress  all: digests summed, shard sizes gathered; rank 0: manifest, publish; all: agree */
#include "checkpoints/checkpoints_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

struct tsr_ckpt_writer {
    tsr_comm *comm;               /* borrowed */
    const tsr_param_table *table; /* borrowed */
    tsr_checkpoint_config config;
    char root[TSR_TEXT_MAX];
    tsr_ckpt_slice *slices; /* of all ranks */
    int slice_count;
    tsr_ckpt_shard shard;
    uint64_t all_bytes; /* of all shards */
    tsr_state_slice *mine;
    int mine_count;
    void *staging;     /* NULL unless async: the caller then waits in the call */
    uint64_t *digests; /* [params, kinds] */

    /* the save in flight */
    bool in_flight, has_thread;
    pthread_t thread;
    _Atomic tsr_ckpt_phase phase; /* the thread's last act; all else is read after it */
    tsr_ckpt_target target;
    tsr_ckpt_manifest manifest;
    double started_s;
    uint64_t file_digest;
    tsr_status code;
    char message[1024];
    tsr_ckpt_result ended; /* not yet told to the caller */
};

static double now_s(void)
{
    struct timespec now = {0};

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- creation ------------------------------------------------------------------------------- */

static tsr_status make_root(tsr_ckpt_writer *writer, const char *run_dir)
{
    TSR_TRY(tsr_ckpt_join(run_dir, "checkpoints", writer->root));
    if (tsr_comm_rank(writer->comm) == 0) {
        TSR_TRY(tsr_ckpt_make_folder(run_dir));
        TSR_TRY(tsr_ckpt_make_folder(writer->root));
        TSR_TRY(tsr_ckpt_check_writable(writer->root));
    }
    return TSR_OK;
}

static size_t slice_bytes(const tsr_param_table *table, const tsr_state_slice *slice,
                          size_t element)
{
    const int64_t rows = slice->row_end - slice->row_begin;

    return (size_t)(rows * table->params[slice->param].width) * element;
}

/* Own copy of the slices; with async each gets its place in one staging block. */
static tsr_status take_memory(tsr_ckpt_writer *writer, const tsr_state_view *view)
{
    void *block = NULL;
    size_t bytes = 0;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, (int64_t)view->table->count * TSR_CKPT_KINDS,
                                sizeof(uint64_t), &block));
    writer->digests = block;
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, view->slice_count, sizeof(tsr_state_slice),
                                &block));
    writer->mine = block;
    writer->mine_count = view->slice_count;
    for (int i = 0; i < view->slice_count; ++i) {
        writer->mine[i] = view->slices[i];
        bytes += slice_bytes(view->table, &view->slices[i], sizeof(float));
        bytes += 2 * slice_bytes(view->table, &view->slices[i],
                                 tsr_dtype_bytes(view->slices[i].moment_dtype));
    }
    if (!writer->config.async) {
        return TSR_OK;
    }
    TSR_TRY(tsr_mem_alloc(TSR_MEM_CHECKPOINT, bytes, &writer->staging));
    char *at = writer->staging;
    /* all f32 first, so that each array is aligned for its type */
    for (int i = 0; i < view->slice_count; ++i) {
        writer->mine[i].master = (float *)(void *)at;
        at += slice_bytes(view->table, &view->slices[i], sizeof(float));
    }
    for (int pass = 0; pass < 2; ++pass) {
        for (int i = 0; i < view->slice_count; ++i) {
            tsr_state_slice *slice = &writer->mine[i];
            const size_t each =
                slice_bytes(view->table, slice, tsr_dtype_bytes(slice->moment_dtype));
            if ((slice->moment_dtype == TSR_F32) == (pass == 0)) {
                slice->m = at;
                slice->v = at + each;
                at += 2 * each;
            }
        }
    }
    return TSR_OK;
}

static tsr_status check_table(const tsr_param_table *table)
{
    tsr_ckpt_tensor tensor;

    for (int i = 0; i < table->count; ++i) {
        TSR_TRY(tsr_ckpt_tensor_of(&table->params[i], &tensor));
    }
    return TSR_OK;
}

static tsr_status set_up(tsr_ckpt_writer *writer, const char *run_dir, const tsr_state_view *view)
{
    tsr_comm *comm = writer->comm;
    tsr_status st = tsr_ckpt_check_view(view);

    st = st != TSR_OK ? st : check_table(view->table);
    st = st != TSR_OK ? st : make_root(writer, run_dir);
    TSR_TRY(tsr_comm_agree(comm, st));
    st = tsr_ckpt_exists(writer->root, ".")
             ? TSR_OK
             : TSR_FAIL(TSR_ERR_IO,
                        "%s was made by rank 0 but is not seen here: the run folder must "
                        "lie on a file system that all ranks share",
                        writer->root);
    TSR_TRY(tsr_comm_agree(comm, st));
    TSR_TRY(tsr_ckpt_gather_slices(comm, view, &writer->slices, &writer->slice_count));
    st = take_memory(writer, view);
    if (st == TSR_OK) {
        st = tsr_ckpt_shard_create(view->table, writer->slices, writer->slice_count,
                                   tsr_comm_rank(comm), &writer->shard);
    }
    TSR_TRY(tsr_comm_agree(comm, st));
    writer->all_bytes = writer->shard.bytes;
    return tsr_comm_all_reduce_u64(comm, &writer->all_bytes, 1, TSR_REDUCE_SUM);
}

tsr_status tsr_ckpt_writer_create(tsr_comm *comm, const char *run_dir,
                                  const tsr_checkpoint_config *config, const tsr_state_view *view,
                                  tsr_ckpt_writer **out)
{
    void *block = NULL;
    tsr_status st = tsr_mem_alloc(TSR_MEM_CHECKPOINT, sizeof(tsr_ckpt_writer), &block);

    st = tsr_comm_agree(comm, st);
    if (st != TSR_OK) {
        tsr_mem_free(block);
        return st;
    }
    tsr_ckpt_writer *writer = block;
    writer->comm = comm;
    writer->table = view->table;
    writer->config = *config;
    st = set_up(writer, run_dir, view);
    if (st != TSR_OK) {
        tsr_ckpt_writer_destroy(&writer);
        return st;
    }
    *out = writer;
    return TSR_OK;
}

static void join_thread(tsr_ckpt_writer *writer)
{
    if (writer->has_thread) {
        (void)pthread_join(writer->thread, NULL);
        writer->has_thread = false;
    }
}

void tsr_ckpt_writer_destroy(tsr_ckpt_writer **writer_p)
{
    tsr_ckpt_writer *writer = *writer_p;

    *writer_p = NULL;
    if (writer == NULL) {
        return;
    }
    join_thread(writer);
    tsr_ckpt_manifest_free(&writer->manifest);
    tsr_ckpt_shard_destroy(&writer->shard);
    tsr_mem_free(writer->staging);
    tsr_mem_free(writer->mine);
    tsr_mem_free(writer->digests);
    tsr_mem_free(writer->slices);
    tsr_mem_free(writer);
}

/* ---- starting a save ------------------------------------------------------------------------ */

static tsr_status check_same(const tsr_ckpt_writer *writer, const tsr_state_view *view)
{
    TSR_TRY(tsr_ckpt_check_view(view));
    TSR_CHECK(view->table == writer->table && view->slice_count == writer->mine_count, TSR_ERR_ARG,
              "the state has %d slices, the writer was made for %d of its own table",
              view->slice_count, writer->mine_count);
    TSR_CHECK(view->step >= 0, TSR_ERR_ARG, "step = %" PRId64 ", must be >= 0", view->step);
    for (int i = 0; i < view->slice_count; ++i) {
        const tsr_state_slice *a = &view->slices[i], *b = &writer->mine[i];
        TSR_CHECK(a->param == b->param && a->row_begin == b->row_begin &&
                      a->row_end == b->row_end && a->moment_dtype == b->moment_dtype,
                  TSR_ERR_ARG, "slice %d is not the one the writer was made for", i);
    }
    return TSR_OK;
}

static tsr_status copy_of(const void *data, size_t bytes, void **out)
{
    TSR_TRY(tsr_mem_alloc(TSR_MEM_CHECKPOINT, bytes, out));
    memcpy(*out, data, bytes);
    return TSR_OK;
}

static tsr_status copy_arrays(const tsr_state_view *view, tsr_ckpt_manifest *out)
{
    void *block = NULL;

    TSR_TRY(
        tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, view->array_count, sizeof *out->arrays, &block));
    out->arrays = block;
    for (; out->array_count < view->array_count; ++out->array_count) {
        const tsr_state_array *from = &view->arrays[out->array_count];
        tsr_ckpt_array *to = &out->arrays[out->array_count];

        TSR_TRY(copy_of(from->values, (size_t)from->count * sizeof *from->values, &block));
        to->values = block;
        to->count = from->count;
        (void)snprintf(to->name, sizeof to->name, "%s", from->name);
    }
    return TSR_OK;
}

/* What the manifest will say of the state, apart from digests. */
static tsr_status describe(const tsr_ckpt_writer *writer, const tsr_state_view *view,
                           tsr_ckpt_manifest *out)
{
    const int params = view->table->count, ranks = tsr_comm_size(writer->comm);
    void *block = NULL;

    *out = (tsr_ckpt_manifest){.step = view->step,
                               .tokens = view->tokens,
                               .data_position = view->data_position,
                               .seed = view->seed,
                               .tensor_count = params,
                               .shard_count = ranks};
    (void)snprintf(out->version, sizeof out->version, "%s", TSR_VERSION);
    TSR_TRY(tsr_mem_strdup(view->config_text != NULL ? view->config_text : "", &out->config_text));
    if (view->router_bias != NULL) {
        out->layers = view->layers;
        out->experts = view->experts;
        TSR_TRY(copy_of(view->router_bias, (size_t)(view->layers * view->experts) * sizeof(float),
                        &block));
        out->router_bias = block;
    }
    TSR_TRY(copy_arrays(view, out));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, ranks, sizeof(tsr_ckpt_file), &block));
    out->shards = block;
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, params, sizeof(tsr_ckpt_tensor), &block));
    out->tensors = block;
    for (int i = 0; i < params; ++i) {
        TSR_TRY(tsr_ckpt_tensor_of(&view->table->params[i], &out->tensors[i]));
    }
    return TSR_OK;
}

static void stage(tsr_ckpt_writer *writer, const tsr_state_view *view)
{
    for (int i = 0; i < view->slice_count; ++i) {
        const tsr_state_slice *from = &view->slices[i];
        tsr_state_slice *to = &writer->mine[i];
        const size_t moment = tsr_dtype_bytes(from->moment_dtype);
        if (!writer->config.async) {
            *to = *from;
        } else if (from->row_begin < from->row_end) {
            memcpy(to->master, from->master, slice_bytes(view->table, from, sizeof(float)));
            memcpy(to->m, from->m, slice_bytes(view->table, from, moment));
            memcpy(to->v, from->v, slice_bytes(view->table, from, moment));
        }
    }
}

static void *write_shard(void *argument)
{
    tsr_ckpt_writer *writer = argument;

    writer->code =
        tsr_ckpt_shard_write(&writer->shard, writer->target.work, tsr_comm_rank(writer->comm),
                             writer->mine, writer->digests, &writer->file_digest);
    if (writer->code != TSR_OK) {
        (void)snprintf(writer->message, sizeof writer->message, "%s", tsr_error_message());
    }
    atomic_store(&writer->phase, writer->code == TSR_OK ? TSR_CKPT_WRITTEN : TSR_CKPT_FAILED);
    return NULL;
}

static void start(tsr_ckpt_writer *writer)
{
    sigset_t all, before;

    memset(writer->digests, 0,
           (size_t)writer->table->count * TSR_CKPT_KINDS * sizeof *writer->digests);
    writer->code = TSR_OK;
    writer->in_flight = true;
    atomic_store(&writer->phase, TSR_CKPT_WRITING);
    /* signals are for the threads of the program, which wait for them */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    const int reason = pthread_create(&writer->thread, NULL, write_shard, writer);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    writer->has_thread = reason == 0;
    if (reason != 0) {
        writer->code = TSR_FAIL(TSR_ERR_NOMEM, "no thread to write with: %s", strerror(reason));
        (void)snprintf(writer->message, sizeof writer->message, "%s", tsr_error_message());
        atomic_store(&writer->phase, TSR_CKPT_FAILED);
    }
}

/* Rank 0 makes the folder; the others learn its name. */
static tsr_status prepare_folder(tsr_ckpt_writer *writer, int64_t step)
{
    const uint64_t manifest_guess = (uint64_t)writer->slice_count * TSR_CKPT_KINDS * 1024 + 65536;
    int is_replacing = 0;
    tsr_status st = TSR_OK;

    if (tsr_comm_rank(writer->comm) == 0) {
        st = tsr_ckpt_target_prepare(writer->root, step, writer->all_bytes + manifest_guess,
                                     &writer->target);
        is_replacing = st == TSR_OK && writer->target.is_replacing;
    }
    TSR_TRY(tsr_comm_agree(writer->comm, st));
    TSR_TRY(tsr_comm_broadcast(writer->comm, &is_replacing, sizeof is_replacing, 0));
    return tsr_ckpt_target_set(writer->root, step, is_replacing != 0, &writer->target);
}

tsr_status tsr_ckpt_save(tsr_ckpt_writer *writer, const tsr_state_view *view, double *staged_s_out)
{
    const double begin_s = now_s();
    tsr_ckpt_manifest manifest = {0};
    tsr_ckpt_result previous = {0};

    if (writer->in_flight) {
        TSR_TRY(tsr_ckpt_finish(writer, &previous));
        writer->ended = previous; /* told by the next progress */
    }
    tsr_status st = check_same(writer, view);
    st = st != TSR_OK ? st : describe(writer, view, &manifest);
    st = tsr_comm_agree(writer->comm, st);
    st = st != TSR_OK ? st : prepare_folder(writer, view->step);
    if (st != TSR_OK) {
        tsr_ckpt_manifest_free(&manifest);
        return st;
    }
    writer->manifest = manifest;
    writer->started_s = begin_s;
    stage(writer, view);
    start(writer);
    if (!writer->config.async) {
        TSR_TRY(tsr_ckpt_finish(writer, &previous));
        writer->ended = previous;
    }
    *staged_s_out = now_s() - begin_s;
    return TSR_OK;
}

/* ---- ending it ------------------------------------------------------------------------------ */

tsr_ckpt_phase tsr_ckpt_local_phase(tsr_ckpt_writer *writer)
{
    return writer->in_flight ? atomic_load(&writer->phase) : TSR_CKPT_IDLE;
}

static tsr_status combine(tsr_ckpt_writer *writer)
{
    tsr_ckpt_manifest *manifest = &writer->manifest;
    const tsr_ckpt_file mine = {.bytes = writer->shard.bytes, .digest = writer->file_digest};
    const int64_t count = (int64_t)writer->table->count * TSR_CKPT_KINDS;

    TSR_TRY(tsr_comm_all_reduce_u64(writer->comm, writer->digests, count, TSR_REDUCE_SUM));
    TSR_TRY(tsr_comm_all_gather(writer->comm, &mine, sizeof mine, manifest->shards));
    for (int i = 0; i < manifest->tensor_count; ++i) {
        memcpy(manifest->tensors[i].digest, writer->digests + (size_t)i * TSR_CKPT_KINDS,
               sizeof manifest->tensors[i].digest);
    }
    manifest->digest = tsr_ckpt_state_digest(manifest);
    tsr_ckpt_point();
    return TSR_OK;
}

static void clear_folder(const tsr_ckpt_writer *writer)
{
    if (tsr_ckpt_remove(writer->target.work) != TSR_OK) {
        tsr_log(TSR_LOG_WARN, "an unfinished checkpoint stays: %s", tsr_error_message());
    }
}

/* Digests on all ranks, then the manifest on rank 0. What fails before the manifest is durable
 * takes the folder with it; after that the checkpoint is complete and stays, whatever becomes of
 * us. */
static tsr_status conclude(tsr_ckpt_writer *writer)
{
    const bool is_first = tsr_comm_rank(writer->comm) == 0;
    char reason[sizeof writer->message];
    bool is_complete = false;
    tsr_status st = writer->code;

    if (st != TSR_OK) {
        st = TSR_FAIL(st, "%s", writer->message);
    }
    st = tsr_comm_agree(writer->comm, st);
    st = st != TSR_OK ? st : combine(writer);
    if (st == TSR_OK) {
        if (is_first) {
            st = tsr_ckpt_manifest_write(writer->target.work, &writer->manifest, writer->slices,
                                         writer->slice_count);
            is_complete = st == TSR_OK;
            st = st != TSR_OK ? st : tsr_ckpt_target_publish(&writer->target, writer->config.keep);
        }
        st = tsr_comm_agree(writer->comm, st);
    }
    if (st != TSR_OK && is_first && !is_complete) {
        (void)snprintf(reason, sizeof reason, "%s", tsr_error_message());
        clear_folder(writer);
        st = TSR_FAIL(st, "%s", reason);
    }
    return st;
}

static void take_ended(tsr_ckpt_writer *writer, tsr_ckpt_result *result_out)
{
    *result_out = writer->ended;
    writer->ended = (tsr_ckpt_result){0};
}

tsr_status tsr_ckpt_progress(tsr_ckpt_writer *writer, int written, int failed,
                             tsr_ckpt_result *result_out)
{
    *result_out = (tsr_ckpt_result){0};
    if (writer->ended.ended || !writer->in_flight) {
        take_ended(writer, result_out);
        return TSR_OK;
    }
    if (written + failed < tsr_comm_size(writer->comm)) {
        return TSR_OK;
    }
    join_thread(writer);
    const tsr_status st = conclude(writer);
    writer->in_flight = false;
    if (st == TSR_OK) {
        *result_out = (tsr_ckpt_result){.ended = true,
                                        .step = writer->manifest.step,
                                        .seconds = now_s() - writer->started_s,
                                        .bytes = writer->all_bytes,
                                        .digest = writer->manifest.digest};
        (void)snprintf(result_out->path, sizeof result_out->path, "%s", writer->target.final);
    }
    tsr_ckpt_manifest_free(&writer->manifest);
    return st;
}

tsr_status tsr_ckpt_finish(tsr_ckpt_writer *writer, tsr_ckpt_result *result_out)
{
    const struct timespec pause = {.tv_nsec = 2000000};
    const uint64_t size = (uint64_t)tsr_comm_size(writer->comm);

    *result_out = (tsr_ckpt_result){0};
    if (!writer->in_flight) {
        take_ended(writer, result_out);
        return TSR_OK;
    }
    for (;;) {
        /* short exchanges, so that a slow disk never looks like a dead peer */
        const tsr_ckpt_phase phase = tsr_ckpt_local_phase(writer);
        uint64_t counts[2] = {phase == TSR_CKPT_WRITTEN, phase == TSR_CKPT_FAILED};
        TSR_TRY(tsr_comm_all_reduce_u64(writer->comm, counts, 2, TSR_REDUCE_SUM));
        if (counts[0] + counts[1] == size) {
            writer->ended = (tsr_ckpt_result){0};
            return tsr_ckpt_progress(writer, (int)counts[0], (int)counts[1], result_out);
        }
        (void)nanosleep(&pause, NULL);
    }
}
