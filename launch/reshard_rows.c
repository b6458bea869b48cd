/* Rows of experts' state from the ranks that had them to those that have them now.
 *
 * Both deals are functions of tables that all ranks know, so nobody asks anybody. A run of rows
 * that goes to another rank is a chunk with two holders: sparse collectives bring it there, between
 * nodes in its old owner's plane. */
#include "launch/reshard_impl.h"

#include <stdlib.h>
#include <string.h>

/* ---- who holds which rows -------------------------------------------------------------------- */

static int by_param_and_row(const void *left, const void *right)
{
    const reshard_run *a = left, *b = right;

    if (a->param != b->param) {
        return a->param < b->param ? -1 : 1;
    }
    return (a->begin > b->begin) - (a->begin < b->begin);
}

/* Add the rows of elements [from, to) of the experts' flat buffer. */
static void add_runs(const tsr_param_table *local, int64_t from, int64_t to, int rank,
                     reshard_runs *list)
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
                (reshard_run){.param = i, .rank = rank, .begin = begin, .end = begin + stop - row};
            row = stop;
        }
    }
}

tsr_status reshard_list_runs(const trainer *t, const int32_t *owner, reshard_runs *list)
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

/* ---- what stays and what goes ---------------------------------------------------------------- */

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
        if (reshard_is_expert(t, &slices[i])) {
            return &slices[i];
        }
    }
    return NULL;
}

/* What stays comes first, then what goes, equal lengths together; the same order on all ranks. */
static int by_way_and_length(const void *left, const void *right)
{
    const reshard_piece *a = left, *b = right;
    const bool a_goes = a->from != a->to, b_goes = b->from != b->to;

    if (a_goes != b_goes) {
        return a_goes ? 1 : -1;
    }
    if (a->count != b->count) {
        return a->count < b->count ? -1 : 1;
    }
    return (a->number > b->number) - (a->number < b->number);
}

/* Both deals tile the same rows: go through them side by side. */
static tsr_status list_pieces(const trainer *t, reshard_state *d, const tsr_state_slice *slices,
                              const float *experts)
{
    const int me = tsr_comm_rank(t->mesh.dense.flat);
    const int64_t most = d->before.count + d->after.count;
    int source = 0, target = 0;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, most, sizeof *d->pieces, (void **)&d->pieces));
    for (int64_t i = 0, j = 0, number = 0; i < d->before.count; ++number) {
        const reshard_run *a = &d->before.runs[i], *b = &d->after.runs[j];
        const int64_t begin = a->begin > b->begin ? a->begin : b->begin;
        const int64_t end = a->end < b->end ? a->end : b->end;
        reshard_piece p = {.from = a->rank,
                           .to = b->rank,
                           .number = number,
                           .count = (end - begin) * t->table.params[a->param].width};

        if (p.from == me) {
            p.source = place_of(t, d->kept, (const float *)(const void *)d->block[0], a->param,
                                begin, &source);
        }
        if (p.to == me) {
            p.target = place_of(t, slices, experts, a->param, begin, &target);
        }
        if (p.from != p.to || p.from == me) {
            d->pieces[d->piece_count++] = p;
        }
        d->stay_count += p.from == p.to && p.from == me;
        d->moved += p.from != p.to ? p.count : 0;
        i += a->end == end;
        j += b->end == end;
    }
    qsort(d->pieces, (size_t)d->piece_count, sizeof *d->pieces, by_way_and_length);
    return TSR_OK;
}

/* ---- moving it ------------------------------------------------------------------------------- */

/* Pieces of one length that are under way together; several a rank, so that all links are busy. */
enum { PIECES_PER_RANK = 4, MOST_PIECES = 4096 };

typedef struct batch {
    tsr_sparse *sparse;
    int64_t most;
    int32_t *begin, *rank; /* of its holding: [most + 1], [2 most] */
    void **memory;         /* [most, RESHARD_KINDS] */
} batch;

