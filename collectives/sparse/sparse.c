#include "collectives/sparse/sparse_impl.h"

#include <inttypes.h>

enum { DEFAULT_RELAY_BYTES = 16 << 20, DEFAULT_PIECE_BYTES = 64 << 10, LEAST_PIECE_BYTES = 64 };

/* ---- making --------------------------------------------------------------------------------- */

static tsr_status check_options(const tsr_comm *comm, tsr_sparse_options *options)
{
    if (options->relay_bytes == 0) {
        options->relay_bytes = DEFAULT_RELAY_BYTES;
    }
    if (options->min_piece_bytes == 0) {
        options->min_piece_bytes = DEFAULT_PIECE_BYTES;
    }
    TSR_CHECK(options->max_chunks >= 1 && options->max_parts >= 1, TSR_ERR_ARG,
              "max_chunks = %d, max_parts = %d, must be >= 1", options->max_chunks,
              options->max_parts);
    const int64_t least = (int64_t)LEAST_PIECE_BYTES * SPARSE_RELAY_SLOTS * options->max_chunks;
    TSR_CHECK(options->relay_bytes >= least, TSR_ERR_ARG,
              "relay_bytes = %" PRId64 ", must be >= %" PRId64 " for %d chunks",
              options->relay_bytes, least, options->max_chunks);
    TSR_CHECK(options->min_piece_bytes >= 1 && options->min_piece_bytes <= 1 << 30, TSR_ERR_ARG,
              "min_piece_bytes = %" PRId64 ", must be in [1, 2^30]", options->min_piece_bytes);
    TSR_CHECK(options->device == NULL || tsr_comm_takes_device_memory(comm), TSR_ERR_UNSUPPORTED,
              "the %s communicator takes no device memory: copy chunks to the host",
              comm->ops->name);
    TSR_CHECK(comm->ops->exchange != NULL, TSR_ERR_UNSUPPORTED,
              "the %s communicator exchanges no segments: use the one it was made over",
              comm->ops->name);
    return TSR_OK;
}

/* Somewhere two ranks of a node are in different planes, and there are other nodes. */
static bool may_relay(const tsr_sparse *s)
{
    const tsr_seat *seats = tsr_comm_seats(s->comm);
    bool differ = false;

    for (int i = 1; i < tsr_comm_size(s->comm); ++i) {
        const tsr_seat *a = &seats[s->node_rank[i - 1]], *b = &seats[s->node_rank[i]];
        differ = differ || (a->node == b->node && a->plane != b->plane);
    }
    return differ && s->nodes > 1;
}

static tsr_status take(int64_t count, size_t size, void *out)
{
    return tsr_mem_alloc_array(TSR_MEM_COMM, count, size, out);
}

static tsr_status take_edges(const tsr_sparse *s, int64_t most, sparse_edges *edges)
{
    const int64_t ranks = tsr_comm_size(s->comm);

    TSR_TRY(take(most, sizeof *edges->found, &edges->found));
    TSR_TRY(take(most, sizeof *edges->edge, &edges->edge));
    TSR_TRY(take(ranks + 1, sizeof *edges->begin, &edges->begin));
    TSR_TRY(take(ranks + 1, sizeof *edges->segment_begin, &edges->segment_begin));
    return take(most * s->options.max_parts, sizeof *edges->segments, &edges->segments);
}

static void free_edges(sparse_edges *edges)
{
    tsr_mem_free(edges->found);
    tsr_mem_free(edges->edge);
    tsr_mem_free(edges->begin);
    tsr_mem_free(edges->segment_begin);
    tsr_mem_free(edges->segments);
}

/* Ranks by node, then by local place. */
static void list_nodes(tsr_sparse *s)
{
    const tsr_seat *seats = tsr_comm_seats(s->comm);
    const int ranks = tsr_comm_size(s->comm);

    for (int rank = 0; rank < ranks; ++rank) {
        ++s->node_begin[seats[rank].node + 1];
    }
    for (int node = 0; node < s->nodes; ++node) {
        s->node_begin[node + 1] += s->node_begin[node];
    }
    for (int rank = 0; rank < ranks; ++rank) {
        s->node_rank[s->node_begin[seats[rank].node] + seats[rank].local] = rank;
    }
}

