/* The composite that keeps to planes: what goes to another node and another plane turns inside a
 * node.
 *
 *   all-gather       rail first: (0,0) (1,0) (2,0) have each other's parts; then each node's ranks
 *                    hand on what they have
 *   reduce-scatter   node first: at place l the node's sums of what is for place l on any node;
 *                    then the rail adds the nodes'
 *
 * A rank is (node, local); its number in whole is `at[node * places + local]`. */
#include "collectives/comm_impl.h"

#include <stdio.h>
#include <string.h>

enum { MOST_NODES = TSR_COMM_PIECE_BYTES / 8 };

typedef struct comm_planes {
    tsr_comm base;                 /* first */
    tsr_comm *whole, *node, *rail; /* borrowed */
    int nodes, places;
    int *at;                             /* [nodes * places] rank in whole */
    char *gathered;                      /* [P, TSR_COMM_PIECE_BYTES] in the order of `at` */
    tsr_segment *send, *receive;         /* [P] */
    int64_t *send_begin, *receive_begin; /* [larger of nodes, places, + 1] */
} comm_planes;

static int rank_at(const comm_planes *self, int node, int local)
{
    return self->at[node * self->places + local];
}

/* What the lowest failing rank says; numbers are those of whole. */
typedef struct verdict {
    int32_t first_bad; /* size of whole: none */
    char message[512];
} verdict;

static tsr_status gather_verdict(comm_planes *self, tsr_comm *part, verdict *v)
{
    verdict *all = (verdict *)(void *)self->gathered;

    TSR_TRY(part->ops->all_gather(part, v, sizeof *v, all));
    for (int i = 0; i < part->size; ++i) {
        if (all[i].first_bad < v->first_bad) {
            *v = all[i];
        }
    }
    return TSR_OK;
}

static tsr_status planes_agree(tsr_comm *comm, tsr_status local)
{
    comm_planes *self = (comm_planes *)comm;
    verdict v = {.first_bad = local == TSR_OK ? comm->size : comm->rank};

    (void)snprintf(v.message, sizeof v.message, "%s", local == TSR_OK ? "" : tsr_error_message());
    TSR_TRY(gather_verdict(self, self->rail, &v));
    TSR_TRY(gather_verdict(self, self->node, &v));
    if (v.first_bad == comm->size || local != TSR_OK) {
        return local;
    }
    return TSR_FAIL(TSR_ERR_PEER, "rank %d: %s", comm->names[v.first_bad], v.message);
}

static tsr_status planes_barrier(tsr_comm *comm)
{
    comm_planes *self = (comm_planes *)comm;

    TSR_TRY(self->node->ops->barrier(self->node));
    TSR_TRY(self->rail->ops->barrier(self->rail));
    return self->node->ops->barrier(self->node);
}

static tsr_status planes_broadcast(tsr_comm *comm, void *buffer, size_t bytes, int root)
{
    comm_planes *self = (comm_planes *)comm;
    const tsr_seat *from = &comm->seats[root], *own = &comm->seats[comm->rank];

    if (own->local == from->local) {
        TSR_TRY(tsr_comm_broadcast(self->rail, buffer, bytes, from->node));
    }
    return tsr_comm_broadcast(self->node, buffer, bytes, from->local);
}

static tsr_status planes_all_gather(tsr_comm *comm, const void *mine, size_t bytes, void *all)
{
    comm_planes *self = (comm_planes *)comm;
    const size_t most = TSR_COMM_PIECE_BYTES / (size_t)self->nodes;

    for (size_t done = 0; done < bytes; done += most) {
        const size_t n = bytes - done < most ? bytes - done : most;
        char *ours = self->gathered, *everybody = ours + TSR_COMM_PIECE_BYTES;

        TSR_TRY(tsr_comm_all_gather(self->rail, (const char *)mine + done, n, ours));
        TSR_TRY(tsr_comm_all_gather(self->node, ours, n * (size_t)self->nodes, everybody));
        for (int local = 0; local < self->places; ++local) {
            for (int node = 0; node < self->nodes; ++node, everybody += n) {
                memcpy((char *)all + (size_t)rank_at(self, node, local) * bytes + done, everybody,
                       n);
            }
        }
    }
    return TSR_OK;
}

static tsr_segment part_of(const int64_t *cuts, int rank, size_t element_bytes)
{
    const int64_t bytes = (int64_t)element_bytes;

    return (tsr_segment){cuts[rank] * bytes, (cuts[rank + 1] - cuts[rank]) * bytes};
}

/* Lists of an exchange inside the node: to place l what is for that place on each node, or what
 * this rank has of each node; from it the other way round. */
