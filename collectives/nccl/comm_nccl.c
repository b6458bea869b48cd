/* The communicator: how it comes to be, what it leaves to the host's, how it ends.
 *
 *   rank 0                                    other ranks
 *   memory, event: verdict of all             (the same)
 *   who sits on which GPU, which options: compared by all
 *   unique id; verdict of all                 (the same)
 *   broadcast of the id by the host    --->
 *   init, polled; verdict of all              (the same)
 *
 * so that no rank waits inside NCCL for one that has failed before it. */
#include "collectives/nccl/nccl_impl.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    BUFFER_BYTES = 1 << 26, /* at P = 8: pieces of 9 MiB, long enough for full bandwidth */
    MOST_CTAS = 64          /* NCCL's own limit */
};

/* Where a rank sits, and what it wants: must be unlike its peers', and like theirs. */
typedef struct identity {
    char machine[64], gpu[32];
    int64_t buffer_bytes;
    int32_t max_ctas, library_sums, checks_order, version;
} identity;

/* ---- what the host's communicator does ------------------------------------------------------ */

/* Called by its backend's table, as its front end would count the bytes once more. It is alive: it
 * is a part. */
static tsr_comm *host_of(const tsr_comm *comm)
{
    return ((const comm_nccl *)comm)->host;
}

static tsr_status nccl_agree(tsr_comm *comm, tsr_status local)
{
    return tsr_comm_agree(host_of(comm), local);
}

static tsr_status nccl_barrier(tsr_comm *comm)
{
    return tsr_comm_barrier(host_of(comm));
}

static tsr_status nccl_broadcast(tsr_comm *comm, void *buffer, size_t bytes, int root)
{
    tsr_comm *host = host_of(comm);

    return host->ops->broadcast(host, buffer, bytes, root);
}

static tsr_status nccl_all_gather(tsr_comm *comm, const void *mine, size_t bytes, void *all)
{
    tsr_comm *host = host_of(comm);

    return host->ops->all_gather(host, mine, bytes, all);
}

static tsr_status nccl_reduce_scatter_f32(tsr_comm *comm, float *values, const int64_t *cuts)
{
    tsr_comm *host = host_of(comm);

    return host->ops->reduce_scatter_f32(host, values, cuts);
}

static tsr_status nccl_all_gather_parts(tsr_comm *comm, void *values, size_t element_bytes,
                                        const int64_t *cuts)
{
    tsr_comm *host = host_of(comm);

    return host->ops->all_gather_parts(host, values, element_bytes, cuts);
}

static tsr_status nccl_exchange(tsr_comm *comm, const tsr_exchange *exchange)
{
    tsr_comm *host = host_of(comm);

    return host->ops->exchange(host, exchange);
}

/* ---- begin and end -------------------------------------------------------------------------- */

static void free_all(comm_nccl *self)
{
    if (self != NULL) {
        if (self->handle != NULL) {
            (void)ncclCommAbort(self->handle);
        }
        nccl_unregister(self);
        tsr_event_destroy(&self->done);
        tsr_device_free(self->device, self->buffer);
        tsr_mem_free(self->sends);
        tsr_mem_free(self->receives);
        tsr_mem_free(self->segments);
        tsr_mem_free(self->one_each);
        tsr_mem_free(self);
    }
}

static void nccl_destroy(tsr_comm *comm)
{
    comm_nccl *self = (comm_nccl *)comm;

    if (!tsr_comm_is_dead(comm) && self->handle != NULL) {
        ncclResult_t code = nccl_settle(self, ncclCommFinalize(self->handle));
        if (code == ncclSuccess) {
            code = ncclCommDestroy(self->handle);
            self->handle = NULL;
        }
        if (code != ncclSuccess) {
            tsr_log(TSR_LOG_WARN, "an nccl communicator of %d ranks was not freed: %s", comm->size,
                    ncclGetErrorString(code));
        }
    }
    free_all(self);
}

