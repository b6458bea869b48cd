/* State of experts from old owners to new ones: what a checkpoint on another layout does, in
 * memory. Both deals are functions of tables that all ranks know, so nobody asks anybody. */
#include "launch/reshard.h"

#include "launch/trainer_impl.h"

#include <stdlib.h>
#include <string.h>

/* ---- who holds which rows -------------------------------------------------------------------- */

/* Rows of one parameter, as in the whole table, that one rank of the dense group holds. */
typedef struct run {
    int param, rank;
    int64_t begin, end;
} run;

typedef struct run_list {
    run *runs; /* by parameter and row; they tile the experts' parameters */
    int64_t count;
} run_list;

static int by_param_and_row(const void *left, const void *right)
{
    const run *a = left, *b = right;

    if (a->param != b->param) {
        return a->param < b->param ? -1 : 1;
    }
    return (a->begin > b->begin) - (a->begin < b->begin);
}

/* Add the rows of elements [from, to) of the experts' flat buffer. */
static void add_runs(const tsr_param_table *local, int64_t from, int64_t to, int rank,
                     run_list *list)
{
    for (int i = 0; i < local->count; ++i) {
        const tsr_param *param = &local->params[i];
        int64_t row = 0, end = 0;

        if (param->group != TSR_GROUP_EXPERT) {
            continue;
        }
        tsr_param_rows_between(param, from, to, &row, &end);
        while (row < end) {
            const int64_t stop =
                tsr_param_run_end(param, row) < end ? tsr_param_run_end(param, row) : end;
            const int64_t begin = tsr_param_global_row(param, row);

            list->runs[list->count++] =
                (run){.param = i, .rank = rank, .begin = begin, .end = begin + stop - row};
            row = stop;
        }
    }
}

static tsr_status list_runs(const trainer *t, const int32_t *owner, run_list *list)
{
    const tsr_mesh *mesh = &t->mesh;
    int64_t most = 0; /* a run ends with its expert or with a shard */

    for (int i = 0; i < t->table.count; ++i) {
        const tsr_param *param = &t->table.params[i];

        most +=
            param->group == TSR_GROUP_EXPERT ? param->shape[0] + (int64_t)mesh->dp * mesh->ep : 0;
    }
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, most, sizeof *list->runs, (void **)&list->runs));
    for (int part = 0; part < mesh->ep; ++part) {
        tsr_param_table local = {0};

        TSR_TRY(tsr_param_table_share(&t->table, owner, part, &local));
        for (int d = 0; d < mesh->dp; ++d) {
            add_runs(&local, tsr_shard_cut(&local, TSR_GROUP_EXPERT, mesh->dp, d),
                     tsr_shard_cut(&local, TSR_GROUP_EXPERT, mesh->dp, d + 1), d * mesh->ep + part,
                     list);
        }
        tsr_param_table_destroy(&local);
    }
    qsort(list->runs, (size_t)list->count, sizeof *list->runs, by_param_and_row);
    return TSR_OK;
}

/* ---- the state, kept ------------------------------------------------------------------------- */

enum { KINDS = 3 }; /* master weights, first and second moments */

/* Elements of one run that stay on one rank, or go from one to another. */
typedef struct piece {
    int from, to;
    int64_t count;
    int64_t source; /* on rank `from`: in the kept blocks */
    int64_t target; /* on rank `to`: from its first expert's first value on */
} piece;

typedef struct deal {
    run_list before, after;
    tsr_state_slice *kept; /* the old slices; their values fill the blocks */
    int count;
    char *block[KINDS];
    piece *pieces; /* that this rank has or gets, by parameter and row */
    int64_t piece_count;
    int64_t moved; /* elements that change their rank, on all of them */
    tsr_segment *segments;
    int64_t *begin; /* of sends, of receipts: [2, P+1] */
} deal;

static void free_deal(deal *d)
{
    tsr_mem_free(d->before.runs);
    tsr_mem_free(d->after.runs);
    tsr_mem_free(d->kept);
    for (int kind = 0; kind < KINDS; ++kind) {
        tsr_mem_free(d->block[kind]);
    }
    tsr_mem_free(d->pieces);
    tsr_mem_free(d->segments);
    tsr_mem_free(d->begin);
}

static char *values_of(const tsr_state_slice *slice, int kind)
{
    void *const values[KINDS] = {slice->master, slice->m, slice->v};

    return values[kind];
}

