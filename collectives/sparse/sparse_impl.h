/* State of the sparse collectives, shared by their own files only. */
#ifndef TSR_SPARSE_IMPL_H
#define TSR_SPARSE_IMPL_H

#include "collectives/comm_impl.h"
#include "collectives/sparse.h"

enum {
    SPARSE_FAN_OUT = 2,                      /* most children in a node, or of a node */
    SPARSE_CHILDREN = 2 * SPARSE_FAN_OUT,    /* most of a rank: those, and other nodes' */
    SPARSE_RELAY_SLOTS = SPARSE_CHILDREN + 1 /* pieces that are under way in a relay at once */
};

/* A rank in the tree of a chunk. */
typedef struct sparse_member {
    int32_t rank, parent; /* a member; -1: the owner */
    int32_t arrival;      /* round in which the chunk's first piece comes in; -1 at the owner */
    int32_t children;
    bool relays;
} sparse_member;

/* A chunk between this rank and another one: from its parent, or to a child. */
typedef struct sparse_edge {
    int32_t chunk, peer;
    int32_t arrival;  /* at the child */
    int32_t children; /* of this rank */
    int32_t relay;    /* room that this rank relays the chunk in; -1: it holds it */
} sparse_edge;

/* Edges of one direction, by peer, then by chunk: both ends have the same order. */
typedef struct sparse_edges {
    sparse_edge *found, *edge; /* in the order of chunks; sorted */
    int64_t *begin;            /* [P+1] of each peer's */
    int64_t count;
    tsr_segment *segments; /* of the round at hand */
    int64_t *segment_begin;
} sparse_edges;

struct tsr_sparse {
    tsr_comm *comm;
    tsr_worker *worker;
    tsr_sparse_options options;
    int nodes;
    int32_t *node_begin, *node_rank; /* [nodes+1], [P]: the ranks of each node by local place */
    int64_t *mark, stamp;            /* [P] stamp: holds the chunk at hand */
    sparse_member *members;          /* [P] of the chunk at hand */
    int32_t *relays;                 /* [P] chunks that each rank relays */
    char *relay;                     /* [options.relay_bytes] or NULL */
    /* the call under way */
    sparse_edges up, down; /* to the parents, to the children */
    int64_t chunk_bytes, piece_bytes, pieces, rounds;
    char *base; /* lowest address of all that is moved */
};

/* Tree of one chunk, parents before children; returns its number of members. */
int sparse_build_tree(tsr_sparse *sparse, const tsr_holding *holding, int chunk, int fan_out);

/* Fill in `the call under way`; equal on all ranks but for the edges, which are this rank's. */
void sparse_plan(tsr_sparse *sparse, const tsr_sparse_call *call);

/* Plan the call and run its rounds, on the host or on its stream. */
TSR_NODISCARD tsr_status sparse_run(tsr_sparse *sparse, const tsr_sparse_call *call, bool sums);

#endif
