#include "collectives/mpi/mpi_impl.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

enum {
    CHUNK_BYTES = 1 << 19,       /* two of them stay in a core's own cache while they are summed */
    DIRECT_BYTES = 1 << 24,      /* messages that go straight to their place */
    PIECE = TSR_COMM_PIECE_BYTES /* of one rank */
};

static tsr_status mpi_agree(tsr_comm *comm, tsr_status local)
{
    comm_mpi *self = (comm_mpi *)comm;
    MPI_Request request = MPI_REQUEST_NULL;
    int rc = MPI_SUCCESS;

    self->verdict = local == TSR_OK ? INT_MAX : comm->rank;
    rc = MPI_Iallreduce(&self->verdict, &self->first_bad, 1, MPI_INT, MPI_MIN, self->handle,
                        &request);
    TSR_TRY(mpi_wait(self, rc, &request, "agreement"));
    if (self->first_bad == INT_MAX) {
        return TSR_OK;
    }
    (void)snprintf(self->message, sizeof self->message, "%s", tsr_error_message());
    rc = MPI_Ibcast(self->message, sizeof self->message, MPI_CHAR, self->first_bad, self->handle,
                    &request);
    TSR_TRY(mpi_wait(self, rc, &request, "agreement"));
    return local != TSR_OK
               ? local
               : TSR_FAIL(TSR_ERR_PEER, "rank %d: %s", self->names[self->first_bad], self->message);
}

static tsr_status mpi_barrier(tsr_comm *comm)
{
    comm_mpi *self = (comm_mpi *)comm;
    MPI_Request request = MPI_REQUEST_NULL;
    const int rc = MPI_Ibarrier(self->handle, &request);

    return mpi_wait(self, rc, &request, "barrier");
}

static tsr_status mpi_broadcast(tsr_comm *comm, void *buffer, size_t bytes, int root)
{
    comm_mpi *self = (comm_mpi *)comm;

    for (size_t at = 0; at < bytes; at += self->chunk_bytes) {
        const size_t n = bytes - at < self->chunk_bytes ? bytes - at : self->chunk_bytes;
        char *place = (char *)buffer + at;
        MPI_Request request = MPI_REQUEST_NULL;

        if (comm->rank == root) {
            memcpy(self->chunk[0], place, n);
        }
        const int rc = MPI_Ibcast(self->chunk[0], (int)n, MPI_BYTE, root, self->handle, &request);
        TSR_TRY(mpi_wait(self, rc, &request, "broadcast"));
        if (comm->rank != root) {
            memcpy(place, self->chunk[0], n);
        }
    }
    return TSR_OK;
}

static tsr_status mpi_all_gather(tsr_comm *comm, const void *mine, size_t bytes, void *all)
{
    comm_mpi *self = (comm_mpi *)comm;
    char *received = self->pieces + PIECE;

    for (size_t at = 0; at < bytes; at += PIECE) {
        const size_t n = bytes - at < PIECE ? bytes - at : PIECE;
        MPI_Request request = MPI_REQUEST_NULL;

        memcpy(self->pieces, (const char *)mine + at, n);
        const int rc = MPI_Iallgather(self->pieces, (int)n, MPI_BYTE, received, (int)n, MPI_BYTE,
                                      self->handle, &request);
        TSR_TRY(mpi_wait(self, rc, &request, "all-gather"));
        for (int peer = 0; peer < comm->size; ++peer) {
            memcpy((char *)all + (size_t)peer * bytes + at, received + (size_t)peer * n, n);
        }
    }
    return TSR_OK;
}

static void free_memory(comm_mpi *self)
{
    if (self != NULL) {
        if (self->watch != NULL) {
            mpi_watch_release(self->watch);
        }
        tsr_mem_free(self->chunk[0]);
        tsr_mem_free(self->chunk[1]);
        tsr_mem_free(self->pieces);
        tsr_mem_free(self->base.scratch);
        tsr_mem_free(self->seats);
        tsr_mem_free(self->names);
        tsr_mem_free(self->segments);
        tsr_mem_free(self->one_each);
        tsr_mem_free(self);
    }
}

static void mpi_destroy(tsr_comm *comm)
{
    comm_mpi *self = (comm_mpi *)comm;

    if (comm->is_dead) {
        return; /* MPI may still write here, and MPI_Comm_free is collective: leak on purpose */
    }
    if (MPI_Comm_free(&self->handle) != MPI_SUCCESS) {
        tsr_log(TSR_LOG_WARN, "a communicator of %d ranks was not freed by MPI", comm->size);
    }
    free_memory(self);
}

static tsr_status mpi_split(tsr_comm *comm, int color, int key, tsr_comm **comm_out);