static size_t element_bytes(const trainer *t, int kind)
{
    return kind == 0 ? sizeof(float) : tsr_dtype_bytes((tsr_dtype)t->s->optim.moments);
}

static int64_t elements_of(const trainer *t, const tsr_state_slice *slice)
{
    return (slice->row_end - slice->row_begin) * t->table.params[slice->param].width;
}

static bool is_expert(const trainer *t, const tsr_state_slice *slice)
{
    return t->table.params[slice->param].group == TSR_GROUP_EXPERT;
}

static tsr_status keep_slices(trainer *t, deal *d)
{
    const tsr_state_slice *slices = NULL;
    int64_t all = 0, at = 0;

    TSR_TRY(tsr_optimizer_slices(t->optimizer, &slices, &d->count));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OPTIMIZER, d->count, sizeof *d->kept, (void **)&d->kept));
    for (int i = 0; i < d->count; ++i) {
        all += elements_of(t, &slices[i]);
    }
    for (int kind = 0; kind < KINDS; ++kind) {
        TSR_TRY(tsr_mem_alloc(TSR_MEM_OPTIMIZER, (size_t)all * element_bytes(t, kind),
                              (void **)&d->block[kind]));
    }
    for (int i = 0; i < d->count; ++i) {
        const int64_t count = elements_of(t, &slices[i]);
        char *to[KINDS];

        for (int kind = 0; kind < KINDS; ++kind) {
            const size_t size = element_bytes(t, kind);

            to[kind] = d->block[kind] + (size_t)at * size;
            memcpy(to[kind], values_of(&slices[i], kind), (size_t)count * size);
        }
        d->kept[i] = slices[i];
        d->kept[i].master = (float *)(void *)to[0];
        d->kept[i].m = to[1];
        d->kept[i].v = to[2];
        at += count;
    }
    return TSR_OK;
}

/* What is no expert's stays where it is. */
static void put_back(const trainer *t, const deal *d, const tsr_state_slice *slices, int count)
{
    int old = 0;

    for (int i = 0; i < count; ++i) {
        if (is_expert(t, &slices[i])) {
            continue;
        }
        while (is_expert(t, &d->kept[old])) {
            ++old;
        }
        for (int kind = 0; kind < KINDS; ++kind) {
            memcpy(values_of(&slices[i], kind), values_of(&d->kept[old], kind),
                   (size_t)elements_of(t, &slices[i]) * element_bytes(t, kind));
        }
        ++old;
    }
}

/* ---- moving it ------------------------------------------------------------------------------- */

/* Elements from base on to a row; rows are asked for in ascending order, at: where the last was. */
static int64_t place_of(const trainer *t, const tsr_state_slice *slices, const float *base,
                        int param, int64_t row, int *at)
{
    while (slices[*at].param != param || slices[*at].row_end <= row) {
        ++*at;
    }
    const tsr_state_slice *slice = &slices[*at];
    return slice->master - base + (row - slice->row_begin) * t->table.params[param].width;
}

static const tsr_state_slice *first_expert(const trainer *t, const tsr_state_slice *slices,
                                           int count)
{
    for (int i = 0; i < count; ++i) {
        if (is_expert(t, &slices[i])) {
            return &slices[i];
        }
    }
    return NULL;
}

/* Both deals tile the same rows: go through them side by side. */
static tsr_status list_pieces(const trainer *t, deal *d, const tsr_state_slice *slices, int count)
{
    const tsr_state_slice *first = first_expert(t, slices, count);
    const int me = tsr_comm_rank(t->mesh.dense.host.all);
    const int64_t most = d->before.count + d->after.count;
    int source = 0, target = 0;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, most, sizeof *d->pieces, (void **)&d->pieces));
    for (int64_t i = 0, j = 0; i < d->before.count;) {
        const run *a = &d->before.runs[i], *b = &d->after.runs[j];
        const int64_t begin = a->begin > b->begin ? a->begin : b->begin;
        const int64_t end = a->end < b->end ? a->end : b->end;
        piece p = {.from = a->rank,
                   .to = b->rank,
                   .count = (end - begin) * t->table.params[a->param].width};

        d->moved += p.from != p.to ? p.count : 0;
        if (p.from == me) {
            p.source = place_of(t, d->kept, (const float *)(const void *)d->block[0], a->param,
                                begin, &source);
        }
        if (p.to == me) {
            p.target = place_of(t, slices, first->master, a->param, begin, &target);
        }
        if (p.from == me || p.to == me) {
            d->pieces[d->piece_count++] = p;
        }
        i += a->end == end;
        j += b->end == end;
    }
    return TSR_OK;
}

