/* Chunks of random holders on ranks of random seats, and what must become of them. */
#ifndef TSR_SPARSE_RIG_H
#define TSR_SPARSE_RIG_H

#include "collectives/mpi_bridge.h"
#include "collectives/sparse.h"
#include "tests/support/mpi_test.h"

#include <stdio.h>
#include <string.h>

enum {
    RIG_MOST_CHUNKS = 17,
    RIG_MOST_PARTS = 3,
    RIG_MOST_FLOATS = 700, /* of a chunk */
    RIG_MOST_HOLDERS = RIG_MOST_CHUNKS * TSR_TEST_MAX_RANKS
};

/* Where ranks sit. */
typedef enum rig_layout {
    RIG_ONE_NODE,
    RIG_ALL_APART,   /* a node each */
    RIG_ONE_PLANE,   /* nodes of two */
    RIG_PAIRS,       /* nodes of two, each place its own plane */
    RIG_TWO_NODES,   /* each place its own plane */
    RIG_SHARED,      /* nodes of four, two places a plane */
    RIG_INTERLEAVED, /* rank r on node r mod 2, each place its own plane */
    RIG_IRREGULAR,   /* nodes of three and a rest, in planes that not all nodes have */
    RIG_LAYOUTS
} rig_layout;

typedef enum rig_kind {
    RIG_RANDOM,
    RIG_NO_COPIES,
    RIG_ALL_HOLD_ALL,
    RIG_ONE_OWNER, /* owns all, copies at random */
    RIG_KINDS
} rig_kind;

typedef struct rig {
    int rank, ranks;
    uint64_t seed;
    tsr_seat seats[TSR_TEST_MAX_RANKS];
    int32_t begin[RIG_MOST_CHUNKS + 1], holder[RIG_MOST_HOLDERS];
    tsr_holding holding;
    int parts;
    int64_t part_bytes[RIG_MOST_PARTS], chunk_floats;
    float values[RIG_MOST_CHUNKS][RIG_MOST_PARTS][RIG_MOST_FLOATS];
    void *memory[RIG_MOST_CHUNKS * RIG_MOST_PARTS];
} rig;

static inline int rig_below(uint64_t key, uint64_t counter, int end)
{
    return (int)(tsr_rng_uniform(key, counter) * end);
}

/* Local places are worked out from the nodes, in rank order. */
static inline void rig_sit(rig *r, rig_layout layout)
{
    int places[TSR_TEST_MAX_RANKS] = {0};
    const int half = (r->ranks + 1) / 2;

    for (int rank = 0; rank < r->ranks; ++rank) {
        const int node[RIG_LAYOUTS] = {
            [RIG_ALL_APART] = rank,        [RIG_ONE_PLANE] = rank / 2, [RIG_PAIRS] = rank / 2,
            [RIG_TWO_NODES] = rank / half, [RIG_SHARED] = rank / 4,    [RIG_INTERLEAVED] = rank % 2,
            [RIG_IRREGULAR] = rank / 3};
        const int local = places[node[layout]]++;
        const int plane[RIG_LAYOUTS] = {[RIG_PAIRS] = local,
                                        [RIG_TWO_NODES] = local,
                                        [RIG_SHARED] = local / 2,
                                        [RIG_INTERLEAVED] = local,
                                        [RIG_IRREGULAR] = local};
        r->seats[rank] = (tsr_seat){node[layout], local, plane[layout]};
    }
}

/* Is each plane of a node on all nodes? */
static inline bool rig_is_regular(const rig *r)
{
    for (int a = 0; a < r->ranks; ++a) {
        for (int b = 0; b < r->ranks; ++b) {
            bool is_there = false;
            for (int c = 0; c < r->ranks; ++c) {
                is_there = is_there || (r->seats[c].node == r->seats[b].node &&
                                        r->seats[c].plane == r->seats[a].plane);
            }
            if (!is_there) {
                return false;
            }
        }
    }
    return true;
}

static inline void rig_hold(rig *r, rig_kind kind)
{
    const uint64_t key = tsr_rng_key(r->seed, "holders");
    const int share = kind == RIG_NO_COPIES ? 0 : kind == RIG_ALL_HOLD_ALL ? 100 : 40;
    uint64_t drawn = 0;
    int32_t count = 0;

    r->holding = (tsr_holding){rig_below(key, drawn++, RIG_MOST_CHUNKS + 1), r->begin, r->holder};
    for (int chunk = 0; chunk < r->holding.chunks; ++chunk) {
        const int owner = kind == RIG_ONE_OWNER ? (int)(r->seed % (uint64_t)r->ranks)
                                                : rig_below(key, drawn++, r->ranks);
        r->begin[chunk] = count;
        r->holder[count++] = owner;
        for (int rank = 0; rank < r->ranks; ++rank) {
            if (rig_below(key, drawn++, 100) < share && rank != owner) {
                r->holder[count++] = rank;
            }
        }
    }
    r->begin[r->holding.chunks] = count;
}

