#include "collectives/comm_impl.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t phase_lock = PTHREAD_MUTEX_INITIALIZER;
static char phase_text[TSR_PHASE_MAX];
static int64_t phase_step = -1;

void tsr_comm_set_phase(const char *text, int64_t step)
{
    (void)pthread_mutex_lock(&phase_lock);
    strncpy(phase_text, text, sizeof phase_text - 1);
    phase_step = step;
    (void)pthread_mutex_unlock(&phase_lock);
}

int64_t tsr_comm_phase(char *text_out)
{
    (void)pthread_mutex_lock(&phase_lock);
    const int64_t step = phase_step;
    memcpy(text_out, phase_text, sizeof phase_text);
    (void)pthread_mutex_unlock(&phase_lock);
    return step;
}

int tsr_comm_rank(const tsr_comm *comm)
{
    return comm->rank;
}

int tsr_comm_size(const tsr_comm *comm)
{
    return comm->size;
}

int tsr_comm_local_rank(const tsr_comm *comm)
{
    return comm->local_rank;
}

int tsr_comm_local_size(const tsr_comm *comm)
{
    return comm->local_size;
}

/* What has died: comm itself, or what it is made of; NULL: nothing. */
static const tsr_comm *find_dead(const tsr_comm *comm)
{
    const tsr_comm *dead = comm->is_dead ? comm : NULL;

    for (int i = 0; i < 2 && dead == NULL && comm->parts[i] != NULL; ++i) {
        dead = find_dead(comm->parts[i]);
    }
    return dead;
}

bool tsr_comm_is_dead(const tsr_comm *comm)
{
    return find_dead(comm) != NULL;
}

tsr_status tsr_comm_end(tsr_comm *comm, tsr_status st)
{
    if (!comm->is_dead) {
        (void)snprintf(comm->cause, sizeof comm->cause, "%s", tsr_error_message());
    }
    comm->is_dead = true;
    return st;
}

tsr_status tsr_comm_check_alive(const tsr_comm *comm)
{
    const tsr_comm *dead = find_dead(comm);

    TSR_CHECK(dead == NULL, TSR_ERR_COMM,
              "the %s communicator of %d ranks has failed before and takes no more calls: %s",
              comm->ops->name, comm->size, dead->cause);
    return TSR_OK;
}

const tsr_seat *tsr_comm_seats(const tsr_comm *comm)
{
    return comm->seats;
}

int tsr_comm_nodes(const tsr_comm *comm)
{
    int nodes = 0;

    for (int r = 0; r < comm->size; ++r) {
        nodes = comm->seats[r].node >= nodes ? comm->seats[r].node + 1 : nodes;
    }
    return nodes;
}

tsr_status tsr_comm_check_regular(const tsr_comm *comm)
{
    const int nodes = tsr_comm_nodes(comm);
    int places = 0;

    for (int r = 0; r < comm->size; ++r) {
        places += comm->seats[r].node == 0;
    }
    for (int node = 0; node < nodes; ++node) {
        int count = 0;

        for (int r = 0; r < comm->size; ++r) {
            const tsr_seat *seat = &comm->seats[r];

            count += seat->node == node;
            for (int other = 0; seat->node == node && other < comm->size; ++other) {
                const tsr_seat *first = &comm->seats[other];
                TSR_CHECK(
                    first->node != 0 || first->local != seat->local || first->plane == seat->plane,
                    TSR_ERR_ARG, "place %d is on plane %d on node 0 and on plane %d on node %d",
                    seat->local, first->plane, seat->plane, node);
            }
        }
        TSR_CHECK(count == places, TSR_ERR_ARG, "node 0 has %d ranks and node %d has %d", places,
                  node, count);
    }
    return TSR_OK;
}

tsr_link tsr_comm_link(const tsr_comm *comm, int from, int to)
{
    const tsr_seat *a = &comm->seats[from], *b = &comm->seats[to];

    if (from == to) {
        return TSR_LINK_SELF;
    }
    if (a->node == b->node) {
        return TSR_LINK_INTRA_NODE;
    }
    return a->plane == b->plane ? TSR_LINK_IN_PLANE : TSR_LINK_CROSS_PLANE;
}

void tsr_comm_bytes(const tsr_comm *comm, int64_t bytes_out[TSR_LINKS])
{
    memcpy(bytes_out, comm->bytes, sizeof comm->bytes);
}

void tsr_comm_destroy(tsr_comm **comm_p)
{
    if (*comm_p != NULL) {
        (*comm_p)->ops->destroy(*comm_p);
        *comm_p = NULL;
    }
}

