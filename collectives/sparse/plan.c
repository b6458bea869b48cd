/* From holders to rounds. Every rank works out all trees and keeps the edges that end at it. */
#include "collectives/sparse/sparse_impl.h"

#include <string.h>

enum {
    ALIGNMENT = 64,
    FILLS = 8 /* a pipeline that takes n rounds to fill runs 8 n: it is full for most of them */
};

static int64_t round_up(int64_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Keep what is between this rank and others in the tree at hand; returns the last arrival. */
static int32_t take_edges(tsr_sparse *s, int chunk, int members)
{
    const int own = tsr_comm_rank(s->comm);
    int32_t last = -1;

    for (int i = 1; i < members; ++i) {
        const sparse_member *m = &s->members[i], *above = &s->members[m->parent];

        if (m->rank == own) {
            s->up.found[s->up.count++] = (sparse_edge){.chunk = chunk,
                                                       .peer = above->rank,
                                                       .arrival = m->arrival,
                                                       .children = m->children,
                                                       .relay = m->relays ? s->relays[own] : -1};
        }
        if (above->rank == own) {
            s->down.found[s->down.count++] =
                (sparse_edge){.chunk = chunk,
                              .peer = m->rank,
                              .arrival = m->arrival,
                              .children = above->children,
                              .relay = above->relays ? s->relays[own] : -1};
        }
        last = m->arrival > last ? m->arrival : last;
    }
    for (int i = 1; i < members; ++i) { /* after the edges, which number this rank's */
        s->relays[s->members[i].rank] += s->members[i].relays;
    }
    return last;
}

/* By counting: the order of chunks stays. */
static void sort_by_peer(sparse_edges *edges, int ranks)
{
    memset(edges->begin, 0, (size_t)(ranks + 1) * sizeof *edges->begin);
    for (int64_t i = 0; i < edges->count; ++i) {
        ++edges->begin[edges->found[i].peer + 1];
    }
    for (int rank = 0; rank < ranks; ++rank) {
        edges->begin[rank + 1] += edges->begin[rank];
    }
    for (int64_t i = 0; i < edges->count; ++i) {
        edges->edge[edges->begin[edges->found[i].peer]++] = edges->found[i];
    }
    for (int rank = ranks; rank > 0; --rank) { /* each begin has become its end */
        edges->begin[rank] = edges->begin[rank - 1];
    }
    edges->begin[0] = 0;
}

static void cut_pieces(tsr_sparse *s, int32_t last)
{
    int32_t most = 0;
    int64_t piece = round_up(s->chunk_bytes);

    for (int rank = 0; rank < tsr_comm_size(s->comm); ++rank) {
        most = s->relays[rank] > most ? s->relays[rank] : most;
    }
    if (last > 0) {
        const int64_t fine = round_up(s->chunk_bytes / (FILLS * (int64_t)last));
        const int64_t least = round_up(s->options.min_piece_bytes);
        const int64_t wanted = fine > least ? fine : least;
        piece = wanted < piece ? wanted : piece;
    }
    if (most > 0) {
        const int64_t room =
            s->options.relay_bytes / (SPARSE_RELAY_SLOTS * (int64_t)most) / ALIGNMENT * ALIGNMENT;
        piece = piece < room ? piece : room;
    }
    s->piece_bytes = piece;
    s->pieces = s->chunk_bytes == 0 ? 0 : (s->chunk_bytes + piece - 1) / piece;
    s->rounds = last < 0 || s->pieces == 0 ? 0 : last + s->pieces;
}

/* Segments count from one address; the lowest keeps them all positive. */
static void find_base(tsr_sparse *s, const sparse_edges *edges, const tsr_sparse_call *call)
{
    for (int64_t i = 0; i < edges->count; ++i) {
        const int64_t first = (int64_t)edges->edge[i].chunk * call->parts;

        for (int part = 0; part < call->parts && edges->edge[i].relay < 0; ++part) {
            char *at = call->memory[first + part];
            if (call->part_bytes[part] > 0 &&
                (s->base == NULL || (uintptr_t)at < (uintptr_t)s->base)) {
                s->base = at;
            }
        }
    }
}

void sparse_plan(tsr_sparse *s, const tsr_sparse_call *call)
{
    const int ranks = tsr_comm_size(s->comm);
    const tsr_holding *holding = call->holding;
    int32_t last = -1;

    s->chunk_bytes = 0;
    for (int part = 0; part < call->parts; ++part) {
        s->chunk_bytes += call->part_bytes[part];
    }
    s->up.count = s->down.count = 0;
    memset(s->relays, 0, (size_t)ranks * sizeof *s->relays);
    for (int chunk = 0; chunk < holding->chunks; ++chunk) {
        const int holders = holding->begin[chunk + 1] - holding->begin[chunk];

        if (holders > 1) {
            /* A chain of n costs n - 1 pieces more than the chunk, a tree twice the chunk. */
            const bool fills = holders <= s->chunk_bytes / s->options.min_piece_bytes;
            const int members = sparse_build_tree(s, holding, chunk, fills ? 1 : SPARSE_FAN_OUT);
            const int32_t arrival = take_edges(s, chunk, members);
            last = arrival > last ? arrival : last;
        }
    }
    cut_pieces(s, last);
    sort_by_peer(&s->up, ranks);
    sort_by_peer(&s->down, ranks);
    s->base = s->relay;
    find_base(s, &s->up, call);
    find_base(s, &s->down, call);
}
