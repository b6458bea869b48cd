/* A group's stages, and the plan of one set of tokens. */
#include "collectives/dispatch/dispatch_impl.h"

#include <inttypes.h>
#include <string.h>

static tsr_status take(int64_t count, size_t size, void *out)
{
    return tsr_mem_alloc_array(TSR_MEM_COMM, count, size, out);
}

static tsr_status take_stage(tsr_dispatch *d, stage *s, tsr_comm *host, tsr_comm *rows)
{
    s->host = host;
    s->rows = rows;
    s->size = tsr_comm_size(host);
    s->rank = tsr_comm_rank(host);
    TSR_TRY(take(d->ranks, sizeof *s->destination, &s->destination));
    TSR_TRY(take((int64_t)2 * s->size, sizeof *s->segments, &s->segments));
    TSR_TRY(take(s->size + 1, sizeof *s->one_each, &s->one_each));
    TSR_TRY(take(s->size, sizeof *s->next, &s->next));
    for (int64_t i = 0; i <= s->size; ++i) {
        s->one_each[i] = i;
    }
    return TSR_OK;
}

static tsr_status take_memory(tsr_dispatch *d)
{
    const tsr_dispatch_options *o = &d->options;
    const tsr_seat *seats = tsr_comm_seats(o->flat);

    TSR_TRY(take(d->ranks, sizeof *d->itself, &d->itself));
    TSR_TRY(take(d->ranks, sizeof *d->node_of, &d->node_of));
    d->row_length = d->ranks + d->nodes;
    TSR_TRY(take(d->row_length, sizeof *d->own, &d->own));
    TSR_TRY(take(d->ranks * d->row_length, sizeof *d->table, &d->table));
    if (d->nodes == 0) {
        d->stages = 1;
        TSR_TRY(take_stage(d, &d->stage[0], o->flat, o->flat_rows));
    } else {
        d->stages = 2;
        TSR_TRY(take_stage(d, &d->stage[0], o->rail, o->rail_rows));
        TSR_TRY(take_stage(d, &d->stage[1], o->node, o->node_rows));
    }
    for (int r = 0; r < d->ranks; ++r) {
        d->itself[r] = r;
        d->node_of[r] = seats[r].node;
        if (d->nodes == 0) {
            d->stage[0].destination[r] = r;
        } else {
            d->stage[0].destination[r] = seats[r].node;
            d->stage[1].destination[r] = seats[r].node == d->node ? seats[r].local : -1;
        }
    }
    return TSR_OK;
}

tsr_status tsr_dispatch_create(const tsr_dispatch_options *options, tsr_dispatch **out)
{
    const int rank = tsr_comm_rank(options->flat);
    void *block = NULL;

    *out = NULL;
    TSR_CHECK(options->width >= 1 && options->top_k >= 1 && options->top_k <= TSR_TOP_K_MAX,
              TSR_ERR_ARG,
              "rows of %" PRId64 ", %d lanes a token: both at least 1, lanes at most %d",
              options->width, options->top_k, TSR_TOP_K_MAX);
    TSR_TRY(tsr_mem_alloc(TSR_MEM_COMM, sizeof(tsr_dispatch), &block));
    tsr_dispatch *d = block;
    d->options = *options;
    d->ranks = tsr_comm_size(options->flat);
    d->rank = rank;
    d->nodes = options->rail != NULL ? tsr_comm_size(options->rail) : 0;
    d->node = tsr_comm_seats(options->flat)[rank].node;
    const tsr_status st = take_memory(d);
    if (st != TSR_OK) {
        tsr_dispatch_destroy(&d);
        return st;
    }
    *out = d;
    return TSR_OK;
}

void tsr_dispatch_destroy(tsr_dispatch **dispatch_p)
{
    tsr_dispatch *d = *dispatch_p;

    if (d == NULL) {
        return;
    }
    for (int i = 0; i < MOST_STAGES; ++i) {
        tsr_mem_free(d->stage[i].destination);
        tsr_mem_free(d->stage[i].segments);
        tsr_mem_free(d->stage[i].one_each);
        tsr_mem_free(d->stage[i].next);
        tsr_growing_free_staging(d->options.device, &d->staged[i]);
    }
    tsr_growing_free_device(d->options.device, &d->sent);
    tsr_growing_free_device(d->options.device, &d->met);
    tsr_growing_free_device(d->options.device, &d->sum);
    tsr_growing_free_staging(d->options.device, &d->sent_slots);
    tsr_growing_free_staging(d->options.device, &d->passing);
    tsr_mem_free(d->itself);
    tsr_mem_free(d->node_of);
    tsr_mem_free(d->own);
    tsr_mem_free(d->table);
    tsr_mem_free(d);
    *dispatch_p = NULL;
}