static void count_to(tsr_comm *comm, int peer, tsr_traffic purpose, int64_t bytes)
{
    const tsr_link link = tsr_comm_link(comm, comm->rank, peer);

    if (link != TSR_LINK_SELF && !comm->counts_nothing) {
        comm->bytes[link] += bytes;
        tsr_traffic_add(purpose, link, bytes);
    }
}

/* The same payload goes to every other rank. */
static void count_to_all(tsr_comm *comm, tsr_traffic purpose, size_t bytes)
{
    for (int peer = 0; peer < comm->size; ++peer) {
        count_to(comm, peer, purpose, (int64_t)bytes);
    }
}

tsr_status tsr_comm_agree(tsr_comm *comm, tsr_status local)
{
    if (local != TSR_OK && tsr_comm_is_dead(comm)) {
        return local; /* most likely what killed it: the cause must not be covered up */
    }
    TSR_TRY(tsr_comm_check_alive(comm));
    return comm->ops->agree(comm, local);
}

tsr_status tsr_comm_barrier(tsr_comm *comm)
{
    TSR_TRY(tsr_comm_check_alive(comm));
    return comm->ops->barrier(comm);
}

static tsr_status begin_broadcast(tsr_comm *comm, size_t bytes, int root)
{
    TSR_TRY(tsr_comm_check_alive(comm));
    TSR_CHECK(root >= 0 && root < comm->size, TSR_ERR_ARG, "root = %d, must be in [0, %d)", root,
              comm->size);
    if (comm->rank == root) {
        count_to_all(comm, TSR_TRAFFIC_CONTROL, bytes);
    }
    return TSR_OK;
}

tsr_status tsr_comm_broadcast(tsr_comm *comm, void *buffer, size_t bytes, int root)
{
    TSR_TRY(begin_broadcast(comm, bytes, root));
    return bytes == 0 ? TSR_OK : comm->ops->broadcast(comm, buffer, bytes, root);
}

tsr_status tsr_comm_all_gather(tsr_comm *comm, const void *mine, size_t bytes, void *all)
{
    TSR_TRY(tsr_comm_check_alive(comm));
    TSR_CHECK(bytes <= SIZE_MAX / 2 / (size_t)comm->size, TSR_ERR_ARG,
              "bytes = %zu from each of %d ranks do not fit memory", bytes, comm->size);
    count_to_all(comm, TSR_TRAFFIC_CONTROL, bytes);
    return bytes == 0 ? TSR_OK : comm->ops->all_gather(comm, mine, bytes, all);
}

static double combine_f64(double sum, double value, tsr_reduce op)
{
    switch (op) {
    case TSR_REDUCE_MAX:
        return value > sum || isnan(value) ? value : sum;
    case TSR_REDUCE_MIN:
        return value < sum || isnan(value) ? value : sum;
    default:
        return sum + value;
    }
}

static uint64_t combine_u64(uint64_t sum, uint64_t value, tsr_reduce op)
{
    switch (op) {
    case TSR_REDUCE_MAX:
        return value > sum ? value : sum;
    case TSR_REDUCE_MIN:
        return value < sum ? value : sum;
    default:
        return sum + value;
    }
}

/* Both reductions gather the ranks' values and combine them in rank order on every rank: equal bits
 * everywhere whatever algorithm the transport uses. Bounded memory: piece by piece. */
enum { PIECE = TSR_COMM_PIECE_BYTES / 8 };

static int64_t piece_length(int64_t count, int64_t at)
{
    return count - at < PIECE ? count - at : PIECE;
}

tsr_status tsr_comm_all_reduce_f64(tsr_comm *comm, double *values, int64_t count, tsr_reduce op)
{
    TSR_TRY(tsr_comm_check_alive(comm));
    TSR_CHECK(count >= 0, TSR_ERR_ARG, "count = %" PRId64 ", must be >= 0", count);
    for (int64_t at = 0; comm->size > 1 && at < count; at += PIECE) {
        const int64_t n = piece_length(count, at);
        const double *all = (const double *)(const void *)comm->scratch;

        TSR_TRY(tsr_comm_all_gather(comm, values + at, (size_t)n * sizeof *values, comm->scratch));
        for (int64_t i = 0; i < n; ++i) {
            double sum = all[i];
            for (int peer = 1; peer < comm->size; ++peer) {
                sum = combine_f64(sum, all[peer * n + i], op);
            }
            values[at + i] = sum;
        }
    }
    return TSR_OK;
}

