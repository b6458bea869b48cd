/* The two large operations: every rank talks straight to every other, in chunks.
 *
 *   distance k = 1 .. P-1: send to rank + k, receive from rank - k (mod P)
 *
 * Each direction is a lane with two chunks under way, so that one travels while the other is
 * summed. Lanes do not wait for each other, and each walks the distances in ascending order: the
 * rank that this one sends to at distance k has this one as its source at distance k, so no cycle
 * can form. */
#include "collectives/mpi/mpi_impl.h"

#include <string.h>

enum { UNDER_WAY = 2 };

typedef struct lane {
    int direction;        /* 1: send, -1: receive */
    int distance;         /* of the peer whose part is posted next; P: all posted */
    size_t at;            /* bytes of that part posted so far */
    int64_t done, posted; /* chunks; slots are taken in turn */
    struct {
        MPI_Request request;
        char *to; /* of a received chunk that is to be summed */
        size_t bytes;
    } slot[UNDER_WAY];
} lane;

typedef struct exchange {
    comm_mpi *self;
    const char *name;
    int tag;
    char *values;
    size_t element_bytes, message_bytes;
    const int64_t *cuts;
    bool sums; /* reduce-scatter: parts travel to their owners; else from them */
    lane lanes[2];
} exchange;

/* y += x; both are in cache or streamed, so plain vectors of the base instruction set suffice. */
static void add(float *restrict y, const float *restrict x, size_t count)
{
    for (size_t i = 0; i < count; ++i) {
        y[i] += x[i];
    }
}

/* Post the lane's next chunk; nothing when all have been. */
static int post(exchange *x, lane *l)
{
    const int size = x->self->base.size, rank = x->self->base.rank;

    while (l->distance < size) {
        const int peer = (rank + l->direction * l->distance + size) % size;
        const int owner = (l->direction == 1) == x->sums ? peer : rank;
        const size_t first = (size_t)x->cuts[owner] * x->element_bytes;
        const size_t part = (size_t)x->cuts[owner + 1] * x->element_bytes - first;
        const size_t left = part - l->at;
        const size_t bytes = left < x->message_bytes ? left : x->message_bytes;
        const int64_t at = l->posted % UNDER_WAY;
        char *place = x->values + first + l->at;

        if (bytes == 0) {
            ++l->distance;
            l->at = 0;
            continue;
        }
        l->slot[at].to = place;
        l->slot[at].bytes = bytes;
        l->at += bytes;
        ++l->posted;
        if (l->direction == 1) {
            return MPI_Isend(place, (int)bytes, MPI_BYTE, peer, x->tag, x->self->handle,
                             &l->slot[at].request);
        }
        return MPI_Irecv(x->sums ? x->self->chunk[at] : place, (int)bytes, MPI_BYTE, peer, x->tag,
                         x->self->handle, &l->slot[at].request);
    }
    return MPI_SUCCESS;
}

/* Look at the lane's oldest chunk; finish it and post another one if it has passed. */
static int advance(exchange *x, lane *l, bool *moved)
{
    const int64_t at = l->done % UNDER_WAY;
    int passed = 0;

    if (l->done == l->posted) {
        return MPI_SUCCESS;
    }
    const int rc = MPI_Test(&l->slot[at].request, &passed, MPI_STATUS_IGNORE);
    if (rc != MPI_SUCCESS || !passed) {
        return rc;
    }
    if (x->sums && l->direction == -1) {
        add((float *)(void *)l->slot[at].to, (const float *)(const void *)x->self->chunk[at],
            l->slot[at].bytes / sizeof(float));
    }
    ++l->done;
    *moved = true;
    return post(x, l);
}

/* After a failure: the caller's memory must not be written to when a lost peer wakes up. */
static void withdraw(lane *l)
{
    for (; l->done < l->posted; ++l->done) {
        MPI_Request *request = &l->slot[l->done % UNDER_WAY].request;
        if (l->direction == -1) {
            (void)MPI_Cancel(request);
        }
        (void)MPI_Request_free(request);
    }
}

static tsr_status run(exchange *x)
{
    lane *receive = &x->lanes[0], *send = &x->lanes[1];
    tsr_status st = TSR_OK;
    waiter wait = {0};
    int rc = MPI_SUCCESS;

    *receive = (lane){.direction = -1, .distance = 1};
    *send = (lane){.direction = 1, .distance = 1};
    for (int i = 0; i < 2 * UNDER_WAY && rc == MPI_SUCCESS; ++i) {
        rc = post(x, &x->lanes[i % 2]);
    }
    while (rc == MPI_SUCCESS && st == TSR_OK &&
           (receive->done < receive->posted || send->done < send->posted)) {
        bool moved = false;
        rc = advance(x, receive, &moved);
        if (rc == MPI_SUCCESS) {
            rc = advance(x, send, &moved);
        }
        if (moved) {
            wait = (waiter){0};
        } else if (rc == MPI_SUCCESS) {
            st = mpi_pause(x->self, &wait, x->name);
        }
    }
    if (rc != MPI_SUCCESS) {
        st = mpi_fail(x->self, rc, x->name);
    }
    if (st != TSR_OK) {
        withdraw(receive);
        withdraw(send);
    }
    return st;
}

tsr_status mpi_reduce_scatter_f32(tsr_comm *comm, float *values, const int64_t *cuts)
{
    comm_mpi *self = (comm_mpi *)comm;
    exchange x = {.self = self,
                  .message_bytes = self->chunk_bytes,
                  .name = "reduce-scatter",
                  .tag = TAG_REDUCE_SCATTER,
                  .values = (char *)values,
                  .element_bytes = sizeof *values,
                  .cuts = cuts,
                  .sums = true};

    return run(&x);
}

tsr_status mpi_all_gather_parts(tsr_comm *comm, void *values, size_t element_bytes,
                                const int64_t *cuts)
{
    comm_mpi *self = (comm_mpi *)comm;
    exchange x = {.self = self,
                  .message_bytes = self->direct_bytes,
                  .name = "all-gather",
                  .tag = TAG_GATHER_PARTS,
                  .values = values,
                  .element_bytes = element_bytes,
                  .cuts = cuts};

    return run(&x);
}