static tsr_status take_memory(tsr_sparse *s)
{
    const int64_t ranks = tsr_comm_size(s->comm), chunks = s->options.max_chunks;

    TSR_TRY(take(s->nodes + 1, sizeof *s->node_begin, &s->node_begin));
    TSR_TRY(take(ranks, sizeof *s->node_rank, &s->node_rank));
    TSR_TRY(take(ranks, sizeof *s->mark, &s->mark));
    TSR_TRY(take(ranks, sizeof *s->members, &s->members));
    TSR_TRY(take(ranks, sizeof *s->relays, &s->relays));
    TSR_TRY(take_edges(s, chunks, &s->up));
    TSR_TRY(take_edges(s, chunks * SPARSE_CHILDREN, &s->down));
    list_nodes(s);
    if (!may_relay(s)) {
        return TSR_OK;
    }
    if (s->options.device != NULL) {
        return tsr_device_alloc(s->options.device, TSR_MEM_COMM, (size_t)s->options.relay_bytes,
                                (void **)&s->relay);
    }
    return take(s->options.relay_bytes, 1, &s->relay);
}

tsr_status tsr_sparse_create(tsr_comm *comm, tsr_worker *worker, const tsr_sparse_options *options,
                             tsr_sparse **sparse_out)
{
    tsr_sparse_options filled = *options;
    void *block = NULL;

    *sparse_out = NULL;
    TSR_TRY(check_options(comm, &filled));
    TSR_TRY(take(1, sizeof(tsr_sparse), &block));
    tsr_sparse *s = block;
    s->comm = comm;
    s->worker = worker;
    s->options = filled;
    for (int rank = 0; rank < tsr_comm_size(comm); ++rank) {
        const int node = tsr_comm_seats(comm)[rank].node;
        s->nodes = node >= s->nodes ? node + 1 : s->nodes;
    }
    const tsr_status st = take_memory(s);
    if (st != TSR_OK) {
        tsr_sparse_destroy(&s);
        return st;
    }
    *sparse_out = s;
    return TSR_OK;
}

void tsr_sparse_destroy(tsr_sparse **sparse_p)
{
    tsr_sparse *s = *sparse_p;

    if (s == NULL) {
        return;
    }
    if (s->options.device != NULL && s->relay != NULL) {
        tsr_device_free(s->options.device, s->relay);
    } else {
        tsr_mem_free(s->relay);
    }
    tsr_mem_free(s->node_begin);
    tsr_mem_free(s->node_rank);
    tsr_mem_free(s->mark);
    tsr_mem_free(s->members);
    tsr_mem_free(s->relays);
    free_edges(&s->up);
    free_edges(&s->down);
    tsr_mem_free(s);
    *sparse_p = NULL;
}

/* ---- calls ---------------------------------------------------------------------------------- */

static tsr_status check_memory(const tsr_sparse *s, const tsr_sparse_call *call)
{
    const tsr_holding *holding = call->holding;
    const int own = tsr_comm_rank(s->comm);

    for (int chunk = 0; chunk < holding->chunks; ++chunk) {
        bool is_held = false;

        for (int32_t i = holding->begin[chunk]; i < holding->begin[chunk + 1]; ++i) {
            is_held = is_held || holding->rank[i] == own;
        }
        for (int part = 0; part < call->parts && is_held; ++part) {
            TSR_CHECK(call->part_bytes[part] == 0 ||
                          call->memory[(int64_t)chunk * call->parts + part] != NULL,
                      TSR_ERR_ARG, "no memory for part %d of chunk %d, which rank %d holds", part,
                      chunk, own);
        }
    }
    return TSR_OK;
}

