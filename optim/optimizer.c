/* The sharded state: taking it, filling it, showing it to checkpoints. */
#include "optim/optim_impl.h"

#include <inttypes.h>
#include <string.h>

static int64_t shard_length(const shard *s)
{
    return s->end - s->begin;
}

static char *working_part(const tsr_optimizer *optimizer, int group)
{
    const tsr_weights *weights = optimizer->weights;

    return (char *)weights->value[group] +
           (size_t)optimizer->shards[group].begin * tsr_dtype_bytes(weights->dtype[group]);
}

size_t tsr_optimizer_bytes(const tsr_optim_config *config, const tsr_param_table *table,
                           tsr_dtype compute, const int parts[TSR_GROUPS],
                           const int part[TSR_GROUPS])
{
    size_t bytes = 0;

    for (int g = 0; g < TSR_GROUPS; ++g) {
        const tsr_param_group group = (tsr_param_group)g;
        const size_t length = (size_t)(tsr_shard_cut(table, group, parts[g], part[g] + 1) -
                                       tsr_shard_cut(table, group, parts[g], part[g]));
        const bool is_shared = g == TSR_GROUP_FLOAT || compute == TSR_F32;

        bytes += length * 2 * tsr_dtype_bytes((tsr_dtype)config->moments);
        bytes += is_shared ? 0 : length * sizeof(float);
    }
    return bytes;
}

static tsr_status take(tsr_device *device, int64_t count, size_t size, void **out)
{
    return tsr_device_alloc(device, TSR_MEM_OPTIMIZER, (size_t)count * size, out);
}

static tsr_status take_staging(tsr_device *device, int64_t count, size_t size, void **out)
{
    return tsr_device_alloc_staging(device, TSR_MEM_OPTIMIZER, (size_t)count * size, out);
}

static tsr_status take_shard(tsr_optimizer *optimizer, int group)
{
    const tsr_weights *weights = optimizer->weights;
    tsr_device *device = weights->device;
    shard *s = &optimizer->shards[group];
    const int size = tsr_comm_size(s->comm), rank = tsr_comm_rank(s->comm);
    const size_t moment_bytes = tsr_dtype_bytes(optimizer->moments);

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OPTIMIZER, size + 1, sizeof *s->cuts, (void **)&s->cuts));
    for (int part = 0; part <= size; ++part) {
        s->cuts[part] = tsr_shard_cut(weights->table, (tsr_param_group)group, size, part);
    }
    s->begin = s->cuts[rank];
    s->end = s->cuts[rank + 1];
    s->is_shared = weights->dtype[group] == TSR_F32;
    const int64_t length = shard_length(s);
    if (s->is_shared) {
        s->master = (float *)weights->value[group] + s->begin;
    } else {
        TSR_TRY(take(device, length, sizeof(float), (void **)&s->master));
    }
    TSR_TRY(take(device, length, moment_bytes, &s->m));
    TSR_TRY(take(device, length, moment_bytes, &s->v));
    if (tsr_device_is_host(device)) {
        s->host_master = s->master;
        s->host_m = s->m;
        s->host_v = s->v;
        return TSR_OK;
    }
    TSR_TRY(take_staging(device, length, sizeof(float), (void **)&s->host_master));
    TSR_TRY(take_staging(device, length, moment_bytes, &s->host_m));
    return take_staging(device, length, moment_bytes, &s->host_v);
}

static void free_shard(tsr_device *device, shard *s)
{
    if (!tsr_device_is_host(device)) {
        tsr_device_free_staging(device, s->host_master);
        tsr_device_free_staging(device, s->host_m);
        tsr_device_free_staging(device, s->host_v);
    }
    if (!s->is_shared) {
        tsr_device_free(device, s->master);
    }
    tsr_device_free(device, s->m);
    tsr_device_free(device, s->v);
    tsr_mem_free(s->cuts);
}

/* Runs of rows that follow one another in the whole table: at most one an expert, one elsewhere. */
static int64_t most_slices(const tsr_param_table *table)
{
    int64_t count = 0;

    for (int i = 0; i < table->count; ++i) {
        count += table->params[i].expert != NULL ? table->params[i].shape[0] : 1;
    }
    return count;
}