tsr_status tsr_comm_all_reduce_u64(tsr_comm *comm, uint64_t *values, int64_t count, tsr_reduce op)
{
    TSR_TRY(tsr_comm_check_alive(comm));
    TSR_CHECK(count >= 0, TSR_ERR_ARG, "count = %" PRId64 ", must be >= 0", count);
    for (int64_t at = 0; comm->size > 1 && at < count; at += PIECE) {
        const int64_t n = piece_length(count, at);
        const uint64_t *all = (const uint64_t *)(const void *)comm->scratch;

        TSR_TRY(tsr_comm_all_gather(comm, values + at, (size_t)n * sizeof *values, comm->scratch));
        for (int64_t i = 0; i < n; ++i) {
            uint64_t sum = all[i];
            for (int peer = 1; peer < comm->size; ++peer) {
                sum = combine_u64(sum, all[peer * n + i], op);
            }
            values[at + i] = sum;
        }
    }
    return TSR_OK;
}

static tsr_status check_cuts(const int64_t *cuts, int size)
{
    TSR_CHECK(cuts[0] >= 0, TSR_ERR_ARG, "cuts[0] = %" PRId64 ", must be >= 0", cuts[0]);
    for (int part = 0; part < size; ++part) {
        TSR_CHECK(cuts[part + 1] >= cuts[part], TSR_ERR_ARG,
                  "cuts[%d] = %" PRId64 " is below cuts[%d] = %" PRId64 ", cuts must ascend",
                  part + 1, cuts[part + 1], part, cuts[part]);
    }
    TSR_CHECK(cuts[size] <= INT64_MAX / 8, TSR_ERR_ARG, "cuts[%d] = %" PRId64 " is too long", size,
              cuts[size]);
    return TSR_OK;
}

/* Checks and counts are the same wherever the memory is. */
static tsr_status begin_reduce_scatter(tsr_comm *comm, const int64_t *cuts)
{
    TSR_TRY(tsr_comm_check_alive(comm));
    TSR_TRY(check_cuts(cuts, comm->size));
    for (int peer = 0; peer < comm->size; ++peer) {
        count_to(comm, peer, TSR_TRAFFIC_REDUCE_SCATTER,
                 (cuts[peer + 1] - cuts[peer]) * (int64_t)sizeof(float));
    }
    return TSR_OK;
}

static tsr_status begin_all_gather_parts(tsr_comm *comm, size_t element_bytes, const int64_t *cuts)
{
    TSR_TRY(tsr_comm_check_alive(comm));
    TSR_CHECK(element_bytes == 2 || element_bytes == 4, TSR_ERR_ARG,
              "element_bytes = %zu, must be 2 or 4", element_bytes);
    TSR_TRY(check_cuts(cuts, comm->size));
    count_to_all(comm, TSR_TRAFFIC_ALL_GATHER,
                 (size_t)(cuts[comm->rank + 1] - cuts[comm->rank]) * element_bytes);
    return TSR_OK;
}

tsr_status tsr_comm_reduce_scatter_f32(tsr_comm *comm, float *values, const int64_t *cuts)
{
    TSR_TRY(begin_reduce_scatter(comm, cuts));
    const int64_t span = tsr_trace_begin();
    const tsr_status st = comm->ops->reduce_scatter_f32(comm, values, cuts);
    tsr_trace_end(TSR_TRACE_EXCHANGE, "reduce_scatter", comm->size, span);
    return st;
}

tsr_status tsr_comm_all_gather_parts(tsr_comm *comm, void *values, size_t element_bytes,
                                     const int64_t *cuts)
{
    TSR_TRY(begin_all_gather_parts(comm, element_bytes, cuts));
    const int64_t span = tsr_trace_begin();
    const tsr_status st = comm->ops->all_gather_parts(comm, values, element_bytes, cuts);
    tsr_trace_end(TSR_TRACE_EXCHANGE, "all_gather", comm->size, span);
    return st;
}

static tsr_status check_segments(const tsr_comm *comm, const tsr_segment *segments,
                                 const int64_t *begin, bool sums, const char *what)
{
    for (int64_t i = begin[comm->rank]; i < begin[comm->rank + 1]; ++i) {
        TSR_CHECK(segments[i].bytes == 0, TSR_ERR_ARG,
                  "rank %d has %" PRId64 " bytes to %s to itself, must have none", comm->rank,
                  segments[i].bytes, what);
    }
    for (int64_t i = begin[0]; i < begin[comm->size]; ++i) {
        const int64_t at = segments[i].at, bytes = segments[i].bytes;

        TSR_CHECK(at >= 0 && bytes >= 0 && (!sums || bytes % (int64_t)sizeof(float) == 0),
                  TSR_ERR_ARG,
                  "%s segment %" PRId64 " is %" PRId64 " bytes at %" PRId64 ": both must be >= 0%s",
                  what, i, bytes, at, sums ? ", and whole floats to be summed" : "");
    }
    return TSR_OK;
}