tsr_status tsr_dispatch_plan_create(tsr_dispatch *dispatch, tsr_dispatch_plan **out)
{
    void *block = NULL;

    *out = NULL;
    TSR_TRY(tsr_mem_alloc(TSR_MEM_COMM, sizeof(tsr_dispatch_plan), &block));
    tsr_dispatch_plan *plan = block;
    tsr_status st = TSR_OK;
    plan->dispatch = dispatch;
    for (int i = 0; i < dispatch->stages && st == TSR_OK; ++i) {
        st = take(dispatch->stage[i].size + 1, sizeof(int64_t), &plan->way[i].send_begin);
        if (st == TSR_OK) {
            st = take(dispatch->stage[i].size + 1, sizeof(int64_t), &plan->way[i].receive_begin);
        }
    }
    if (st != TSR_OK) {
        tsr_dispatch_plan_destroy(&plan);
        return st;
    }
    *out = plan;
    return TSR_OK;
}

void tsr_dispatch_plan_destroy(tsr_dispatch_plan **plan_p)
{
    tsr_dispatch_plan *plan = *plan_p;

    if (plan == NULL) {
        return;
    }
    tsr_device *device = plan->dispatch->options.device;
    for (int i = 0; i < MOST_STAGES; ++i) {
        way *w = &plan->way[i];
        mirror_free(device, &w->send_unit);
        mirror_free(device, &w->fan);
        mirror_free(device, &w->bounds);
        tsr_growing_free_staging(device, &w->slots);
        tsr_mem_free(w->send_begin);
        tsr_mem_free(w->receive_begin);
    }
    tsr_growing_free_staging(device, &plan->first);
    mirror_free(device, &plan->offsets);
    mirror_free(device, &plan->token_of);
    mirror_free(device, &plan->row_of);
    mirror_free(device, &plan->row_weight);
    tsr_mem_free(plan);
    *plan_p = NULL;
}

/* ---- rows on their way ----------------------------------------------------------------------- */

/* take_block: let blocks grow, or make them fit. */
static tsr_status make_rows(tsr_dispatch *d, tsr_dispatch_room room,
                            tsr_status (*take_block)(tsr_device *, tsr_mem_tag, size_t,
                                                     tsr_growing *))
{
    const tsr_dispatch_options *o = &d->options;
    const size_t element = tsr_dtype_bytes(o->dtype);
    const size_t sent = (size_t)(room.sent * o->width), met = (size_t)(room.met * o->width);

    TSR_TRY(take_block(o->device, TSR_MEM_ACTIVATIONS, sent * element, &d->sent));
    if (d->stages == 1) {
        return TSR_OK;
    }
    TSR_TRY(take_block(o->device, TSR_MEM_ACTIVATIONS, met * element, &d->met));
    return o->dtype == TSR_F32
               ? TSR_OK
               : take_block(o->device, TSR_MEM_ACTIVATIONS, met * sizeof(float), &d->sum);
}

tsr_status tsr_dispatch_reserve(tsr_dispatch *dispatch, tsr_dispatch_room room)
{
    return make_rows(dispatch, room, tsr_growing_fit);
}

size_t tsr_dispatch_bytes(int64_t width, tsr_dtype dtype, tsr_dispatch_room room)
{
    const size_t element = tsr_dtype_bytes(dtype), met = (size_t)(room.met * width);
    const size_t sent = tsr_growing_room((size_t)(room.sent * width) * element);

    if (room.met == 0) {
        return sent;
    }
    return sent + tsr_growing_room(met * element) +
           (dtype == TSR_F32 ? 0 : tsr_growing_room(met * sizeof(float)));
}

tsr_dispatch_view tsr_dispatch_plan_view(const tsr_dispatch_plan *plan)
{
    return plan->view;
}

/* ---- planning ------------------------------------------------------------------------------- */

static tsr_status take_lanes(tsr_dispatch *d, tsr_dispatch_plan *plan, const int32_t *lane,
                             const float *weight, int64_t tokens)
{
    const int64_t count = tokens * d->options.top_k;

    TSR_TRY(host_room(d->options.device, &plan->first, (size_t)count * sizeof(slot)));
    slot *slots = plan->first.memory;
    for (int64_t i = 0; i < count; ++i) {
        TSR_CHECK(lane[i] >= -1 && lane[i] / TSR_LANE_PLACES < d->ranks, TSR_ERR_ARG,
                  "token %" PRId64 " has a lane on rank %d of %d", i / d->options.top_k,
                  lane[i] / TSR_LANE_PLACES, d->ranks);
        slots[i] = (slot){lane[i], weight[i]};
    }
    return TSR_OK;
}