/* Parts of uneven lengths, some empty. */
static inline void rig_cut(rig *r)
{
    const uint64_t key = tsr_rng_key(r->seed, "parts");

    r->parts = 1 + rig_below(key, 0, RIG_MOST_PARTS);
    r->chunk_floats = 0;
    for (int part = 0; part < r->parts; ++part) {
        const int floats = rig_below(key, 2 + (uint64_t)part, 5) == 0
                               ? 0
                               : rig_below(key, 10 + (uint64_t)part, RIG_MOST_FLOATS);
        r->part_bytes[part] = floats * (int64_t)sizeof(float);
        r->chunk_floats += floats;
    }
}

static inline void rig_make(rig *r, tsr_comm *comm, uint64_t seed, rig_layout layout, rig_kind kind)
{
    *r = (rig){.rank = tsr_comm_rank(comm), .ranks = tsr_comm_size(comm), .seed = seed};
    rig_sit(r, layout);
    rig_hold(r, kind);
    rig_cut(r);
}

static inline bool rig_holds(const rig *r, int chunk, int rank)
{
    for (int32_t i = r->begin[chunk]; i < r->begin[chunk + 1]; ++i) {
        if (r->holder[i] == rank) {
            return true;
        }
    }
    return false;
}

/* Whole numbers: every order of summation gives the same. */
static inline float rig_value(const rig *r, int rank, int chunk, int part, int at)
{
    const uint64_t key = r->seed * 64 + (uint64_t)rank;
    const int number = (chunk * RIG_MOST_PARTS + part) * RIG_MOST_FLOATS + at;

    return (float)rig_below(key, (uint64_t)number, 1000);
}

/* Own values everywhere, or only at the owners; memory only where a chunk is held. */
static inline void rig_fill(rig *r, bool only_owners)
{
    for (int chunk = 0; chunk < r->holding.chunks; ++chunk) {
        for (int part = 0; part < r->parts; ++part) {
            float *to = r->values[chunk][part];
            const bool fills = !only_owners || r->holder[r->begin[chunk]] == r->rank;

            for (int i = 0; i < RIG_MOST_FLOATS; ++i) {
                to[i] = fills ? rig_value(r, r->rank, chunk, part, i) : -1.0f;
            }
            r->memory[chunk * r->parts + part] = rig_holds(r, chunk, r->rank) ? to : NULL;
        }
    }
}

static inline tsr_sparse_call rig_call(const rig *r)
{
    return (tsr_sparse_call){.holding = &r->holding,
                             .parts = r->parts,
                             .part_bytes = r->part_bytes,
                             .memory = r->memory,
                             .number = -1};
}

/* What a holder must have: the owner's values, or, at the owner, all holders' sum. */
static inline float rig_expected(const rig *r, bool sums, int chunk, int part, int at)
{
    float sum = 0;

    if (!sums) {
        return rig_value(r, r->holder[r->begin[chunk]], chunk, part, at);
    }
    for (int32_t i = r->begin[chunk]; i < r->begin[chunk + 1]; ++i) {
        sum += rig_value(r, r->holder[i], chunk, part, at);
    }
    return sum;
}

/* Also: what is not held, and what lies behind a part, is as it was. */
static inline bool rig_is_right(const rig *r, bool sums)
{
    for (int chunk = 0; chunk < r->holding.chunks; ++chunk) {
        const bool owns = r->holder[r->begin[chunk]] == r->rank;
        const bool counts = sums ? owns : rig_holds(r, chunk, r->rank);

        for (int part = 0; part < r->parts; ++part) {
            const int floats = (int)(r->part_bytes[part] / (int64_t)sizeof(float));
            for (int i = 0; i < RIG_MOST_FLOATS; ++i) {
                const bool is_inside = i < floats && rig_holds(r, chunk, r->rank);
                const float own = sums || owns ? rig_value(r, r->rank, chunk, part, i) : -1.0f;
                const float expected = is_inside ? rig_expected(r, sums, chunk, part, i) : own;
                if ((counts || !is_inside) && r->values[chunk][part][i] != expected) {
                    (void)fprintf(stderr, "rank %d chunk %d part %d [%d]: %g, must be %g\n",
                                  r->rank, chunk, part, i, (double)r->values[chunk][part][i],
                                  (double)expected);
                    return false;
                }
            }
        }
    }
    return true;
}

/* A communicator of its own for these seats; the test communicator keeps its own. */
static inline bool rig_split(tsr_comm *world, const rig *r, tsr_comm **comm_out)
{
    if (tsr_comm_split(world, 0, 0, comm_out) != TSR_OK) {
        return false;
    }
    tsr_comm_set_seats(*comm_out, r->seats);
    return true;
}

#endif