static tsr_status begin_exchange(tsr_comm *comm, const tsr_exchange *x)
{
    TSR_TRY(tsr_comm_check_alive(comm));
    TSR_TRY(check_segments(comm, x->send_segments, x->send_begin, x->sums, "send"));
    TSR_TRY(check_segments(comm, x->receive_segments, x->receive_begin, x->sums, "receive"));
    for (int peer = 0; peer < comm->size; ++peer) {
        int64_t bytes = 0;

        for (int64_t i = x->send_begin[peer]; i < x->send_begin[peer + 1]; ++i) {
            bytes += x->send_segments[i].bytes;
        }
        count_to(comm, peer, x->purpose, bytes);
    }
    return TSR_OK;
}

/* Copies of experts move beside the computation: their own row in traces. */
static bool is_copies(tsr_traffic purpose)
{
    return purpose == TSR_TRAFFIC_SPARSE_ALL_GATHER || purpose == TSR_TRAFFIC_SPARSE_REDUCE_SCATTER;
}

static tsr_status check_has_exchange(const tsr_comm *comm, bool has)
{
    TSR_CHECK(
        has, TSR_ERR_UNSUPPORTED,
        "the %s communicator of %d ranks has no direct way between all of them: exchange over "
        "what it was made of",
        comm->ops->name, comm->size);
    return TSR_OK;
}

tsr_status tsr_comm_exchange(tsr_comm *comm, const tsr_exchange *exchange)
{
    TSR_TRY(check_has_exchange(comm, comm->ops->exchange != NULL));
    TSR_TRY(begin_exchange(comm, exchange));
    const int64_t span = tsr_trace_begin();
    const tsr_status st = comm->ops->exchange(comm, exchange);
    tsr_trace_end(is_copies(exchange->purpose) ? TSR_TRACE_BACKGROUND : TSR_TRACE_EXCHANGE,
                  tsr_traffic_name(exchange->purpose), comm->size, span);
    return st;
}

tsr_status tsr_comm_split(tsr_comm *comm, int color, int key, tsr_comm **comm_out)
{
    *comm_out = NULL;
    TSR_TRY(tsr_comm_check_alive(comm));
    TSR_CHECK(color >= 0, TSR_ERR_ARG, "color = %d, must be >= 0", color);
    TSR_CHECK(comm->ops->split != NULL, TSR_ERR_UNSUPPORTED,
              "the %s communicator of %d ranks is not split: split the one it was made over",
              comm->ops->name, comm->size);
    return comm->ops->split(comm, color, key, comm_out);
}

/* ---- device memory -------------------------------------------------------------------------- */

bool tsr_comm_takes_device_memory(const tsr_comm *comm)
{
    return comm->takes_device_memory;
}

static tsr_status check_takes_device_memory(const tsr_comm *comm)
{
    TSR_CHECK(comm->takes_device_memory, TSR_ERR_UNSUPPORTED,
              "the %s communicator of %d ranks takes no device memory: copy it to the host",
              comm->ops->name, comm->size);
    return TSR_OK;
}

tsr_status tsr_comm_reduce_scatter_f32_on(tsr_comm *comm, float *values, const int64_t *cuts,
                                          tsr_stream *stream)
{
    TSR_TRY(check_takes_device_memory(comm));
    TSR_TRY(begin_reduce_scatter(comm, cuts));
    return comm->ops->reduce_scatter_f32_on(comm, values, cuts, stream);
}

tsr_status tsr_comm_all_gather_parts_on(tsr_comm *comm, void *values, size_t element_bytes,
                                        const int64_t *cuts, tsr_stream *stream)
{
    TSR_TRY(check_takes_device_memory(comm));
    TSR_TRY(begin_all_gather_parts(comm, element_bytes, cuts));
    return comm->ops->all_gather_parts_on(comm, values, element_bytes, cuts, stream);
}

tsr_status tsr_comm_exchange_on(tsr_comm *comm, const tsr_exchange *exchange, tsr_stream *stream)
{
    TSR_TRY(check_takes_device_memory(comm));
    TSR_TRY(check_has_exchange(comm, comm->ops->exchange_on != NULL));
    TSR_TRY(begin_exchange(comm, exchange));
    return comm->ops->exchange_on(comm, exchange, stream);
}

tsr_status tsr_comm_broadcast_on(tsr_comm *comm, void *buffer, size_t bytes, int root,
                                 tsr_stream *stream)
{
    TSR_TRY(check_takes_device_memory(comm));
    TSR_TRY(begin_broadcast(comm, bytes, root));
    return bytes == 0 ? TSR_OK : comm->ops->broadcast_on(comm, buffer, bytes, root, stream);
}

tsr_status tsr_comm_stream_wait(tsr_comm *comm, tsr_stream *stream)
{
    if (!comm->takes_device_memory) {
        return tsr_stream_wait(stream);
    }
    TSR_TRY(tsr_comm_check_alive(comm));
    return comm->ops->stream_wait(comm, stream);
}