/* Segments of one kind, peer by peer: of what goes out, or of what comes in. */
static void fill_segments(const deal *d, int me, int size, bool comes, size_t element,
                          tsr_segment *segments, int64_t *begin)
{
    int64_t count = 0;

    for (int peer = 0; peer < size; ++peer) {
        begin[peer] = count;
        for (int64_t i = 0; i < d->piece_count; ++i) {
            const piece *p = &d->pieces[i];

            if (p->from != p->to && p->from == (comes ? peer : me) &&
                p->to == (comes ? me : peer)) {
                segments[count++] =
                    (tsr_segment){.at = (comes ? p->target : p->source) * (int64_t)element,
                                  .bytes = p->count * (int64_t)element};
            }
        }
    }
    begin[size] = count;
}

static tsr_status move_kind(const trainer *t, const deal *d, int kind, char *experts)
{
    tsr_comm *const comm = t->mesh.dense.flat; /* what goes along planes exchanges nothing */
    const int me = tsr_comm_rank(comm), size = tsr_comm_size(comm);
    const size_t element = element_bytes(t, kind);
    tsr_segment *const receive = d->segments + d->piece_count;
    int64_t *const receive_begin = d->begin + size + 1;

    for (int64_t i = 0; i < d->piece_count; ++i) {
        const piece *p = &d->pieces[i];

        if (p->from == p->to) {
            memcpy(experts + (size_t)p->target * element,
                   d->block[kind] + (size_t)p->source * element, (size_t)p->count * element);
        }
    }
    fill_segments(d, me, size, false, element, d->segments, d->begin);
    fill_segments(d, me, size, true, element, receive, receive_begin);
    const tsr_exchange exchange = {.send = d->block[kind],
                                   .receive = experts,
                                   .send_segments = d->segments,
                                   .receive_segments = receive,
                                   .send_begin = d->begin,
                                   .receive_begin = receive_begin,
                                   .purpose = TSR_TRAFFIC_RESHARD};
    return tsr_comm_exchange(comm, &exchange);
}

static tsr_status take_segments(const trainer *t, deal *d)
{
    const int64_t size = tsr_comm_size(t->mesh.dense.host.all);

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, 2 * d->piece_count, sizeof *d->segments,
                                (void **)&d->segments));
    return tsr_mem_alloc_array(TSR_MEM_OTHER, 2 * (size + 1), sizeof *d->begin, (void **)&d->begin);
}

/* Kept values to the slices as they are now. */
static tsr_status hand_out(trainer *t, deal *d)
{
    const tsr_state_slice *slices = NULL;
    int count = 0;

    tsr_status st = tsr_optimizer_slices(t->optimizer, &slices, &count);
    st = st != TSR_OK ? st : list_pieces(t, d, slices, count);
    st = st != TSR_OK ? st : take_segments(t, d);
    TSR_TRY(tsr_comm_agree(t->comm, st));
    put_back(t, d, slices, count);
    const tsr_state_slice *first = first_expert(t, slices, count);
    for (int kind = 0; kind < KINDS; ++kind) {
        /* a rank without experts gets nothing: any address will do */
        TSR_TRY(move_kind(t, d, kind, first != NULL ? values_of(first, kind) : d->block[kind]));
    }
    return tsr_optimizer_refresh(t->optimizer, t->stream);
}

/* ---- the deal -------------------------------------------------------------------------------- */

static tsr_status make_anew(trainer *t, const int32_t *owner)
{
    tsr_optimizer_destroy(&t->optimizer);
    tsr_weights_destroy(&t->weights);
    tsr_param_table_destroy(&t->local);
    memcpy(t->owner, owner,
           (size_t)(t->s->model.num_hidden_layers * t->s->model.num_experts) * sizeof *owner);
    tsr_status st = tsr_param_table_share(&t->table, t->owner, t->mesh.ep_rank, &t->local);
    st = st != TSR_OK
             ? st
             : tsr_weights_create(&t->s->model, &t->local, t->device, t->dtype, true, &t->weights);
    st = st != TSR_OK ? st : tsr_stage_deal(t->stage);
    TSR_TRY(tsr_comm_agree(t->comm, st));
    return trainer_create_optimizer(t);
}

