/* The large operations: every rank talks straight to every other, in chunks.
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
    int direction;               /* 1: send, -1: receive */
    char *memory;                /* that its segments lie in */
    const tsr_segment *segments; /* of all peers */
    const int64_t *begin;        /* [P+1] */
    int distance;                /* of the peer whose segments are posted; P: all are */
    int64_t segment, at;         /* of those of this peer, and how much of it is posted */
    int64_t done, posted;        /* chunks; slots are taken in turn */
    struct {
        MPI_Request request;
        char *to; /* of a received chunk that is to be summed */
        size_t bytes;
    } slot[UNDER_WAY];
} lane;

typedef struct exchange {
    comm_mpi *self;
    const char *name;
    size_t message_bytes;
    bool sums;
    lane lanes[2];
} exchange;

/* y += x; both are in cache or streamed, so plain vectors of the base instruction set suffice. */
static void add(float *restrict y, const float *restrict x, size_t count)
{
    for (size_t i = 0; i < count; ++i) {
        y[i] += x[i];
    }
}

/* Go to the next piece of what is left to post; false when there is none. */
static bool find_piece(const exchange *x, lane *l, int *peer)
{
    const int size = x->self->base.size, rank = x->self->base.rank;

    for (; l->distance < size; ++l->distance, l->segment = 0) {
        *peer = (rank + l->direction * l->distance + size) % size;
        const int64_t count = l->begin[*peer + 1] - l->begin[*peer];
        for (; l->segment < count; ++l->segment, l->at = 0) {
            if (l->at < l->segments[l->begin[*peer] + l->segment].bytes) {
                return true;
            }
        }
    }
    return false;
}

/* Post the lane's next chunk; nothing when all have been. */
static int post(exchange *x, lane *l)
{
    const int64_t slot = l->posted % UNDER_WAY;
    int peer = 0;

    if (!find_piece(x, l, &peer)) {
        return MPI_SUCCESS;
    }
    const tsr_segment *segment = &l->segments[l->begin[peer] + l->segment];
    const size_t left = (size_t)(segment->bytes - l->at);
    const size_t bytes = left < x->message_bytes ? left : x->message_bytes;
    char *place = l->memory + segment->at + l->at;

    l->slot[slot].to = place;
    l->slot[slot].bytes = bytes;
    l->at += (int64_t)bytes;
    ++l->posted;
    if (l->direction == 1) {
        return MPI_Isend(place, (int)bytes, MPI_BYTE, peer, TAG_EXCHANGE, x->self->handle,
                         &l->slot[slot].request);
    }
    return MPI_Irecv(x->sums ? x->self->chunk[slot] : place, (int)bytes, MPI_BYTE, peer,
                     TAG_EXCHANGE, x->self->handle, &l->slot[slot].request);
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

static tsr_status run(comm_mpi *self, const tsr_exchange *what, const char *name)
{
    exchange x = {.self = self,
                  .name = name,
                  .message_bytes = what->sums ? self->chunk_bytes : self->direct_bytes,
                  .sums = what->sums};
    lane *receive = &x.lanes[0], *send = &x.lanes[1];
    tsr_status st = TSR_OK;
    waiter wait = {0};
    int rc = MPI_SUCCESS;

    *receive = (lane){.direction = -1,
                      .memory = what->receive,
                      .segments = what->receive_segments,
                      .begin = what->receive_begin,
                      .distance = 1};
    *send = (lane){.direction = 1,
                   .memory = (char *)what->send, /* MPI only reads it */
                   .segments = what->send_segments,
                   .begin = what->send_begin,
                   .distance = 1};
    for (int i = 0; i < 2 * UNDER_WAY && rc == MPI_SUCCESS; ++i) {
        rc = post(&x, &x.lanes[i % 2]);
    }
    while (rc == MPI_SUCCESS && st == TSR_OK &&
           (receive->done < receive->posted || send->done < send->posted)) {
        bool moved = false;
        rc = advance(&x, receive, &moved);
        if (rc == MPI_SUCCESS) {
            rc = advance(&x, send, &moved);
        }
        if (moved) {
            wait = (waiter){0};
        } else if (rc == MPI_SUCCESS) {
            st = mpi_pause(self, &wait, name);
        }
    }
    if (rc != MPI_SUCCESS) {
        st = mpi_fail(self, rc, name);
    }
    if (st != TSR_OK) {
        withdraw(receive);
        withdraw(send);
    }
    return st;
}

tsr_status mpi_exchange(tsr_comm *comm, const tsr_exchange *what)
{
    return run((comm_mpi *)comm, what, tsr_traffic_name(what->purpose));
}

/* Parts of one buffer: one segment to each peer and one from it, none for this rank. */
static tsr_status exchange_parts(comm_mpi *self, void *values, size_t element_bytes,
                                 const int64_t *cuts, bool sums, const char *name)
{
    const int size = self->base.size, rank = self->base.rank;
    tsr_segment *theirs = self->segments, *mine = theirs + size;

    for (int peer = 0; peer < size; ++peer) {
        const int64_t at[2] = {cuts[peer], cuts[rank]};
        const int64_t count[2] = {cuts[peer + 1] - cuts[peer], cuts[rank + 1] - cuts[rank]};
        const int64_t bytes = peer == rank ? 0 : (int64_t)element_bytes;

        theirs[peer] = (tsr_segment){at[0] * (int64_t)element_bytes, count[0] * bytes};
        mine[peer] = (tsr_segment){at[1] * (int64_t)element_bytes, count[1] * bytes};
    }
    const tsr_exchange what = {.send = values,
                               .receive = values,
                               .send_segments = sums ? theirs : mine,
                               .receive_segments = sums ? mine : theirs,
                               .send_begin = self->one_each,
                               .receive_begin = self->one_each,
                               .sums = sums};
    return run(self, &what, name);
}

tsr_status mpi_reduce_scatter_f32(tsr_comm *comm, float *values, const int64_t *cuts)
{
    return exchange_parts((comm_mpi *)comm, values, sizeof *values, cuts, true, "reduce-scatter");
}

tsr_status mpi_all_gather_parts(tsr_comm *comm, void *values, size_t element_bytes,
                                const int64_t *cuts)
{
    return exchange_parts((comm_mpi *)comm, values, element_bytes, cuts, false, "all-gather");
}
