/* The operations on device memory. As in the mpi backend every rank talks straight to every other:
 *
 *   distance k = 1 .. P-1: send to rank + k, receive from rank - k (mod P)
 *
 * An exchange goes in rounds: a round is one group of sends and receives, which NCCL runs at once.
 * What a pair moves in round n follows from the segments between the two alone, so both put it into
 * the same group, and no rank waits in an earlier group for one that is in a later. What is summed
 * is received into the buffer and added after its group. */
#include "collectives/nccl/nccl_impl.h"

enum { MOST_CALLS = 2048 }; /* in a group: NCCL fails beyond */

/* ---- digests: what the order check compares ------------------------------------------------- */

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

/* Of the lengths that one rank sends to another: both know them. */
static uint64_t digest_pair(int from, int to, const tsr_segment *segments, int64_t count)
{
    uint64_t digest = mix(mix(0xcbf29ce484222325u, (uint64_t)from), (uint64_t)to);

    for (int64_t i = 0; i < count; ++i) {
        digest = mix(digest, (uint64_t)segments[i].bytes);
    }
    return digest;
}

/* What is sent less what is expected: the sum over all ranks is zero if all pairs fit. */
static uint64_t balance(const comm_nccl *self, const tsr_exchange *x)
{
    const int rank = self->base.rank;
    uint64_t sum = 0;

    for (int peer = 0; peer < self->base.size; ++peer) {
        sum += digest_pair(rank, peer, x->send_segments + x->send_begin[peer],
                           x->send_begin[peer + 1] - x->send_begin[peer]);
        sum -= digest_pair(peer, rank, x->receive_segments + x->receive_begin[peer],
                           x->receive_begin[peer + 1] - x->receive_begin[peer]);
    }
    return sum;
}

/* ---- exchange ------------------------------------------------------------------------------- */

/* Distances first .. end - 1 at once, each with its own room in the buffer. */
typedef struct exchange {
    comm_nccl *self;
    const tsr_exchange *what;
    const char *operation;
    tsr_stream *stream;
    int first, end;
    int64_t room, calls; /* of a pair in a round: bytes, pieces */
} exchange;

/* What is still allowed to a pair in a round. */
typedef struct allowance {
    int64_t room, calls;
} allowance;

static int peer_at(const exchange *x, int distance)
{
    const int size = x->self->base.size;

    return (x->self->base.rank + distance + size) % size;
}

/* Steps over what is done, and over empty segments. */
static bool has_more(nccl_walk *walk)
{
    while (walk->next < walk->end && walk->segments[walk->next].bytes == walk->done) {
        ++walk->next;
        walk->done = 0;
    }
    return walk->next < walk->end;
}

/* The next piece of a walk over the segments of a pair, if there is one and it is allowed. */
static bool take(nccl_walk *walk, allowance *left, tsr_segment *piece_out)
{
    if (!has_more(walk) || left->room == 0 || left->calls == 0) {
        return false;
    }
    const tsr_segment *segment = &walk->segments[walk->next];
    const int64_t rest = segment->bytes - walk->done;
    *piece_out = (tsr_segment){segment->at + walk->done, rest < left->room ? rest : left->room};
    walk->done += piece_out->bytes;
    left->room -= piece_out->bytes;
    --left->calls;
    return true;
}

static void begin_walks(const exchange *x)
{
    const tsr_exchange *what = x->what;

    for (int distance = x->first; distance < x->end; ++distance) {
        const int to = peer_at(x, distance), from = peer_at(x, -distance);

        x->self->sends[distance] =
            (nccl_walk){what->send_segments, what->send_begin[to], what->send_begin[to + 1], 0};
        x->self->receives[distance] = (nccl_walk){what->receive_segments, what->receive_begin[from],
                                                  what->receive_begin[from + 1], 0};
    }
}

static bool goes_on(ncclResult_t code)
{
    return code == ncclSuccess || code == ncclInProgress;
}

static float *slot_of(const exchange *x, int distance)
{
    return x->self->buffer + (distance - x->first) * (x->room / (int64_t)sizeof(float));
}