static void list_node(comm_planes *self, const int64_t *cuts, size_t element_bytes, bool to_owner)
{
    const int own = self->node->rank;
    int64_t count = 0;

    for (int local = 0; local < self->places; ++local) {
        self->send_begin[local] = self->receive_begin[local] = count;
        for (int node = 0; node < self->nodes && local != own; ++node, ++count) {
            const int theirs = rank_at(self, node, local), mine = rank_at(self, node, own);

            self->send[count] = part_of(cuts, to_owner ? theirs : mine, element_bytes);
            self->receive[count] = part_of(cuts, to_owner ? mine : theirs, element_bytes);
        }
    }
    self->send_begin[self->places] = self->receive_begin[self->places] = count;
}

/* The same over the rail: one part each. */
static void list_rail(comm_planes *self, const int64_t *cuts, size_t element_bytes, bool to_owner)
{
    const int own = self->rail->rank, local = self->node->rank;
    int64_t count = 0;

    for (int node = 0; node < self->nodes; ++node) {
        self->send_begin[node] = self->receive_begin[node] = count;
        if (node != own) {
            const int theirs = rank_at(self, node, local), mine = rank_at(self, own, local);

            self->send[count] = part_of(cuts, to_owner ? theirs : mine, element_bytes);
            self->receive[count] = part_of(cuts, to_owner ? mine : theirs, element_bytes);
            ++count;
        }
    }
    self->send_begin[self->nodes] = self->receive_begin[self->nodes] = count;
}

/* Exchange what the lists say over one of the two; stream NULL: host memory. */
static tsr_status run_lists(comm_planes *self, tsr_comm *over, void *values, bool sums,
                            tsr_traffic purpose, tsr_stream *stream)
{
    const tsr_exchange what = {.send = values,
                               .receive = values,
                               .send_segments = self->send,
                               .receive_segments = self->receive,
                               .send_begin = self->send_begin,
                               .receive_begin = self->receive_begin,
                               .sums = sums,
                               .purpose = purpose};

    return stream == NULL ? tsr_comm_exchange(over, &what)
                          : tsr_comm_exchange_on(over, &what, stream);
}

static tsr_status reduce_scatter(comm_planes *self, float *values, const int64_t *cuts,
                                 tsr_stream *stream)
{
    list_node(self, cuts, sizeof *values, true);
    TSR_TRY(run_lists(self, self->node, values, true, TSR_TRAFFIC_REDUCE_SCATTER, stream));
    list_rail(self, cuts, sizeof *values, true);
    return run_lists(self, self->rail, values, true, TSR_TRAFFIC_REDUCE_SCATTER, stream);
}

static tsr_status all_gather_parts(comm_planes *self, void *values, size_t element_bytes,
                                   const int64_t *cuts, tsr_stream *stream)
{
    list_rail(self, cuts, element_bytes, false);
    TSR_TRY(run_lists(self, self->rail, values, false, TSR_TRAFFIC_ALL_GATHER, stream));
    list_node(self, cuts, element_bytes, false);
    return run_lists(self, self->node, values, false, TSR_TRAFFIC_ALL_GATHER, stream);
}

static tsr_status planes_reduce_scatter_f32(tsr_comm *comm, float *values, const int64_t *cuts)
{
    return reduce_scatter((comm_planes *)comm, values, cuts, NULL);
}

static tsr_status planes_all_gather_parts(tsr_comm *comm, void *values, size_t element_bytes,
                                          const int64_t *cuts)
{
    return all_gather_parts((comm_planes *)comm, values, element_bytes, cuts, NULL);
}

static tsr_status planes_reduce_scatter_f32_on(tsr_comm *comm, float *values, const int64_t *cuts,
                                               tsr_stream *stream)
{
    return reduce_scatter((comm_planes *)comm, values, cuts, stream);
}

static tsr_status planes_all_gather_parts_on(tsr_comm *comm, void *values, size_t element_bytes,
                                             const int64_t *cuts, tsr_stream *stream)
{
    return all_gather_parts((comm_planes *)comm, values, element_bytes, cuts, stream);
}

static tsr_status planes_broadcast_on(tsr_comm *comm, void *buffer, size_t bytes, int root,
                                      tsr_stream *stream)
{
    comm_planes *self = (comm_planes *)comm;
    const tsr_seat *from = &comm->seats[root], *own = &comm->seats[comm->rank];

    if (own->local == from->local) {
        TSR_TRY(tsr_comm_broadcast_on(self->rail, buffer, bytes, from->node, stream));
    }
    return tsr_comm_broadcast_on(self->node, buffer, bytes, from->local, stream);
}