static tsr_status run_deal(trainer *t, const int32_t *owner, deal *d)
{
    tsr_status st = list_runs(t, t->owner, &d->before);

    st = st != TSR_OK ? st : list_runs(t, owner, &d->after);
    st = st != TSR_OK ? st : keep_slices(t, d);
    TSR_TRY(tsr_comm_agree(t->comm, st));
    TSR_TRY(make_anew(t, owner));
    TSR_TRY(hand_out(t, d));
    return t->router_bias != NULL ? trainer_send_router_bias(t) : TSR_OK;
}

tsr_status reshard_deal(trainer *t, const int32_t *owner, reshard_move *move_out)
{
    const int64_t cells = t->weights.layers * t->weights.experts, begin = tsr_trace_clock();
    reshard_move move = {0};
    deal d = {0};

    for (int64_t i = t->s->model.first_k_dense_replace * t->weights.experts; i < cells; ++i) {
        TSR_CHECK(owner[i] >= 0 && owner[i] < t->mesh.ep, TSR_ERR_FORMAT,
                  "owner of expert %lld is rank %d, of %d", (long long)i, owner[i], t->mesh.ep);
        move.experts += owner[i] != t->owner[i];
    }
    if (move.experts > 0) {
        tsr_comm_set_phase("experts to new owners", t->step);
        const tsr_status st = run_deal(t, owner, &d);
        free_deal(&d);
        TSR_TRY(st);
        TSR_TRY(tsr_stream_wait(t->stream));
        for (int kind = 0; kind < KINDS; ++kind) {
            move.bytes += (double)d.moved * (double)element_bytes(t, kind);
        }
        move.seconds = 1e-9 * (double)(tsr_trace_clock() - begin);
    }
    *move_out = move;
    return TSR_OK;
}

/* Rank 0's choice: nodes may lie otherwise in another replica's group. */
static tsr_status choose(trainer *t, int32_t *owner, tsr_move *plan)
{
    const settings *s = t->s;
    const int64_t cells = t->weights.layers * t->weights.experts;
    const int64_t forwards = s->experts.reshard_every * trainer_passes(t, s->train.global_batch);

    TSR_TRY(tsr_comm_agree(
        t->comm, tsr_stage_better_owners(t->stage, forwards < INT32_MAX ? (int)forwards : INT32_MAX,
                                         s->experts.reshard_cost, owner, plan)));
    TSR_TRY(tsr_comm_broadcast(t->comm, plan, sizeof *plan, 0));
    return tsr_comm_broadcast(t->comm, owner, (size_t)cells * sizeof *owner, 0);
}

tsr_status reshard_if_due(trainer *t, reshard_move *move_out)
{
    const int64_t every = t->s->experts.reshard_every;
    int32_t *owner = NULL;
    tsr_move plan = {0};
    tsr_status st = TSR_OK;

    *move_out = (reshard_move){0};
    if (every == 0 || t->step % every != 0 || t->step >= t->s->train.steps ||
        tsr_stage_history(t->stage) == NULL) {
        return TSR_OK;
    }
    tsr_comm_set_phase("choosing owners", t->step);
    TSR_TRY(tsr_comm_agree(t->comm, tsr_mem_alloc_array(TSR_MEM_OTHER,
                                                        t->weights.layers * t->weights.experts,
                                                        sizeof *owner, (void **)&owner)));
    TSR_TRY_GOTO(choose(t, owner, &plan), done);
    if (plan.pays) {
        TSR_TRY_GOTO(reshard_deal(t, owner, move_out), done);
        tsr_log(TSR_LOG_INFO,
                "step %lld: %lld of %lld experts go to other owners, %.1f MiB in %.3f s: the "
                "fullest ranks' tokens are to fall by %.0f a step",
                (long long)t->step, (long long)move_out->experts,
                (long long)tsr_model_moe_layers(&t->s->model) * (long long)t->weights.experts,
                move_out->bytes / 1048576.0, move_out->seconds, plan.gain_s / (double)every);
    }
done:
    tsr_mem_free(owner);
    return st;
}
