#include "collectives/comm_impl.h"

#include <string.h>

/* A rank alone: what it has is already the sum, the copy and the verdict. */
static tsr_status self_agree(tsr_comm *comm, tsr_status local)
{
    (void)comm;
    return local;
}

static tsr_status self_barrier(tsr_comm *comm)
{
    (void)comm;
    return TSR_OK;
}

static tsr_status self_broadcast(tsr_comm *comm, void *buffer, size_t bytes, int root)
{
    (void)comm;
    (void)buffer;
    (void)bytes;
    (void)root;
    return TSR_OK;
}

static tsr_status self_all_gather(tsr_comm *comm, const void *mine, size_t bytes, void *all)
{
    (void)comm;
    memmove(all, mine, bytes);
    return TSR_OK;
}

static tsr_status self_reduce_scatter_f32(tsr_comm *comm, float *values, const int64_t *cuts)
{
    (void)comm;
    (void)values;
    (void)cuts;
    return TSR_OK;
}

static tsr_status self_all_gather_parts(tsr_comm *comm, void *values, size_t element_bytes,
                                        const int64_t *cuts)
{
    (void)comm;
    (void)values;
    (void)element_bytes;
    (void)cuts;
    return TSR_OK;
}

static tsr_status self_exchange(tsr_comm *comm, const tsr_exchange *exchange)
{
    (void)comm;
    (void)exchange; /* a rank has nothing for itself */
    return TSR_OK;
}

static tsr_status self_split(tsr_comm *comm, int color, int key, tsr_comm **comm_out)
{
    (void)comm;
    (void)color;
    (void)key;
    return tsr_comm_create_self(comm_out);
}

static void self_destroy(tsr_comm *comm)
{
    tsr_mem_free(comm);
}

static const tsr_comm_ops self_ops = {
    .name = "self",
    .agree = self_agree,
    .barrier = self_barrier,
    .broadcast = self_broadcast,
    .all_gather = self_all_gather,
    .reduce_scatter_f32 = self_reduce_scatter_f32,
    .all_gather_parts = self_all_gather_parts,
    .exchange = self_exchange,
    .split = self_split,
    .destroy = self_destroy,
};

tsr_status tsr_comm_create_self(tsr_comm **comm_out)
{
    static const tsr_seat seat = {0};
    static const int name = 0;
    void *block = NULL;

    *comm_out = NULL;
    TSR_TRY(tsr_mem_alloc(TSR_MEM_COMM, sizeof(tsr_comm), &block));
    tsr_comm *comm = block;
    comm->ops = &self_ops;
    comm->size = 1;
    comm->local_size = 1;
    comm->seats = &seat;
    comm->names = &name;
    *comm_out = comm;
    return TSR_OK;
}