static tsr_status planes_stream_wait(tsr_comm *comm, tsr_stream *stream)
{
    comm_planes *self = (comm_planes *)comm;

    TSR_TRY(tsr_comm_stream_wait(self->node, stream));
    return tsr_comm_stream_wait(self->rail, stream);
}

static tsr_status planes_split(tsr_comm *comm, int color, int key, tsr_comm **comm_out)
{
    return tsr_comm_split(((comm_planes *)comm)->whole, color, key, comm_out);
}

static void planes_destroy(tsr_comm *comm)
{
    comm_planes *self = (comm_planes *)comm;

    tsr_mem_free(self->at);
    tsr_mem_free(self->gathered);
    tsr_mem_free(self->base.scratch);
    tsr_mem_free(self->send);
    tsr_mem_free(self->receive);
    tsr_mem_free(self->send_begin);
    tsr_mem_free(self->receive_begin);
    tsr_mem_free(self);
}

static const tsr_comm_ops planes_ops = {
    .name = "planes",
    .agree = planes_agree,
    .barrier = planes_barrier,
    .broadcast = planes_broadcast,
    .all_gather = planes_all_gather,
    .reduce_scatter_f32 = planes_reduce_scatter_f32,
    .all_gather_parts = planes_all_gather_parts,
    .split = planes_split,
    .destroy = planes_destroy,
    .reduce_scatter_f32_on = planes_reduce_scatter_f32_on,
    .all_gather_parts_on = planes_all_gather_parts_on,
    .broadcast_on = planes_broadcast_on,
    .stream_wait = planes_stream_wait,
};

static tsr_status take(int64_t count, size_t size, void *out)
{
    return tsr_mem_alloc_array(TSR_MEM_COMM, count, size, out);
}

static tsr_status take_memory(comm_planes *self)
{
    const int64_t ranks = self->base.size;

    TSR_TRY(take(ranks, sizeof *self->at, &self->at));
    TSR_TRY(take(ranks + 1, TSR_COMM_PIECE_BYTES, &self->gathered));
    TSR_TRY(take(ranks, TSR_COMM_PIECE_BYTES, &self->base.scratch));
    TSR_TRY(take(ranks, sizeof *self->send, &self->send));
    TSR_TRY(take(ranks, sizeof *self->receive, &self->receive));
    TSR_TRY(take(ranks + 1, sizeof *self->send_begin, &self->send_begin));
    return take(ranks + 1, sizeof *self->receive_begin, &self->receive_begin);
}

static tsr_status create_local(tsr_comm *whole, tsr_comm *node, tsr_comm *rail, comm_planes **out)
{
    const tsr_seat *own = &whole->seats[whole->rank];
    const int nodes = tsr_comm_nodes(whole), places = whole->size / nodes;
    void *block = NULL;

    TSR_CHECK(nodes <= MOST_NODES, TSR_ERR_ARG, "%d nodes, at most %d", nodes, MOST_NODES);
    TSR_TRY(tsr_comm_check_regular(whole));
    TSR_CHECK(node->size == places && node->rank == own->local && rail->size == nodes &&
                  rail->rank == own->node,
              TSR_ERR_ARG,
              "rank %d of a node's %d and %d of a rail's %d, must be %d of %d and %d of %d",
              node->rank, node->size, rail->rank, rail->size, own->local, places, own->node, nodes);
    TSR_TRY(take(1, sizeof **out, &block));
    comm_planes *self = block;
    *out = self;
    self->base =
        (tsr_comm){.ops = &planes_ops,
                   .rank = whole->rank,
                   .size = whole->size,
                   .local_rank = whole->local_rank,
                   .local_size = whole->local_size,
                   .timeout_s = whole->timeout_s,
                   .takes_device_memory = node->takes_device_memory && rail->takes_device_memory,
                   .parts = {node, rail},
                   .seats = whole->seats,
                   .names = whole->names,
                   .counts_nothing = true};
    self->whole = whole;
    self->node = node;
    self->rail = rail;
    self->nodes = nodes;
    self->places = places;
    TSR_TRY(take_memory(self));
    for (int r = 0; r < whole->size; ++r) {
        self->at[whole->seats[r].node * places + whole->seats[r].local] = r;
    }
    return TSR_OK;
}

tsr_status tsr_comm_create_planes(tsr_comm *whole, tsr_comm *node, tsr_comm *rail,
                                  tsr_comm **comm_out)
{
    comm_planes *self = NULL;

    *comm_out = NULL;
    const tsr_status st = tsr_comm_agree(whole, create_local(whole, node, rail, &self));
    if (st != TSR_OK) {
        if (self != NULL) {
            planes_destroy(&self->base);
        }
        return st;
    }
    *comm_out = &self->base;
    return TSR_OK;
}