static const tsr_comm_ops nccl_ops = {
    .name = "nccl",
    .agree = nccl_agree,
    .barrier = nccl_barrier,
    .broadcast = nccl_broadcast,
    .all_gather = nccl_all_gather,
    .reduce_scatter_f32 = nccl_reduce_scatter_f32,
    .all_gather_parts = nccl_all_gather_parts,
    .exchange = nccl_exchange,
    .destroy = nccl_destroy,
    .reduce_scatter_f32_on = nccl_reduce_scatter_f32_on,
    .all_gather_parts_on = nccl_all_gather_parts_on,
    .broadcast_on = nccl_broadcast_on,
    .exchange_on = nccl_exchange_on,
    .stream_wait = nccl_stream_wait,
};

static tsr_status check_options(const tsr_nccl_options *options, int peers)
{
    TSR_CHECK(options->max_ctas >= 0 && options->max_ctas <= MOST_CTAS, TSR_ERR_ARG,
              "max_ctas = %d, must be in [0, %d]", options->max_ctas, MOST_CTAS);
    TSR_CHECK(options->buffer_bytes == 0 ||
                  options->buffer_bytes / TSR_NCCL_ACCESS >= (size_t)peers,
              TSR_ERR_ARG, "buffer_bytes = %zu, must hold %d for each of %d peers",
              options->buffer_bytes, TSR_NCCL_ACCESS, peers);
    return TSR_OK;
}

static tsr_status take_lists(comm_nccl *self)
{
    const int64_t size = self->base.size;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_COMM, size, sizeof *self->sends, (void **)&self->sends));
    TSR_TRY(
        tsr_mem_alloc_array(TSR_MEM_COMM, size, sizeof *self->receives, (void **)&self->receives));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_COMM, 2 * size, sizeof *self->segments,
                                (void **)&self->segments));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_COMM, size + 1, sizeof *self->one_each,
                                (void **)&self->one_each));
    for (int64_t i = 0; i <= size; ++i) {
        self->one_each[i] = i;
    }
    return TSR_OK;
}

/* All that only this rank can fail in before NCCL is called. */
static tsr_status take(tsr_comm *host, tsr_device *device, const tsr_nccl_options *options,
                       comm_nccl **self_out)
{
    comm_nccl *self = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(check_options(options, host->size - 1));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_COMM, sizeof *self, (void **)&self));
    self->base = *host; /* the same ranks, seats and scratch */
    self->base.ops = &nccl_ops;
    self->base.takes_device_memory = true;
    memset(self->base.bytes, 0, sizeof self->base.bytes);
    self->base.parts[0] = host;
    self->host = host;
    self->device = device;
    self->options = *options;
    if (host->size > 1) {
        self->buffer_bytes =
            options->buffer_bytes != 0 ? (int64_t)options->buffer_bytes : BUFFER_BYTES;
        TSR_TRY_GOTO(tsr_device_alloc(device, TSR_MEM_COMM, (size_t)self->buffer_bytes,
                                      (void **)&self->buffer),
                     err_free);
        TSR_TRY_GOTO(take_lists(self), err_free);
    }
    TSR_TRY_GOTO(tsr_event_create(device, &self->done), err_free); /* device is current from here */
    TSR_TRY_GOTO(nccl_register(self), err_free);
    *self_out = self;
    return TSR_OK;

err_free:
    free_all(self);
    return st;
}

/* ---- who is where --------------------------------------------------------------------------- */

/* Containers share a machine, and may share its name: the running kernel is what tells. */
static void name_machine(char *text, size_t size)
{
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");

    if (file == NULL || fgets(text, (int)size, file) == NULL) {
        (void)gethostname(text, size - 1);
    }
    if (file != NULL) {
        (void)fclose(file);
    }
}

static tsr_status identify(const comm_nccl *self, identity *own)
{
    int index = 0, version = 0;

    *own = (identity){.buffer_bytes = (int64_t)self->options.buffer_bytes,
                      .max_ctas = self->options.max_ctas,
                      .library_sums = self->options.library_sums,
                      .checks_order = self->options.checks_order};
    name_machine(own->machine, sizeof own->machine);
    cudaError_t code = cudaGetDevice(&index);
    if (code == cudaSuccess) {
        code = cudaDeviceGetPCIBusId(own->gpu, sizeof own->gpu, index);
    }
    TSR_CHECK(code == cudaSuccess, TSR_ERR_DEVICE, "cudaDeviceGetPCIBusId: %s",
              cudaGetErrorString(code));
    TSR_CHECK(ncclGetVersion(&version) == ncclSuccess, TSR_ERR_COMM, "NCCL tells no version");
    own->version = version;
    return TSR_OK;
}