static ncclResult_t send_pieces(const exchange *x, int distance)
{
    allowance left = {x->room, x->calls};
    ncclResult_t code = ncclSuccess;
    tsr_segment piece;

    while (goes_on(code) && take(&x->self->sends[distance], &left, &piece)) {
        code = ncclSend((const char *)x->what->send + piece.at, (size_t)piece.bytes, ncclUint8,
                        peer_at(x, distance), x->self->handle, nccl_stream_of(x->stream));
    }
    return code;
}

static ncclResult_t receive_pieces(const exchange *x, int distance)
{
    allowance left = {x->room, x->calls};
    nccl_walk walk = x->self->receives[distance]; /* add_pieces() goes the same way again */
    char *slot = x->what->sums ? (char *)slot_of(x, distance) : NULL;
    ncclResult_t code = ncclSuccess;
    tsr_segment piece;

    while (goes_on(code) && take(&walk, &left, &piece)) {
        char *to = slot != NULL ? slot : (char *)x->what->receive + piece.at;
        code = ncclRecv(to, (size_t)piece.bytes, ncclUint8, peer_at(x, -distance), x->self->handle,
                        nccl_stream_of(x->stream));
        slot = slot != NULL ? slot + piece.bytes : NULL;
    }
    return code;
}

static tsr_status add_pieces(const exchange *x, int distance)
{
    allowance left = {x->room, x->calls};
    const float *slot = x->what->sums ? slot_of(x, distance) : NULL;
    tsr_segment piece;

    while (take(&x->self->receives[distance], &left, &piece)) {
        const int64_t count = piece.bytes / (int64_t)sizeof(float);
        if (slot != NULL) {
            float *to = (float *)(void *)((char *)x->what->receive + piece.at);
            TSR_TRY(tsr_op_add_f32(x->self->device, slot, to, count, x->stream));
            slot += count;
        }
    }
    return TSR_OK;
}

/* One group, and the sums of what it brings. */
static tsr_status run_round(const exchange *x)
{
    ncclResult_t code = ncclGroupStart();
    const bool is_begun = goes_on(code);

    for (int distance = x->first; distance < x->end && goes_on(code); ++distance) {
        code = send_pieces(x, distance);
        if (goes_on(code)) {
            code = receive_pieces(x, distance);
        }
    }
    if (is_begun) { /* it is ended in any case; the first failure counts */
        const ncclResult_t ended = ncclGroupEnd();
        code = goes_on(code) ? ended : code;
    }
    TSR_TRY(nccl_finish(x->self, code, x->operation, x->stream));
    for (int distance = x->first; distance < x->end; ++distance) {
        TSR_TRY(add_pieces(x, distance));
    }
    return TSR_OK;
}

static bool is_through(const exchange *x)
{
    for (int distance = x->first; distance < x->end; ++distance) {
        if (has_more(&x->self->sends[distance]) || has_more(&x->self->receives[distance])) {
            return false;
        }
    }
    return true;
}

/* at_once: how many distances share a group, and the buffer. */
static tsr_status run(exchange *x, int at_once)
{
    const int size = x->self->base.size;

    if (at_once == 0) {
        return TSR_OK; /* a rank alone */
    }
    at_once = at_once < MOST_CALLS / 2 ? at_once : MOST_CALLS / 2;
    const int64_t share = x->self->buffer_bytes / at_once;

    x->room = x->what->sums ? share / TSR_NCCL_ACCESS * TSR_NCCL_ACCESS : INT64_MAX;
    x->calls = MOST_CALLS / 2 / at_once;
    for (x->first = 1; x->first < size; x->first = x->end) {
        x->end = x->first + at_once < size ? x->first + at_once : size;
        begin_walks(x);
        while (!is_through(x)) {
            TSR_TRY(run_round(x));
        }
    }
    return tsr_event_record(x->self->done, x->stream); /* the buffer is free after the last sum */
}

/* An element's parts are added in the order of the distance, whatever place each of them has in its
 * pair's list: so one distance after the other. */
