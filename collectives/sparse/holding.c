#include "collectives/sparse.h"

#include <inttypes.h>

static tsr_status check_chunk(const tsr_holding *holding, int chunk, int ranks)
{
    const int32_t begin = holding->begin[chunk], end = holding->begin[chunk + 1];

    TSR_CHECK(begin < end && end - begin <= ranks, TSR_ERR_ARG,
              "chunk %d has holders %" PRId32 " to %" PRId32 ", must be one to %d of them", chunk,
              begin, end, ranks);
    for (int32_t i = begin; i < end; ++i) {
        const int32_t rank = holding->rank[i];

        TSR_CHECK(rank >= 0 && rank < ranks, TSR_ERR_ARG,
                  "holder %" PRId32 " of chunk %d is rank %" PRId32 ", must be in [0, %d)",
                  i - begin, chunk, rank, ranks);
        TSR_CHECK(i == begin || rank != holding->rank[begin], TSR_ERR_ARG,
                  "rank %" PRId32 " owns chunk %d and holds it once more", rank, chunk);
        TSR_CHECK(i <= begin + 1 || rank > holding->rank[i - 1], TSR_ERR_ARG,
                  "holders %" PRId32 " and %" PRId32 " of chunk %d do not ascend",
                  holding->rank[i - 1], rank, chunk);
    }
    return TSR_OK;
}

tsr_status tsr_holding_check(const tsr_holding *holding, int ranks)
{
    TSR_CHECK(holding->chunks >= 0, TSR_ERR_ARG, "chunks = %d, must be >= 0", holding->chunks);
    TSR_CHECK(holding->begin[0] == 0, TSR_ERR_ARG, "begin[0] = %" PRId32 ", must be 0",
              holding->begin[0]);
    for (int chunk = 0; chunk < holding->chunks; ++chunk) {
        TSR_TRY(check_chunk(holding, chunk, ranks));
    }
    return TSR_OK;
}

/* A node that holds a chunk without owning it, known by its first holder in the list. */
static void count_node(const tsr_seat *seats, int ranks, const int32_t *holder, int32_t holders,
                       int32_t first, tsr_sparse_volume *volume)
{
    const tsr_seat *owner = &seats[holder[0]];
    const int node = seats[holder[first]].node;
    bool has_plane = false, holds_in_plane = false;

    for (int rank = 0; rank < ranks; ++rank) {
        has_plane = has_plane || (seats[rank].node == node && seats[rank].plane == owner->plane);
    }
    for (int32_t i = first; i < holders; ++i) {
        const tsr_seat *seat = &seats[holder[i]];
        holds_in_plane = holds_in_plane || (seat->node == node && seat->plane == owner->plane);
    }
    ++volume->crossings;
    volume->relays += has_plane && !holds_in_plane;
    volume->off_plane += !has_plane;
}

tsr_sparse_volume tsr_sparse_count(const tsr_seat *seats, int ranks, const tsr_holding *holding)
{
    tsr_sparse_volume volume = {0};

    for (int chunk = 0; chunk < holding->chunks; ++chunk) {
        const int32_t *holder = &holding->rank[holding->begin[chunk]];
        const int32_t holders = holding->begin[chunk + 1] - holding->begin[chunk];

        volume.copies += holders - 1;
        for (int32_t i = 1; i < holders; ++i) {
            bool is_new = true;
            for (int32_t k = 0; k < i; ++k) {
                is_new = is_new && seats[holder[k]].node != seats[holder[i]].node;
            }
            if (is_new) {
                count_node(seats, ranks, holder, holders, i, &volume);
            }
        }
    }
    return volume;
}