/* Units of this rank to each rank, and to each node. */
static void count_own(tsr_dispatch *d, const slot *slots, int64_t tokens)
{
    const int top_k = d->options.top_k;
    int32_t to[TSR_TOP_K_MAX];

    memset(d->own, 0, (size_t)d->row_length * sizeof *d->own);
    for (int64_t t = 0; t < tokens; ++t, slots += top_k) {
        const int ranks = way_destinations(d->itself, slots, top_k, to);

        for (int i = 0; i < ranks; ++i) {
            ++d->own[to[i]];
        }
        const int nodes = d->nodes > 0 ? way_destinations(d->node_of, slots, top_k, to) : 0;
        for (int i = 0; i < nodes; ++i) {
            ++d->own[d->ranks + to[i]];
        }
    }
}

/* Units that come to this rank from peer `peer` of a stage: what the sizes of all ranks tell. */
static int64_t count_from(const tsr_dispatch *d, int which, int peer)
{
    const tsr_seat *seats = tsr_comm_seats(d->options.flat);
    int64_t count = 0;

    for (int r = 0; r < d->ranks; ++r) {
        const int64_t *sizes = d->table + r * d->row_length;

        if (d->nodes == 0) {
            count += r == peer ? sizes[d->rank] : 0;
        } else if (which == 0) { /* straight from the rank of that node at this place */
            count += seats[r].node == peer && seats[r].local == seats[d->rank].local
                         ? sizes[d->ranks + d->node]
                         : 0;
        } else { /* by the rank of this node at that place, from that place on all nodes */
            count += seats[r].local == peer ? sizes[d->rank] : 0;
        }
    }
    return count;
}

/* Plan one stage and learn the lanes of what it brings. */
static tsr_status make_way(tsr_dispatch *d, tsr_dispatch_plan *plan, int which, const slot *slots,
                           int64_t units, tsr_stream *stream)
{
    tsr_device *device = d->options.device;
    const stage *s = &d->stage[which];
    way *w = &plan->way[which];
    const int top_k = d->options.top_k;
    const size_t unit_bytes = (size_t)top_k * sizeof *slots;

    TSR_TRY(way_plan(device, s, w, slots, units, top_k));
    w->receive_begin[0] = 0;
    for (int peer = 0; peer < s->size; ++peer) {
        w->receive_begin[peer + 1] = w->receive_begin[peer] + count_from(d, which, peer);
    }
    w->receives = w->receive_begin[s->size];
    TSR_TRY(host_room(device, &w->slots, (size_t)w->receives * unit_bytes));
    TSR_TRY(host_room(device, &d->sent_slots, (size_t)w->sends * unit_bytes));
    const int32_t *send_unit = w->send_unit.host.memory;
    slot *sent = d->sent_slots.memory;
    for (int64_t i = 0; i < w->sends; ++i) {
        memcpy(sent + i * top_k, slots + send_unit[i] * (int64_t)top_k, unit_bytes);
    }
    TSR_TRY(move_on_host(s, w, sent, w->slots.memory, unit_bytes, false, TSR_TRAFFIC_DISPATCH));
    TSR_TRY(mirror_send(device, &w->send_unit, (size_t)w->sends * sizeof *send_unit, stream));
    TSR_TRY(mirror_send(device, &w->fan, (size_t)(units * w->fan_width) * sizeof(int32_t), stream));
    return mirror_send(device, &w->bounds, 2 * sizeof(int64_t), stream);
}

/* Rows of each place, padded: offsets. */
static tsr_status place_rows(tsr_dispatch *d, tsr_dispatch_plan *plan, const slot *slots,
                             int64_t count, int places)
{
    int64_t *offsets = plan->offsets.host.memory;

    memset(offsets, 0, (size_t)(places + 1) * sizeof *offsets);
    for (int64_t i = 0; i < count; ++i) {
        const int32_t lane = slots[i].lane;

        if (lane >= 0 && lane / TSR_LANE_PLACES == d->rank) {
            TSR_CHECK(lane % TSR_LANE_PLACES < places, TSR_ERR_ARG,
                      "a peer sends to place %d, this rank has %d", lane % TSR_LANE_PLACES, places);
            ++offsets[lane % TSR_LANE_PLACES + 1];
        }
    }
    for (int p = 0; p < places; ++p) {
        offsets[p + 1] = offsets[p] + tsr_padded_rows(offsets[p + 1]);
    }
    TSR_CHECK(offsets[places] <= INT32_MAX, TSR_ERR_ARG,
              "%" PRId64 " rows come to this rank, at most %d: make train.micro_batch smaller",
              offsets[places], INT32_MAX);
    return TSR_OK;
}