tsr_status nccl_exchange_on(tsr_comm *comm, const tsr_exchange *what, tsr_stream *stream)
{
    comm_nccl *self = (comm_nccl *)comm;
    exchange x = {.self = self, .what = what, .operation = "exchange", .stream = stream};
    const uint64_t kind = mix(what->sums, (uint64_t)what->purpose);

    TSR_TRY(nccl_begin(self, x.operation, kind,
                       self->options.checks_order ? balance(self, what) : 0, stream));
    return run(&x, what->sums ? 1 : comm->size - 1);
}

/* ---- parts ---------------------------------------------------------------------------------- */

static bool are_even(const int64_t *cuts, int size)
{
    for (int part = 1; part < size; ++part) {
        if (cuts[part + 1] - cuts[part] != cuts[1] - cuts[0]) {
            return false;
        }
    }
    return true;
}

/* All parts travel to their owners, or from them. Everybody gets its parts in one and the same
 * list, so all distances may go at once. */
static tsr_status exchange_parts(comm_nccl *self, void *values, size_t element_bytes,
                                 const int64_t *cuts, bool sums, const char *operation,
                                 tsr_stream *stream)
{
    const int size = self->base.size, rank = self->base.rank;
    tsr_segment *parts = self->segments, *own = self->segments + size;

    for (int part = 0; part < size; ++part) {
        parts[part] = (tsr_segment){cuts[part] * (int64_t)element_bytes,
                                    (cuts[part + 1] - cuts[part]) * (int64_t)element_bytes};
    }
    for (int part = 0; part < size; ++part) {
        own[part] = parts[rank];
    }
    const tsr_exchange what = {.send = values,
                               .receive = values,
                               .send_segments = sums ? parts : own,
                               .receive_segments = sums ? own : parts,
                               .send_begin = self->one_each,
                               .receive_begin = self->one_each,
                               .sums = sums};
    exchange x = {.self = self, .what = &what, .operation = operation, .stream = stream};
    return run(&x, size - 1);
}

tsr_status nccl_reduce_scatter_f32_on(tsr_comm *comm, float *values, const int64_t *cuts,
                                      tsr_stream *stream)
{
    comm_nccl *self = (comm_nccl *)comm;
    const int64_t part = cuts[1] - cuts[0];

    TSR_TRY(nccl_begin(self, "reduce-scatter", digest_cuts(cuts, comm->size, sizeof *values), 0,
                       stream));
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
    return exchange_parts(self, values, sizeof *values, cuts, true, "reduce-scatter", stream);
}

tsr_status nccl_all_gather_parts_on(tsr_comm *comm, void *values, size_t element_bytes,
                                    const int64_t *cuts, tsr_stream *stream)
{
    comm_nccl *self = (comm_nccl *)comm;
    const size_t part = (size_t)(cuts[1] - cuts[0]) * element_bytes;
    char *first = (char *)values + (size_t)cuts[0] * element_bytes;

    TSR_TRY(
        nccl_begin(self, "all-gather", digest_cuts(cuts, comm->size, element_bytes), 0, stream));
    if (comm->size == 1 || cuts[comm->size] == cuts[0]) {
        return TSR_OK;
    }
    if (are_even(cuts, comm->size)) { /* copies have no order: NCCL may take any way */
        const ncclResult_t code = ncclAllGather(first + (size_t)comm->rank * part, first, part,
                                                ncclUint8, self->handle, nccl_stream_of(stream));
        return nccl_finish(self, code, "all-gather", stream);
    }
    return exchange_parts(self, values, element_bytes, cuts, false, "all-gather", stream);
}

tsr_status nccl_broadcast_on(tsr_comm *comm, void *buffer, size_t bytes, int root,
                             tsr_stream *stream)
{
    comm_nccl *self = (comm_nccl *)comm;

    TSR_TRY(nccl_begin(self, "broadcast", mix(mix(1, bytes), (uint64_t)root), 0, stream));
    if (comm->size == 1) {
        return TSR_OK;
    }
    return nccl_finish(
        self,
        ncclBroadcast(buffer, buffer, bytes, ncclUint8, root, self->handle, nccl_stream_of(stream)),
        "broadcast", stream);
}
