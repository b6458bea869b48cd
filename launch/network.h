/* The network interface of this rank. MPI and NCCL read theirs from the environment when they
 * start: it is chosen and written there before. */
#ifndef TSR_LAUNCH_NETWORK_H
#define TSR_LAUNCH_NETWORK_H

#include "launch/cli.h"
#include "parallel/parallel.h"

typedef struct network {
    tsr_topology_config config; /* what was known before MPI started */
    tsr_nic nic;
    const char *source; /* "topology.nics", "TESSERA_NICS", "hwloc", or "" */
    char set[512];      /* "NAME=value ...": written into the environment */
    char kept[512];     /* likewise: given by the user, left as it was */
} network;

/** Read section [topology] of the run file among the command's words, as far as this host has it,
 *  and of --set. What is wrong in it is said when the whole run file is read. */
void network_read(const cli_values *values, network *n);

/**
 * Choose the interface: TESSERA_NICS, topology.nics, or what hwloc finds near this rank's GPU or
 * cores; write OMPI_MCA_btl_tcp_if_include, UCX_NET_DEVICES, NCCL_SOCKET_IFNAME and NCCL_IB_HCA.
 *
 * Call it before MPI_Init. Variables that are set already stay.
 * Errors: TSR_ERR_ARG: an interface that this host lacks, the list's own errors; nothing is set.
 */
TSR_NODISCARD tsr_status network_choose(network *n);

/** Is [topology] of the run file what it was before MPI started? Errors: TSR_ERR_ARG. */
TSR_NODISCARD tsr_status network_check(const network *n, const tsr_topology_config *config);

/** The InfiniBand or RoCE device nearest to what this local rank computes on, with its plane;
 *  zeroed if there are not at least two. gpu_out: where the rank's GPU is, "" if unknown. */
void network_nearest(int local_rank, int64_t planes, tsr_nic *nic_out, char gpu_out[48]);

/** This process's place among those of the launcher on this host; 0 without a launcher. */
int network_local_rank(void);

#endif