static const tsr_comm_ops mpi_ops = {
    .name = "mpi",
    .agree = mpi_agree,
    .barrier = mpi_barrier,
    .broadcast = mpi_broadcast,
    .all_gather = mpi_all_gather,
    .reduce_scatter_f32 = mpi_reduce_scatter_f32,
    .all_gather_parts = mpi_all_gather_parts,
    .exchange = mpi_exchange,
    .split = mpi_split,
    .destroy = mpi_destroy,
};

static tsr_status take(size_t count, size_t size, void **out)
{
    return tsr_mem_alloc_array(TSR_MEM_COMM, (int64_t)count, size, out);
}

/* With `like`, it is part of that one's family. */
static tsr_status take_memory(size_t ranks, comm_mpi *like, comm_mpi **self_out)
{
    comm_mpi *self = NULL;
    void *block = NULL;
    tsr_status st = take(1, sizeof *self, &block);

    if (st != TSR_OK) {
        return st;
    }
    self = block;
    TSR_TRY_GOTO(take(1, CHUNK_BYTES, (void **)&self->chunk[0]), err_free);
    TSR_TRY_GOTO(take(1, CHUNK_BYTES, (void **)&self->chunk[1]), err_free);
    TSR_TRY_GOTO(take(ranks + 1, PIECE, (void **)&self->pieces), err_free);
    TSR_TRY_GOTO(take(ranks, PIECE, (void **)&self->base.scratch), err_free);
    TSR_TRY_GOTO(take(ranks, sizeof *self->seats, (void **)&self->seats), err_free);
    TSR_TRY_GOTO(take(ranks, sizeof *self->names, (void **)&self->names), err_free);
    TSR_TRY_GOTO(take(2 * ranks, sizeof *self->segments, (void **)&self->segments), err_free);
    TSR_TRY_GOTO(take(ranks + 1, sizeof *self->one_each, (void **)&self->one_each), err_free);
    for (size_t i = 0; i <= ranks; ++i) {
        self->one_each[i] = (int64_t)i;
    }
    if (like != NULL) {
        self->watch = mpi_watch_share(like->watch);
    } else {
        TSR_TRY_GOTO(mpi_watch_take((int)ranks, &self->watch), err_free);
    }
    *self_out = self;
    return TSR_OK;

err_free:
    free_memory(self);
    return st;
}

/* Number the nodes by their lowest ranks, and the ranks on each; as given, nodes may have any
 * numbers. */
static void number_seats(comm_mpi *self)
{
    tsr_comm *comm = &self->base;
    tsr_segment *given = self->segments; /* borrowed */
    int32_t nodes = 0;

    for (int r = 0; r < comm->size; ++r) {
        given[r].at = self->seats[r].node;
    }
    for (int r = 0; r < comm->size; ++r) {
        tsr_seat *seat = &self->seats[r];
        int first = 0;

        while (given[first].at != given[r].at) {
            ++first;
        }
        seat->node = first == r ? nodes++ : self->seats[first].node;
        seat->local = 0;
        for (int before = first; before < r; ++before) {
            seat->local += given[before].at == given[r].at;
        }
    }
    comm->local_rank = self->seats[comm->rank].local;
    comm->local_size = 0;
    for (int r = 0; r < comm->size; ++r) {
        comm->local_size += self->seats[r].node == self->seats[comm->rank].node;
    }
}

/* Which ranks share this node, and whether they have more ranks than cores between them. */
static int look_around(comm_mpi *self, int *leader_out)
{
    MPI_Comm node = MPI_COMM_NULL;
    cpu_set_t own, united;
    int local_size = 0;

    *leader_out = self->base.rank;
    CPU_ZERO(&united);
    if (sched_getaffinity(0, sizeof own, &own) != 0) {
        CPU_ZERO(&own);
    }
    int rc = MPI_Comm_split_type(self->handle, MPI_COMM_TYPE_SHARED, self->base.rank, MPI_INFO_NULL,
                                 &node);
    if (rc != MPI_SUCCESS) {
        return rc;
    }
    (void)MPI_Comm_size(node, &local_size);
    rc = MPI_Allreduce(&own, &united, sizeof own, MPI_BYTE, MPI_BOR, node);
    if (rc == MPI_SUCCESS) {
        rc = MPI_Bcast(leader_out, 1, MPI_INT, 0, node);
    }
    (void)MPI_Comm_free(&node);
    self->is_crowded = CPU_COUNT(&united) > 0 && local_size > CPU_COUNT(&united);
    return rc;
}

static int share_seats(comm_mpi *self, int node, int plane, int name)
{
    self->seats[self->base.rank] = (tsr_seat){.node = node, .plane = plane};
    self->names[self->base.rank] = name;
    int rc = MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, self->seats, sizeof *self->seats,
                           MPI_BYTE, self->handle);
    if (rc == MPI_SUCCESS) {
        rc = MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, self->names, 1, MPI_INT,
                           self->handle);
    }
    if (rc == MPI_SUCCESS) {
        number_seats(self);
    }
    return rc;
}