static tsr_status open_batch(const trainer *t, batch *b)
{
    const int ranks = tsr_comm_size(t->mesh.dense.flat);

    b->most = ranks < MOST_PIECES / PIECES_PER_RANK ? PIECES_PER_RANK * ranks : MOST_PIECES;
    const tsr_sparse_options options = {.max_chunks = (int)b->most, .max_parts = RESHARD_KINDS};
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, b->most + 1, sizeof *b->begin, (void **)&b->begin));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, 2 * b->most, sizeof *b->rank, (void **)&b->rank));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, RESHARD_KINDS * b->most, sizeof *b->memory,
                                (void **)&b->memory));
    for (int32_t i = 0; i <= b->most; ++i) {
        b->begin[i] = 2 * i;
    }
    return tsr_sparse_create(t->mesh.dense.flat, NULL, &options, &b->sparse);
}

static void close_batch(batch *b)
{
    tsr_sparse_destroy(&b->sparse);
    tsr_mem_free(b->begin);
    tsr_mem_free(b->rank);
    tsr_mem_free(b->memory);
}

/* Address of a piece on this rank; NULL where it is neither of the two. */
static char *address_of(const trainer *t, const reshard_state *d, char *const *experts,
                        const reshard_piece *p, int kind)
{
    const int me = tsr_comm_rank(t->mesh.dense.flat);
    const size_t element = reshard_element_bytes(t, kind);

    if (p->from == me) {
        return d->block[kind] + (size_t)p->source * element;
    }
    return p->to == me ? experts[kind] + (size_t)p->target * element : NULL;
}

/* Pieces [begin, end), all of one length. */
static tsr_status run_batch(const trainer *t, const reshard_state *d, char *const *experts,
                            int64_t begin, int64_t end, batch *b)
{
    const tsr_holding holding = {(int)(end - begin), b->begin, b->rank};
    int64_t bytes[RESHARD_KINDS];

    for (int kind = 0; kind < RESHARD_KINDS; ++kind) {
        bytes[kind] = d->pieces[begin].count * (int64_t)reshard_element_bytes(t, kind);
    }
    for (int64_t i = begin; i < end; ++i) {
        const reshard_piece *p = &d->pieces[i];

        b->rank[2 * (i - begin)] = p->from;
        b->rank[2 * (i - begin) + 1] = p->to;
        for (int kind = 0; kind < RESHARD_KINDS; ++kind) {
            b->memory[(i - begin) * RESHARD_KINDS + kind] = address_of(t, d, experts, p, kind);
        }
    }
    tsr_sparse_call call = {.holding = &holding,
                            .part_bytes = bytes,
                            .parts = RESHARD_KINDS,
                            .memory = b->memory,
                            .number = -1,
                            .purpose = TSR_TRAFFIC_RESHARD};
    return tsr_sparse_all_gather(b->sparse, &call);
}

static void copy_stays(const trainer *t, const reshard_state *d, char *const *experts)
{
    for (int64_t i = 0; i < d->stay_count; ++i) {
        const reshard_piece *p = &d->pieces[i];

        for (int kind = 0; kind < RESHARD_KINDS; ++kind) {
            const size_t element = reshard_element_bytes(t, kind);

            memcpy(experts[kind] + (size_t)p->target * element,
                   d->block[kind] + (size_t)p->source * element, (size_t)p->count * element);
        }
    }
}

static tsr_status move_pieces(const trainer *t, const reshard_state *d, char *const *experts,
                              batch *b)
{
    copy_stays(t, d, experts);
    for (int64_t begin = d->stay_count, end = begin; begin < d->piece_count; begin = end) {
        while (end < d->piece_count && end - begin < b->most &&
               d->pieces[end].count == d->pieces[begin].count) {
            ++end;
        }
        TSR_TRY(run_batch(t, d, experts, begin, end, b));
    }
    return TSR_OK;
}

tsr_status reshard_move_rows(const trainer *t, reshard_state *d, const tsr_state_slice *slices,
                             int count)
{
    const tsr_state_slice *first = first_expert(t, slices, count);
    char *experts[RESHARD_KINDS];
    batch b = {0};

    for (int kind = 0; kind < RESHARD_KINDS; ++kind) {
        /* a rank without experts gets nothing: any address will do */
        experts[kind] = first != NULL ? reshard_values(first, kind) : d->block[kind];
    }
    tsr_status st = list_pieces(t, d, slices, (const float *)(const void *)experts[0]);
    st = st != TSR_OK ? st : open_batch(t, &b);
    st = tsr_comm_agree(t->comm, st);
    st = st != TSR_OK ? st : move_pieces(t, d, experts, &b);
    close_batch(&b);
    return st;
}