static tsr_status check_call(const tsr_sparse *s, const tsr_sparse_call *call, bool sums)
{
    int64_t bytes = 0;

    TSR_CHECK(call->holding->chunks <= s->options.max_chunks && call->parts >= 1 &&
                  call->parts <= s->options.max_parts,
              TSR_ERR_ARG, "%d chunks of %d parts, must be at most %d of 1 to %d",
              call->holding->chunks, call->parts, s->options.max_chunks, s->options.max_parts);
    TSR_TRY(tsr_holding_check(call->holding, tsr_comm_size(s->comm)));
    for (int part = 0; part < call->parts; ++part) {
        const int64_t n = call->part_bytes[part];

        TSR_CHECK(n >= 0 && n <= INT64_MAX / 4 - bytes, TSR_ERR_ARG,
                  "part %d has %" PRId64 " bytes, must be >= 0 and fit memory", part, n);
        TSR_CHECK(!sums || n % (int64_t)sizeof(float) == 0, TSR_ERR_ARG,
                  "part %d has %" PRId64 " bytes, must be whole floats to be summed", part, n);
        bytes += n;
    }
    TSR_CHECK((call->stream != NULL) == (s->options.device != NULL), TSR_ERR_ARG,
              call->stream != NULL ? "a stream, but chunks are host memory"
                                   : "no stream, but chunks are device memory");
    return check_memory(s, call);
}

static tsr_status run(tsr_sparse *s, const tsr_sparse_call *call, bool sums)
{
    TSR_TRY(check_call(s, call, sums));
    return sparse_run(s, call, sums);
}

tsr_status tsr_sparse_all_gather(tsr_sparse *sparse, tsr_sparse_call *call)
{
    return run(sparse, call, false);
}

tsr_status tsr_sparse_reduce_scatter(tsr_sparse *sparse, tsr_sparse_call *call)
{
    return run(sparse, call, true);
}

static tsr_status all_gather_later(void *argument)
{
    const tsr_sparse_call *call = argument;

    return sparse_run(call->sparse, call, false);
}

static tsr_status reduce_scatter_later(void *argument)
{
    const tsr_sparse_call *call = argument;

    return sparse_run(call->sparse, call, true);
}

static tsr_status start(tsr_sparse *s, tsr_sparse_call *call, bool sums)
{
    TSR_CHECK(!call->is_queued && !call->work.is_submitted, TSR_ERR_STATE,
              "a sparse call is under way: wait for it before it is started again");
    TSR_CHECK(s->worker != NULL || s->options.device != NULL, TSR_ERR_STATE,
              "sparse collectives without a worker start nothing: use the blocking calls");
    TSR_TRY(check_call(s, call, sums));
    call->sparse = s;
    if (s->options.device != NULL) {
        TSR_TRY(sparse_run(s, call, sums));
        call->is_queued = true;
        return TSR_OK;
    }
    call->work.run = sums ? reduce_scatter_later : all_gather_later;
    call->work.argument = call;
    call->work.name = sums ? "sparse reduce-scatter" : "sparse all-gather";
    call->work.number = call->number;
    return tsr_worker_submit(s->worker, &call->work);
}

tsr_status tsr_sparse_start_all_gather(tsr_sparse *sparse, tsr_sparse_call *call)
{
    return start(sparse, call, false);
}

tsr_status tsr_sparse_start_reduce_scatter(tsr_sparse *sparse, tsr_sparse_call *call)
{
    return start(sparse, call, true);
}

tsr_status tsr_sparse_wait(tsr_sparse_call *call)
{
    if (call->is_queued) {
        call->is_queued = false;
        return tsr_comm_stream_wait(call->sparse->comm, call->stream);
    }
    /* never started, or on a device and waited for before */
    if (call->sparse == NULL || call->sparse->worker == NULL) {
        return TSR_OK;
    }
    return tsr_worker_wait(call->sparse->worker, &call->work);
}