int mpi_duplicate(MPI_Comm parent, MPI_Comm *out)
{
    int rc = MPI_Comm_dup(parent, out);

    if (rc == MPI_SUCCESS) {
        rc = MPI_Comm_set_errhandler(*out, MPI_ERRORS_RETURN);
    }
    return rc;
}

/* Before there is a communicator to agree on. */
static tsr_status agree_first(MPI_Comm parent, tsr_status local)
{
    int have = local == TSR_OK, all_have = 0;

    TSR_CHECK(MPI_Allreduce(&have, &all_have, 1, MPI_INT, MPI_LAND, parent) == MPI_SUCCESS,
              TSR_ERR_COMM, "the parent communicator failed");
    return all_have || !have ? local
                             : TSR_FAIL(TSR_ERR_PEER, "a peer has no memory for a communicator");
}

/* With `like`, parent is a part of it: node, plane and crowd hold here too, and all parts come to
 * be, or none. */
static tsr_status create(MPI_Comm parent, double timeout_s, int plane, comm_mpi *like,
                         tsr_comm **comm_out)
{
    comm_mpi *self = NULL;
    tsr_status st = TSR_OK;
    int size = 0, node = 0, rc = MPI_SUCCESS;

    (void)MPI_Comm_size(parent, &size);
    st = take_memory((size_t)size, like, &self);
    st = like != NULL ? mpi_agree(&like->base, st) : agree_first(parent, st);
    if (self == NULL || st != TSR_OK) {
        goto err_free;
    }
    self->base.ops = &mpi_ops;
    self->base.size = size;
    self->base.timeout_s = timeout_s;
    self->base.seats = self->seats;
    self->base.names = self->names;
    self->chunk_bytes = CHUNK_BYTES;
    self->direct_bytes = DIRECT_BYTES;
    rc = mpi_duplicate(parent, &self->handle);
    if (rc == MPI_SUCCESS && like == NULL) {
        rc = mpi_watch_open(self->watch, parent);
    }
    (void)MPI_Comm_rank(parent, &self->base.rank);
    if (like != NULL) {
        node = like->seats[like->base.rank].node;
        self->is_crowded = like->is_crowded;
    } else if (rc == MPI_SUCCESS) {
        rc = look_around(self, &node);
    }
    if (rc == MPI_SUCCESS) {
        rc = share_seats(self, node, plane,
                         like != NULL ? like->names[like->base.rank] : self->base.rank);
    }
    if (rc != MPI_SUCCESS) {
        return mpi_fail(self, rc, "making a communicator"); /* dead: its memory leaks on purpose */
    }
    *comm_out = &self->base;
    return TSR_OK;

err_free:
    free_memory(self);
    return st;
}

tsr_status tsr_comm_create_mpi(MPI_Comm parent, double timeout_s, int plane, tsr_comm **comm_out)
{
    *comm_out = NULL;
    TSR_CHECK(timeout_s > 0, TSR_ERR_ARG, "timeout_s = %g, must be > 0", timeout_s);
    TSR_CHECK(plane >= 0, TSR_ERR_ARG, "plane = %d, must be >= 0", plane);
    return create(parent, timeout_s, plane, NULL, comm_out);
}

static tsr_status mpi_split(tsr_comm *comm, int color, int key, tsr_comm **comm_out)
{
    comm_mpi *self = (comm_mpi *)comm;
    MPI_Comm part = MPI_COMM_NULL;
    const int rc = MPI_Comm_split(self->handle, color, key, &part);

    if (rc != MPI_SUCCESS) {
        return mpi_fail(self, rc, "splitting a communicator");
    }
    const tsr_status st =
        create(part, comm->timeout_s, self->seats[comm->rank].plane, self, comm_out);
    (void)MPI_Comm_free(&part);
    return st;
}

void tsr_comm_set_seats(tsr_comm *comm, const tsr_seat *seats)
{
    comm_mpi *self = (comm_mpi *)comm;

    if (comm->ops == &mpi_ops) {
        memcpy(self->seats, seats, (size_t)comm->size * sizeof *seats);
        number_seats(self);
    }
}

void tsr_comm_set_message_bytes(tsr_comm *comm, size_t bytes)
{
    comm_mpi *self = (comm_mpi *)comm;
    const size_t whole = (bytes + 7) / 8 * 8; /* elements are not cut */

    if (comm->ops == &mpi_ops) {
        self->chunk_bytes = whole < CHUNK_BYTES ? whole : CHUNK_BYTES;
        self->direct_bytes = whole < DIRECT_BYTES ? whole : DIRECT_BYTES;
    }
}