/* Units with their lanes -> rows by place. */
static tsr_status expand(tsr_dispatch *d, tsr_dispatch_plan *plan, const slot *slots, int64_t units,
                         int places, tsr_stream *stream)
{
    tsr_device *device = d->options.device;
    const int64_t count = units * d->options.top_k;
    const size_t offset_bytes = (size_t)(places + 1) * sizeof(int64_t);

    TSR_TRY(mirror_reserve(device, &plan->offsets, 2 * offset_bytes)); /* and the next of each */
    TSR_TRY(place_rows(d, plan, slots, count, places));
    int64_t *offsets = plan->offsets.host.memory, *next = offsets + places + 1;
    const int64_t rows = offsets[places];
    const size_t row_bytes = (size_t)rows * sizeof(int32_t);
    TSR_TRY(mirror_reserve(device, &plan->token_of, row_bytes));
    TSR_TRY(mirror_reserve(device, &plan->row_weight, row_bytes));
    TSR_TRY(mirror_reserve(device, &plan->row_of, (size_t)count * sizeof(int32_t)));
    int32_t *token_of = plan->token_of.host.memory, *row_of = plan->row_of.host.memory;
    float *row_weight = plan->row_weight.host.memory;
    memset(token_of, -1, row_bytes);
    memset(row_weight, 0, row_bytes);
    memcpy(next, offsets, offset_bytes);
    int64_t lanes = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t lane = slots[i].lane;

        row_of[i] = -1;
        if (lane >= 0 && lane / TSR_LANE_PLACES == d->rank) {
            row_of[i] = (int32_t)next[lane % TSR_LANE_PLACES]++;
            token_of[row_of[i]] = (int32_t)(i / d->options.top_k);
            row_weight[row_of[i]] = slots[i].weight;
            ++lanes;
        }
    }
    TSR_TRY(mirror_send(device, &plan->offsets, offset_bytes, stream));
    TSR_TRY(mirror_send(device, &plan->token_of, row_bytes, stream));
    TSR_TRY(mirror_send(device, &plan->row_weight, row_bytes, stream));
    TSR_TRY(mirror_send(device, &plan->row_of, (size_t)count * sizeof(int32_t), stream));
    plan->view = (tsr_dispatch_view){.units = units,
                                     .rows = rows,
                                     .lanes = lanes,
                                     .offsets = mirror_on_device(&plan->offsets),
                                     .token_of = mirror_on_device(&plan->token_of),
                                     .row_of = mirror_on_device(&plan->row_of),
                                     .row_weight = mirror_on_device(&plan->row_weight)};
    return TSR_OK;
}

/* Scratch for the rows of a plan. */
static tsr_status take_rows(tsr_dispatch *d, const tsr_dispatch_plan *plan)
{
    tsr_dispatch_room room = {.met = d->stages == 1 ? 0 : plan->way[0].receives};

    for (int i = 0; i < d->stages; ++i) {
        room.sent = plan->way[i].sends > room.sent ? plan->way[i].sends : room.sent;
    }
    return make_rows(d, room, tsr_growing_device);
}

tsr_status tsr_dispatch_make(tsr_dispatch *dispatch, tsr_dispatch_plan *plan, const int32_t *lane,
                             const float *weight, int64_t tokens, int places, tsr_stream *stream)
{
    tsr_dispatch *d = dispatch;
    const slot *slots = NULL;
    int64_t units = tokens;

    TSR_CHECK(places >= 0 && places <= TSR_LANE_PLACES, TSR_ERR_ARG,
              "%d places, must be in [0, %d]", places, TSR_LANE_PLACES);
    TSR_TRY(take_lanes(d, plan, lane, weight, tokens));
    slots = plan->first.memory;
    count_own(d, slots, tokens);
    TSR_TRY(tsr_comm_all_gather(d->options.all, d->own, (size_t)d->row_length * sizeof *d->own,
                                d->table));
    for (int i = 0; i < d->stages; ++i) {
        TSR_TRY(make_way(d, plan, i, slots, units, stream));
        slots = plan->way[i].slots.memory;
        units = plan->way[i].receives;
    }
    TSR_TRY(take_rows(d, plan));
    return expand(d, plan, slots, units, places, stream);
}
