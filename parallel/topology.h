/* topology: which network interface and plane a rank uses, and a picture of nodes, ranks, planes.
 *
 * Pure computation on plain structs: what interfaces, cores and GPUs there are is found out by
 * launch, who sits where by communicators. */
#ifndef TSR_PARALLEL_TOPOLOGY_H
#define TSR_PARALLEL_TOPOLOGY_H

#include "collectives/collectives.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    TSR_NIC_MAX = 32 /* bytes of an interface's name with its end */
};

/** Values of section [topology]. */
typedef struct tsr_topology_config {
    int64_t planes;          /* 0: as many as interfaces; 1: the network is one */
    char nics[TSR_TEXT_MAX]; /* one a local rank, in turn, comma separated; "": the nearest */
} tsr_topology_config;

tsr_option_table tsr_topology_options(tsr_topology_config *config);

/** The interface of one rank. Zeroed: MPI's own choice, in a network that is one. */
typedef struct tsr_nic {
    char name[TSR_NIC_MAX];
    int32_t plane, planes; /* 0 <= plane < planes, or both 0 */
} tsr_nic;

/**
 * The entry of config->nics for this local rank; zeroed when there is none.
 *
 * Interfaces are numbered in the order they first appear in the list; a plane is that number modulo
 * config->planes.
 * Errors: TSR_ERR_ARG for an empty or long name, or more planes than interfaces.
 */
TSR_NODISCARD tsr_status tsr_topology_choose(const tsr_topology_config *config, int local_rank,
                                             tsr_nic *nic_out);

/** Of closeness[count], count > 0: the place of the largest one; of several equal ones they get
 *  their turns, turn >= 0. */
int tsr_topology_nearest(const int *closeness, int count, int turn);

/** One rank, as it is drawn; texts are "" when unknown. */
typedef struct tsr_topology_rank {
    tsr_seat seat;
    char host[64], cores[64], gpu[48], nic[TSR_NIC_MAX];
    int dp_rank, ep_rank; /* coordinates in the mesh */
} tsr_topology_rank;

typedef struct tsr_topology_view {
    const tsr_topology_rank *ranks; /* [count], by rank */
    int count;
    int dp, ep; /* sizes of the mesh; 0: there is none to draw */
} tsr_topology_view;

/** Why messages cannot keep to planes: nodes that differ in ranks, or in the planes of their
 *  places. False, and an empty text, if they can. */
bool tsr_topology_problem(const tsr_topology_view *view, char problem_out[256]);

/** Nodes with their ranks, planes with theirs, groups of the mesh, the problem if there is one. */
void tsr_topology_draw(FILE *to, const tsr_topology_view *view);

#ifdef __cplusplus
}
#endif

#endif