/* Own local rows [begin, end) of one parameter, as far as they are one run of the whole tensor. */
static void add_slice(tsr_optimizer *optimizer, int index, int64_t begin, int64_t end)
{
    const size_t moment_bytes = tsr_dtype_bytes(optimizer->moments);
    const tsr_param *param = &optimizer->weights->table->params[index];
    const shard *s = &optimizer->shards[param->group];
    const int64_t first = param->offset + begin * param->width, at = first - s->begin;
    const int64_t global = tsr_param_global_row(param, begin);

    optimizer->firsts[optimizer->slice_count] = first;
    optimizer->slices[optimizer->slice_count++] =
        (tsr_state_slice){.param = index,
                          .row_begin = global,
                          .row_end = global + end - begin,
                          .master = s->host_master + at,
                          .m = (char *)s->host_m + (size_t)at * moment_bytes,
                          .v = (char *)s->host_v + (size_t)at * moment_bytes,
                          .moment_dtype = optimizer->moments};
}

static tsr_status take_slices(tsr_optimizer *optimizer)
{
    const tsr_param_table *table = optimizer->weights->table;
    const int64_t most = most_slices(table);

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OPTIMIZER, most, sizeof *optimizer->slices,
                                (void **)&optimizer->slices));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OPTIMIZER, most, sizeof *optimizer->firsts,
                                (void **)&optimizer->firsts));
    for (int i = 0; i < table->count; ++i) {
        const tsr_param *param = &table->params[i];
        const shard *s = &optimizer->shards[param->group];
        int64_t begin = 0, end = 0;

        tsr_param_rows_between(param, s->begin, s->end, &begin, &end);
        while (begin < end) {
            const int64_t run = tsr_param_run_end(param, begin);
            const int64_t stop = run < end ? run : end;

            add_slice(optimizer, i, begin, stop);
            begin = stop;
        }
    }
    return TSR_OK;
}

static bool is_staged(const tsr_optimizer *optimizer, int group)
{
    const tsr_comm *comm = optimizer->shards[group].comm;

    return !tsr_device_is_host(optimizer->weights->device) && tsr_comm_size(comm) > 1 &&
           !tsr_comm_takes_device_memory(comm);
}

static tsr_status take_memory(tsr_optimizer *optimizer)
{
    tsr_device *device = optimizer->weights->device;
    int64_t longest = 0;

    for (int g = 0; g < TSR_GROUPS; ++g) {
        const int64_t length = optimizer->weights->table->group_elements[g];
        if (is_staged(optimizer, g) && length > longest) {
            longest = length;
        }
        TSR_TRY(take_shard(optimizer, g));
    }
    TSR_TRY(take(device, TSR_GROUPS, sizeof(double), (void **)&optimizer->squares));
    if (longest > 0) {
        TSR_TRY(take_staging(device, longest, sizeof(float), &optimizer->staging));
    }
    TSR_TRY(tsr_stream_create(device, &optimizer->copies));
    return take_slices(optimizer);
}

tsr_status tsr_optimizer_create(const tsr_optim_config *config, tsr_weights *weights,
                                tsr_comm *const groups[TSR_GROUPS], tsr_optimizer **out)
{
    void *block = NULL;

    *out = NULL;
    for (int g = 0; g < TSR_GROUPS; ++g) {
        TSR_CHECK(weights->table->group_elements[g] == 0 || weights->gradient[g] != NULL,
                  TSR_ERR_ARG, "group %d of the weights has no gradients to learn from", g);
    }
    tsr_status st = tsr_mem_alloc(TSR_MEM_OPTIMIZER, sizeof(tsr_optimizer), &block);
    tsr_optimizer *optimizer = block;
    if (st == TSR_OK) {
        optimizer->config = *config;
        optimizer->weights = weights;
        optimizer->moments = (tsr_dtype)config->moments;
        for (int g = 0; g < TSR_GROUPS; ++g) {
            optimizer->shards[g].comm = groups[g];
        }
        st = take_memory(optimizer);
    }
    for (int g = 0; g < TSR_GROUPS; ++g) { /* memory is local: nobody goes on alone */
        st = tsr_comm_agree(groups[g], st);
    }
    if (st != TSR_OK) {
        tsr_optimizer_destroy(&optimizer);
        return st;
    }
    *out = optimizer;
    return TSR_OK;
}