/* Every rank has all identities, so all come to the same verdict. */
static tsr_status compare(const identity *all, int size)
{
    for (int rank = 1; rank < size; ++rank) {
        const identity *own = &all[rank];

        TSR_CHECK(own->version == all[0].version, TSR_ERR_UNSUPPORTED,
                  "NCCL is %d on rank 0 and %d on rank %d: all need the same", all[0].version,
                  own->version, rank);
        TSR_CHECK(own->buffer_bytes == all[0].buffer_bytes && own->max_ctas == all[0].max_ctas &&
                      own->library_sums == all[0].library_sums &&
                      own->checks_order == all[0].checks_order,
                  TSR_ERR_ARG, "options of nccl differ between ranks 0 and %d", rank);
        for (int other = 0; other < rank; ++other) {
            TSR_CHECK(strcmp(own->machine, all[other].machine) != 0 ||
                          strcmp(own->gpu, all[other].gpu) != 0,
                      TSR_ERR_UNSUPPORTED,
                      "ranks %d and %d share the GPU %s, which NCCL refuses: give each its own, or "
                      "use collectives by mpi, which stage through the host",
                      other, rank, own->gpu);
        }
    }
    return TSR_OK;
}

static tsr_status meet(comm_nccl *self)
{
    TSR_CHECK(self != NULL, TSR_ERR_INTERNAL, "the nccl communicator got lost");
    const int size = self->base.size;
    identity own, *all = NULL;
    tsr_status st = tsr_mem_alloc_array(TSR_MEM_COMM, size, sizeof *all, (void **)&all);

    if (st == TSR_OK) {
        st = identify(self, &own);
    }
    st = tsr_comm_agree(self->host, st);
    if (st == TSR_OK) {
        st = tsr_comm_all_gather(self->host, &own, sizeof own, all);
    }
    if (st == TSR_OK) {
        st = compare(all, size);
    }
    tsr_mem_free(all);
    return st;
}

/* ---- NCCL's own communicator ---------------------------------------------------------------- */

static tsr_status share_id(comm_nccl *self, ncclUniqueId *id_out)
{
    tsr_status st = TSR_OK;

    if (self->base.rank == 0) {
        const ncclResult_t code = ncclGetUniqueId(id_out);
        st = code == ncclSuccess ? TSR_OK : nccl_fail(self, code, "ncclGetUniqueId");
    }
    TSR_TRY(tsr_comm_agree(self->host, st));
    return tsr_comm_broadcast(self->host, id_out, sizeof *id_out, 0);
}

static tsr_status join(comm_nccl *self, ncclUniqueId id)
{
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;

    config.blocking = 0;
    if (self->options.max_ctas > 0) {
        config.maxCTAs = self->options.max_ctas;
    }
    ncclResult_t code =
        ncclCommInitRankConfig(&self->handle, self->base.size, id, self->base.rank, &config);
    code = nccl_settle(self, code);
    TSR_CHECK(code != ncclInProgress, TSR_ERR_TIMEOUT,
              "NCCL has not connected %d ranks within %g s: check the network that it chose "
              "(NCCL_DEBUG=INFO, NCCL_SOCKET_IFNAME)",
              self->base.size, self->base.timeout_s / 2);
    return code == ncclSuccess ? TSR_OK : nccl_fail(self, code, "ncclCommInitRankConfig");
}

__attribute__((visibility("default"))) tsr_status
tsr_nccl_comm_create(tsr_comm *host, tsr_device *device, const tsr_nccl_options *options,
                     tsr_comm **comm_out)
{
    comm_nccl *self = NULL;
    ncclUniqueId id;
    tsr_status st = TSR_OK;

    memset(&id, 0, sizeof id);
    TSR_TRY_GOTO(tsr_comm_agree(host, take(host, device, options, &self)), err_free);
    TSR_TRY_GOTO(meet(self), err_free);
    TSR_TRY_GOTO(share_id(self, &id), err_free);
    TSR_TRY_GOTO(tsr_comm_agree(host, join(self, id)), err_free);
    *comm_out = &self->base;
    return TSR_OK;

err_free:
    free_all(self);
    return st;
}
