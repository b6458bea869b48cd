/* The tree of a chunk: along the owner's plane from node to node, then inside each node.
 *
 * The nodes that hold the chunk follow the owner's in the order of their numbers (mod nodes), the
 * holders of a node follow its first rank in the order of places (mod the node's): owners that
 * differ spread the work. Both orders are made into a chain, where every rank sends a chunk once
 * and all links are busy, or into a binary tree where chunks are too small to fill a chain.
 * Children are served in turn, a round apart, other nodes before the own one:
 *
 *   node 0        node 1        node 2               round   0     1     2     3     4
 *   owner a ----> relay b ----> d                    a->b   p0    p1    p2
 *     |             |           |                    a->c         p0    p1    p2
 *     v             v           v                    b->d         p0    p1    p2
 *     c             e           f                    b->e               p0    p1    p2
 *                                                    d->f               p0    p1    p2
 *
 * A reduce-scatter runs the rounds backwards. So each rank adds to its own f32 values, a relay to
 * zeros, the sums of its children: those of the own node, the last served first, then those of
 * other nodes, the last served first; one at a time, whichever the transport. */
#include "collectives/sparse/sparse_impl.h"

/* Rank `turn` of a node, from a place on. */
static int rank_from(const tsr_sparse *s, int node, int place, int turn)
{
    const int32_t begin = s->node_begin[node], places = s->node_begin[node + 1] - begin;

    return s->node_rank[begin + (place + turn) % places];
}

static bool holds(const tsr_sparse *s, int rank)
{
    return s->mark[rank] == s->stamp;
}

/* Where the chunk enters a node that holds it: a holder in the owner's plane, else any rank in it,
 * else, across planes, a holder; the owner's own place first. -1: nobody there holds it. */
static int find_entry(const tsr_sparse *s, int node, int owner)
{
    const tsr_seat *seats = tsr_comm_seats(s->comm), *from = &seats[owner];
    const int places = s->node_begin[node + 1] - s->node_begin[node];
    int holder = -1, in_plane = -1;

    for (int turn = 0; turn < places; ++turn) {
        const int rank = rank_from(s, node, from->local, turn);
        const bool is_in_plane = seats[rank].plane == from->plane;

        if (holds(s, rank) && is_in_plane) {
            return rank;
        }
        holder = holder < 0 && holds(s, rank) ? rank : holder;
        in_plane = in_plane < 0 && is_in_plane ? rank : in_plane;
    }
    return holder < 0 || in_plane < 0 ? holder : in_plane;
}

static void add_member(tsr_sparse *s, int at, int rank, int parent)
{
    sparse_member *above = &s->members[parent];

    s->members[at] = (sparse_member){.rank = rank,
                                     .parent = parent,
                                     .arrival = above->arrival + 1 + above->children++,
                                     .relays = !holds(s, rank)};
}

int sparse_build_tree(tsr_sparse *s, const tsr_holding *holding, int chunk, int fan_out)
{
    const int owner = holding->rank[holding->begin[chunk]];
    const tsr_seat *seats = tsr_comm_seats(s->comm);
    int entries = 1;

    ++s->stamp;
    for (int32_t i = holding->begin[chunk]; i < holding->begin[chunk + 1]; ++i) {
        s->mark[holding->rank[i]] = s->stamp;
    }
    s->members[0] = (sparse_member){.rank = owner, .parent = -1, .arrival = -1};
    for (int turn = 1; turn < s->nodes; ++turn) {
        const int entry = find_entry(s, (seats[owner].node + turn) % s->nodes, owner);
        if (entry >= 0) {
            add_member(s, entries, entry, (entries - 1) / fan_out);
            ++entries;
        }
    }
    int count = entries;
    for (int first = 0; first < entries; ++first) {
        const tsr_seat *seat = &seats[s->members[first].rank];
        const int places = s->node_begin[seat->node + 1] - s->node_begin[seat->node];
        const int others = count; /* of this node; number n is the child of number (n - 1) / f */

        for (int turn = 1; turn < places; ++turn) {
            const int rank = rank_from(s, seat->node, seat->local, turn);
            if (holds(s, rank)) {
                const int above = (count - others) / fan_out;
                add_member(s, count, rank, above == 0 ? first : others + above - 1);
                ++count;
            }
        }
    }
    return count;
}