void tsr_optimizer_destroy(tsr_optimizer **optimizer_p)
{
    tsr_optimizer *optimizer = *optimizer_p;

    if (optimizer == NULL) {
        return;
    }
    for (int g = 0; g < TSR_GROUPS; ++g) {
        free_shard(optimizer->weights->device, &optimizer->shards[g]);
    }
    tsr_device_free(optimizer->weights->device, optimizer->squares);
    tsr_device_free_staging(optimizer->weights->device, optimizer->staging);
    tsr_stream_destroy(&optimizer->copies);
    tsr_mem_free(optimizer->slices);
    tsr_mem_free(optimizer->firsts);
    tsr_mem_free(optimizer);
    *optimizer_p = NULL;
}

/* Move the own state between the device and its mirror on the host. */
static tsr_status copy_state(tsr_optimizer *optimizer, tsr_copy_kind kind, tsr_stream *stream)
{
    tsr_device *device = optimizer->weights->device;
    const size_t moment_bytes = tsr_dtype_bytes(optimizer->moments);
    const bool to_host = kind == TSR_COPY_DEVICE_TO_HOST;

    for (int g = 0; g < TSR_GROUPS && !tsr_device_is_host(device); ++g) {
        const shard *s = &optimizer->shards[g];
        const struct {
            void *far, *near;
            size_t bytes;
        } blocks[] = {
            {s->master, s->host_master, (size_t)shard_length(s) * sizeof(float)},
            {s->m, s->host_m, (size_t)shard_length(s) * moment_bytes},
            {s->v, s->host_v, (size_t)shard_length(s) * moment_bytes},
        };
        for (size_t i = 0; i < sizeof blocks / sizeof *blocks; ++i) {
            TSR_TRY(tsr_device_copy(device, to_host ? blocks[i].near : blocks[i].far,
                                    to_host ? blocks[i].far : blocks[i].near, blocks[i].bytes, kind,
                                    stream));
        }
    }
    return tsr_stream_wait(stream);
}

tsr_status tsr_optimizer_slices(tsr_optimizer *optimizer, const tsr_state_slice **slices_out,
                                int *count_out)
{
    /* every step ends with its stream waited for, so that any stream may copy */
    TSR_TRY(copy_state(optimizer, TSR_COPY_DEVICE_TO_HOST, optimizer->copies));
    *slices_out = optimizer->slices;
    *count_out = optimizer->slice_count;
    return TSR_OK;
}

tsr_status tsr_optimizer_init(tsr_optimizer *optimizer, uint64_t seed, tsr_stream *stream)
{
    const size_t moment_bytes = tsr_dtype_bytes(optimizer->moments);

    for (int i = 0; i < optimizer->slice_count; ++i) {
        const tsr_state_slice *slice = &optimizer->slices[i];
        const tsr_param *param = &optimizer->weights->table->params[slice->param];
        const int64_t count = (slice->row_end - slice->row_begin) * param->width;

        tsr_param_init(param, seed, slice->row_begin * param->width, count, slice->master);
        memset(slice->m, 0, (size_t)count * moment_bytes);
        memset(slice->v, 0, (size_t)count * moment_bytes);
    }
    return tsr_optimizer_refresh(optimizer, stream);
}

tsr_status tsr_optimizer_refresh(tsr_optimizer *optimizer, tsr_stream *stream)
{
    TSR_TRY(copy_state(optimizer, TSR_COPY_HOST_TO_DEVICE, stream));
    for (int g = 0; g < TSR_GROUPS; ++g) {
        const shard *s = &optimizer->shards[g];
        if (!s->is_shared && shard_length(s) > 0) {
            TSR_TRY(tsr_op_convert(optimizer->weights->device, s->master, TSR_F32,
                                   working_part(optimizer, g), optimizer->weights->dtype[g],
                                   shard_length(s), stream));
        }
        TSR_TRY(optim_share(optimizer, g, stream));
    }
    return optim_wait(optimizer, stream);
}
