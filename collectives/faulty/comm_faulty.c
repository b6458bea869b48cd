/* A communicator that misbehaves on purpose, over one that does not. */
#include "collectives/comm_impl.h"

#include <inttypes.h>
#include <time.h>

typedef struct comm_faulty {
    tsr_comm base; /* first */
    tsr_comm *inner;
    tsr_comm_fault fault;
    int64_t calls;
} comm_faulty;

/* Before each call is passed on: be late, or fail without entering it. */
static tsr_status disturb(tsr_comm *comm)
{
    comm_faulty *self = (comm_faulty *)comm;
    const tsr_comm_fault *fault = &self->fault;

    ++self->calls;
    if (fault->max_delay_s > 0) {
        const uint64_t key = fault->seed + (uint64_t)comm->rank;
        const double delay_s = fault->max_delay_s * tsr_rng_uniform(key, (uint64_t)self->calls);
        const struct timespec pause = {.tv_sec = (time_t)delay_s,
                                       .tv_nsec =
                                           (long)(1e9 * (delay_s - (double)(time_t)delay_s))};
        (void)nanosleep(&pause, NULL);
    }
    if (comm->rank == fault->rank && self->calls == fault->call) {
        return tsr_comm_end(comm,
                            TSR_FAIL(fault->code, "call %" PRId64 " fails on rank %d on purpose",
                                     self->calls, comm->rank));
    }
    return TSR_OK;
}

static tsr_status faulty_agree(tsr_comm *comm, tsr_status local)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_agree(((comm_faulty *)comm)->inner, local);
}

static tsr_status faulty_barrier(tsr_comm *comm)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_barrier(((comm_faulty *)comm)->inner);
}

static tsr_status faulty_broadcast(tsr_comm *comm, void *buffer, size_t bytes, int root)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_broadcast(((comm_faulty *)comm)->inner, buffer, bytes, root);
}

static tsr_status faulty_all_gather(tsr_comm *comm, const void *mine, size_t bytes, void *all)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_all_gather(((comm_faulty *)comm)->inner, mine, bytes, all);
}

static tsr_status faulty_reduce_scatter_f32(tsr_comm *comm, float *values, const int64_t *cuts)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_reduce_scatter_f32(((comm_faulty *)comm)->inner, values, cuts);
}

static tsr_status faulty_all_gather_parts(tsr_comm *comm, void *values, size_t element_bytes,
                                          const int64_t *cuts)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_all_gather_parts(((comm_faulty *)comm)->inner, values, element_bytes, cuts);
}

static tsr_status faulty_exchange(tsr_comm *comm, const tsr_exchange *exchange)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_exchange(((comm_faulty *)comm)->inner, exchange);
}

static tsr_status faulty_split(tsr_comm *comm, int color, int key, tsr_comm **comm_out)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_split(((comm_faulty *)comm)->inner, color, key, comm_out);
}

static tsr_status faulty_exchange_on(tsr_comm *comm, const tsr_exchange *exchange,
                                     tsr_stream *stream)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_exchange_on(((comm_faulty *)comm)->inner, exchange, stream);
}

static tsr_status faulty_reduce_scatter_f32_on(tsr_comm *comm, float *values, const int64_t *cuts,
                                               tsr_stream *stream)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_reduce_scatter_f32_on(((comm_faulty *)comm)->inner, values, cuts, stream);
}

static tsr_status faulty_all_gather_parts_on(tsr_comm *comm, void *values, size_t element_bytes,
                                             const int64_t *cuts, tsr_stream *stream)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_all_gather_parts_on(((comm_faulty *)comm)->inner, values, element_bytes, cuts,
                                        stream);
}

static tsr_status faulty_broadcast_on(tsr_comm *comm, void *buffer, size_t bytes, int root,
                                      tsr_stream *stream)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_broadcast_on(((comm_faulty *)comm)->inner, buffer, bytes, root, stream);
}

static tsr_status faulty_stream_wait(tsr_comm *comm, tsr_stream *stream)
{
    TSR_TRY(disturb(comm));
    return tsr_comm_stream_wait(((comm_faulty *)comm)->inner, stream);
}

static void faulty_destroy(tsr_comm *comm)
{
    tsr_mem_free(comm);
}

static const tsr_comm_ops faulty_ops = {
    .name = "faulty",
    .agree = faulty_agree,
    .barrier = faulty_barrier,
    .broadcast = faulty_broadcast,
    .all_gather = faulty_all_gather,
    .reduce_scatter_f32 = faulty_reduce_scatter_f32,
    .all_gather_parts = faulty_all_gather_parts,
    .exchange = faulty_exchange,
    .split = faulty_split,
    .destroy = faulty_destroy,
    .reduce_scatter_f32_on = faulty_reduce_scatter_f32_on,
    .all_gather_parts_on = faulty_all_gather_parts_on,
    .exchange_on = faulty_exchange_on,
    .broadcast_on = faulty_broadcast_on,
    .stream_wait = faulty_stream_wait,
};

tsr_status tsr_comm_create_faulty(tsr_comm *inner, const tsr_comm_fault *fault, tsr_comm **comm_out)
{
    void *block = NULL;

    *comm_out = NULL;
    TSR_TRY(tsr_mem_alloc(TSR_MEM_COMM, sizeof(comm_faulty), &block));
    comm_faulty *self = block;
    self->base = *inner; /* the same ranks, links and scratch */
    self->base.ops = &faulty_ops;
    self->base.parts[0] = inner;
    self->base.parts[1] = NULL;
    self->base.is_dead = false;
    self->base.counts_nothing = true; /* inner does */
    self->inner = inner;
    self->fault = *fault;
    *comm_out = &self->base;
    return TSR_OK;
}
