/* The operations on device memory. As in the mpi backend every rank talks straight to every other:
 *
 *   distance k = 1 .. P-1: send to rank + k, receive from rank - k (mod P)
 *
 * All sends and receives of one piece are one group, which NCCL runs at once; each received part
 * has its own place in the buffer, and they are added in the order of k: the documented one. */
#include "collectives/nccl/nccl_impl.h"

/* FNV-1a (Fowler, Noll, Vo), by whole words */
static uint64_t mix(uint64_t digest, uint64_t word)
{
    return (digest ^ word) * 0x100000001b3u;
}

static uint64_t digest_cuts(const int64_t *cuts, int size, size_t element_bytes)
{
    uint64_t digest = mix(0xcbf29ce484222325u, element_bytes);

    for (int part = 0; part <= size; ++part) {
        digest = mix(digest, (uint64_t)cuts[part]);
    }
    return digest;
}

static bool are_even(const int64_t *cuts, int size)
{
    for (int part = 1; part < size; ++part) {
        if (cuts[part + 1] - cuts[part] != cuts[1] - cuts[0]) {
            return false;
        }
    }
    return true;
}

static bool goes_on(ncclResult_t code)
{
    return code == ncclSuccess || code == ncclInProgress;
}

/* A group that was begun is ended in any case; the first failure counts. */
static ncclResult_t end_group(ncclResult_t code)
{
    const ncclResult_t ended = ncclGroupEnd();

    return goes_on(code) ? ended : code;
}

/* Length of the piece of a part that begins `at` elements into it. */
static int64_t piece_of(const int64_t *cuts, int part, int64_t at, int64_t slot)
{
    const int64_t left = cuts[part + 1] - cuts[part] - at;

    return left < 0 ? 0 : left < slot ? left : slot;
}

static ncclResult_t exchange_piece(const comm_nccl *self, const float *values, const int64_t *cuts,
                                   int64_t at, cudaStream_t stream)
{
    const int size = self->base.size, rank = self->base.rank;
    const int64_t mine = piece_of(cuts, rank, at, self->slot);
    ncclResult_t code = ncclGroupStart();

    if (!goes_on(code)) {
        return code;
    }
    for (int distance = 1; distance < size && goes_on(code); ++distance) {
        const int to = (rank + distance) % size, from = (rank - distance + size) % size;
        const int64_t theirs = piece_of(cuts, to, at, self->slot);

        if (theirs > 0) {
            code = ncclSend(values + cuts[to] + at, (size_t)theirs, ncclFloat32, to, self->handle,
                            stream);
        }
        if (mine > 0 && goes_on(code)) {
            code = ncclRecv(self->buffer + (distance - 1) * self->slot, (size_t)mine, ncclFloat32,
                            from, self->handle, stream);
        }
    }
    return end_group(code);
}

static tsr_status sum_pieces(comm_nccl *self, float *values, const int64_t *cuts,
                             tsr_stream *stream)
{
    const int size = self->base.size, rank = self->base.rank;
    int64_t longest = 0;

    for (int part = 0; part < size; ++part) {
        const int64_t length = cuts[part + 1] - cuts[part];
        longest = length > longest ? length : longest;
    }
    for (int64_t at = 0; at < longest; at += self->slot) {
        const int64_t mine = piece_of(cuts, rank, at, self->slot);

        TSR_TRY(nccl_finish(self, exchange_piece(self, values, cuts, at, nccl_stream_of(stream)),
                            "reduce-scatter", stream));
        for (int distance = 1; distance < size && mine > 0; ++distance) {
            TSR_TRY(tsr_op_add_f32(self->device, self->buffer + (distance - 1) * self->slot,
                                   values + cuts[rank] + at, mine, stream));
        }
    }
    return tsr_event_record(self->done, stream); /* the buffer is free again after the last sum */
}

tsr_status nccl_reduce_scatter_f32_on(tsr_comm *comm, float *values, const int64_t *cuts,
                                      tsr_stream *stream)
{
    comm_nccl *self = (comm_nccl *)comm;
    const int64_t part = cuts[1] - cuts[0];

    TSR_TRY(
        nccl_begin(self, "reduce-scatter", digest_cuts(cuts, comm->size, sizeof *values), stream));
    if (comm->size == 1 || cuts[comm->size] == cuts[0]) {
        return TSR_OK;
    }
    if (self->options.library_sums && are_even(cuts, comm->size)) {
        float *first = values + cuts[0];
        const ncclResult_t code =
            ncclReduceScatter(first, first + comm->rank * part, (size_t)part, ncclFloat32, ncclSum,
                              self->handle, nccl_stream_of(stream));
        return nccl_finish(self, code, "reduce-scatter", stream);
    }
    return sum_pieces(self, values, cuts, stream);
}

static ncclResult_t gather_uneven(const comm_nccl *self, char *values, size_t element_bytes,
                                  const int64_t *cuts, cudaStream_t stream)
{
    const int size = self->base.size, rank = self->base.rank;
    const size_t mine = (size_t)(cuts[rank + 1] - cuts[rank]) * element_bytes;
    ncclResult_t code = ncclGroupStart();

    if (!goes_on(code)) {
        return code;
    }
    for (int distance = 1; distance < size && goes_on(code); ++distance) {
        const int to = (rank + distance) % size, from = (rank - distance + size) % size;
        const size_t theirs = (size_t)(cuts[from + 1] - cuts[from]) * element_bytes;

        if (mine > 0) {
            code = ncclSend(values + (size_t)cuts[rank] * element_bytes, mine, ncclUint8, to,
                            self->handle, stream);
        }
        if (theirs > 0 && goes_on(code)) {
            code = ncclRecv(values + (size_t)cuts[from] * element_bytes, theirs, ncclUint8, from,
                            self->handle, stream);
        }
    }
    return end_group(code);
}

tsr_status nccl_all_gather_parts_on(tsr_comm *comm, void *values, size_t element_bytes,
                                    const int64_t *cuts, tsr_stream *stream)
{
    comm_nccl *self = (comm_nccl *)comm;
    const cudaStream_t handle = nccl_stream_of(stream);
    const size_t part = (size_t)(cuts[1] - cuts[0]) * element_bytes;
    char *first = (char *)values + (size_t)cuts[0] * element_bytes;
    ncclResult_t code = ncclSuccess;

    TSR_TRY(nccl_begin(self, "all-gather", digest_cuts(cuts, comm->size, element_bytes), stream));
    if (comm->size == 1 || cuts[comm->size] == cuts[0]) {
        return TSR_OK;
    }
    if (are_even(cuts, comm->size)) { /* copies have no order: NCCL may take any way */
        code = ncclAllGather(first + (size_t)comm->rank * part, first, part, ncclUint8,
                             self->handle, handle);
    } else {
        code = gather_uneven(self, values, element_bytes, cuts, handle);
    }
    return nccl_finish(self, code, "all-gather", stream);
}

tsr_status nccl_broadcast_on(tsr_comm *comm, void *buffer, size_t bytes, int root,
                             tsr_stream *stream)
{
    comm_nccl *self = (comm_nccl *)comm;

    TSR_TRY(nccl_begin(self, "broadcast", mix(mix(1, bytes), (uint64_t)root), stream));
    if (comm->size == 1) {
        return TSR_OK;
    }
    return nccl_finish(
        self,
        ncclBroadcast(buffer, buffer, bytes, ncclUint8, root, self->handle, nccl_stream_of(stream)),
        "broadcast", stream);
}
