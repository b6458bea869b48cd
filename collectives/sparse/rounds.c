/* Rounds of one exchange each. In round r an edge carries piece r - arrival of its chunk, if there
 * is one; a reduce-scatter takes the rounds, and the edges, backwards.
 *
 * No deadlock: all ranks work out the same number of rounds from the same holding and take part in
 * all of them, both ends of an edge put the same pieces into the same round in the same order, and
 * what a round sends has come in in an earlier one. */
#include "collectives/sparse/sparse_impl.h"

#include <string.h>

static char *relay_slot(const tsr_sparse *s, int32_t relay, int64_t piece)
{
    return s->relay +
           (relay * (int64_t)SPARSE_RELAY_SLOTS + piece % SPARSE_RELAY_SLOTS) * s->piece_bytes;
}

/* Segments of one piece: it may reach over several parts. Relays cut it like the others. */
static int64_t list_piece(const tsr_sparse *s, const tsr_sparse_call *call, const sparse_edge *edge,
                          int64_t piece, tsr_segment *out)
{
    const int64_t begin = piece * s->piece_bytes;
    const int64_t end =
        begin + s->piece_bytes < s->chunk_bytes ? begin + s->piece_bytes : s->chunk_bytes;
    int64_t part_begin = 0, count = 0;

    for (int part = 0; part < call->parts; ++part) {
        const int64_t part_end = part_begin + call->part_bytes[part];
        const int64_t from = begin > part_begin ? begin : part_begin;
        const int64_t to = end < part_end ? end : part_end;

        if (from < to) {
            const char *at = edge->relay >= 0
                                 ? relay_slot(s, edge->relay, piece) + (from - begin)
                                 : (char *)call->memory[edge->chunk * (int64_t)call->parts + part] +
                                       (from - part_begin);
            out[count++] = (tsr_segment){(int64_t)((uintptr_t)at - (uintptr_t)s->base), to - from};
        }
        part_begin = part_end;
    }
    return count;
}

static void list_round(const tsr_sparse *s, const tsr_sparse_call *call, sparse_edges *edges,
                       int64_t round)
{
    int64_t count = 0;

    for (int peer = 0; peer < tsr_comm_size(s->comm); ++peer) {
        edges->segment_begin[peer] = count;
        for (int64_t i = edges->begin[peer]; i < edges->begin[peer + 1]; ++i) {
            const int64_t piece = round - edges->edge[i].arrival;
            if (piece >= 0 && piece < s->pieces) {
                count += list_piece(s, call, &edges->edge[i], piece, &edges->segments[count]);
            }
        }
    }
    edges->segment_begin[tsr_comm_size(s->comm)] = count;
}

/* Zeros for sums to be added to: where the first child's comes in this round, the last child's of
 * the way down. */
static tsr_status clear_relays(tsr_sparse *s, const tsr_sparse_call *call, int64_t round)
{
    for (int64_t i = 0; i < s->up.count; ++i) {
        const sparse_edge *edge = &s->up.edge[i];
        const int64_t piece = round - edge->arrival - edge->children;

        if (edge->relay < 0 || piece < 0 || piece >= s->pieces) {
            continue;
        }
        char *slot = relay_slot(s, edge->relay, piece);
        if (call->stream == NULL) {
            memset(slot, 0, (size_t)s->piece_bytes);
        } else {
            TSR_TRY(tsr_device_zero(s->options.device, slot, (size_t)s->piece_bytes, call->stream));
        }
    }
    return TSR_OK;
}

tsr_status sparse_run(tsr_sparse *s, const tsr_sparse_call *call, bool sums)
{
    sparse_plan(s, call);
    const sparse_edges *to = sums ? &s->up : &s->down, *from = sums ? &s->down : &s->up;
    const tsr_traffic own =
        sums ? TSR_TRAFFIC_SPARSE_REDUCE_SCATTER : TSR_TRAFFIC_SPARSE_ALL_GATHER;
    const tsr_exchange what = {.send = s->base,
                               .receive = s->base,
                               .send_segments = to->segments,
                               .receive_segments = from->segments,
                               .send_begin = to->segment_begin,
                               .receive_begin = from->segment_begin,
                               .sums = sums,
                               .purpose = call->purpose != 0 ? call->purpose : own};

    for (int64_t turn = 0; turn < s->rounds; ++turn) {
        const int64_t round = sums ? s->rounds - 1 - turn : turn;

        list_round(s, call, &s->up, round);
        list_round(s, call, &s->down, round);
        if (sums) {
            TSR_TRY(clear_relays(s, call, round));
        }
        TSR_TRY(call->stream == NULL ? tsr_comm_exchange(s->comm, &what)
                                     : tsr_comm_exchange_on(s->comm, &what, call->stream));
    }
    return TSR_OK;
}
