/* Communicators: ranks, what travels between them, and how long they wait for each other.
 *
 * Every wait has a deadline: a dead or stuck peer becomes an error that names it. MPI is started by
 * launch, never here. Buffers are host memory but where a call says device memory, which some
 * communicators take (tsr_comm_takes_device_memory); for the others the caller stages it. */
#ifndef TSR_COMM_H
#define TSR_COMM_H

#include "runtime/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tsr_comm tsr_comm;

/** How far apart two ranks are; the classes bytes are counted by. */
typedef enum tsr_link {
    TSR_LINK_SELF = 0,
    TSR_LINK_INTRA_NODE,
    TSR_LINK_IN_PLANE,
    TSR_LINK_CROSS_PLANE,
    TSR_LINKS
} tsr_link;

/** What bytes are moved for: they are counted by purpose and link. */
typedef enum tsr_traffic {
    TSR_TRAFFIC_CONTROL = 0, /* counts, totals, texts */
    TSR_TRAFFIC_REDUCE_SCATTER,
    TSR_TRAFFIC_ALL_GATHER,
    TSR_TRAFFIC_DISPATCH,
    TSR_TRAFFIC_COMBINE,
    TSR_TRAFFIC_SPARSE_ALL_GATHER,
    TSR_TRAFFIC_SPARSE_REDUCE_SCATTER,
    TSR_TRAFFIC_RESHARD, /* state of experts to new owners */
    TSR_TRAFFICS
} tsr_traffic;

/** Words of run files and metrics: "control", "reduce_scatter", ... */
const char *tsr_traffic_name(tsr_traffic purpose);

/** Payload bytes this process has sent so far over all its communicators, by the link that each
 *  message took: a composite communicator counts every hop. Threads: any. */
void tsr_traffic_read(int64_t bytes_out[TSR_TRAFFICS][TSR_LINKS]);

/** Where a rank of a communicator sits. */
typedef struct tsr_seat {
    int32_t node;  /* nodes are numbered in the order of their lowest rank */
    int32_t local; /* place among this communicator's ranks on the node, in rank order */
    int32_t plane; /* of its network interface; 0 where nothing else was said */
} tsr_seat;

/** The communicator of one rank alone; every call succeeds without a message. */
TSR_NODISCARD tsr_status tsr_comm_create_self(tsr_comm **comm_out);

/**
 * Ranks with the same color >= 0, ordered by key, then by rank.
 * Collective: on comm.
 * Errors:     TSR_ERR_NOMEM on a rank without memory for it, TSR_ERR_PEER on all others, of every
 *             color; TSR_ERR_COMM, TSR_ERR_TIMEOUT if the transport failed.
 * Owns:       the caller; destroy it before comm.
 */
TSR_NODISCARD tsr_status tsr_comm_split(tsr_comm *comm, int color, int key, tsr_comm **comm_out);

/**
 * The ranks of whole, by messages that never leave their plane between nodes: inside the node to
 * the rank of the right plane, then to the other nodes, or the other way round.
 *
 * whole, node, rail: borrowed until it is destroyed, in host memory terms the same backend; node:
 * this node's ranks in the order of local; rail: one rank a node, in the order of nodes, all of
 * this rank's local place and plane. Takes device memory if node and rail do.
 * Order:      reductions add the node's ranks first, then the nodes: fixed for a given layout.
 * Exchange:   refused (TSR_ERR_UNSUPPORTED): not all pairs have a direct way; use node and rail.
 * Collective: on whole.
 * Errors:     TSR_ERR_ARG where nodes differ in their number of ranks or in the planes of their
 *             places, naming one of them.
 */
TSR_NODISCARD tsr_status tsr_comm_create_planes(tsr_comm *whole, tsr_comm *node, tsr_comm *rail,
                                                tsr_comm **comm_out);

/** Collective; frees everything unless the communicator is dead, which then leaks on purpose. */
void tsr_comm_destroy(tsr_comm **comm_p);

int tsr_comm_rank(const tsr_comm *comm);
int tsr_comm_size(const tsr_comm *comm);

/** Ranks of this communicator on this node, and this rank's place among them. */
int tsr_comm_local_rank(const tsr_comm *comm);
int tsr_comm_local_size(const tsr_comm *comm);

/** [P] seat of each rank. Borrowed. */
const tsr_seat *tsr_comm_seats(const tsr_comm *comm);

/** Nodes that the ranks are on. */
int tsr_comm_nodes(const tsr_comm *comm);

/** Has each node as many ranks, and each place the same plane on all? Local, equal on all ranks.
 *  Errors: TSR_ERR_ARG naming a node that differs. */
TSR_NODISCARD tsr_status tsr_comm_check_regular(const tsr_comm *comm);

/**
 * True once a call has failed in the transport, of comm or of one that it was made of: every later
 * call is refused at once (TSR_ERR_COMM, telling the first cause).
 *
 * The call itself failed with TSR_ERR_COMM, or with TSR_ERR_TIMEOUT and a message that names the
 * ranks that do not respond, or, when all do, who waits where: a rank responds while it waits on
 * comm, on what comm was split from, or on another part of that, whose waits then end as well.
 * Memory that it was to fill is undefined; nothing is written to it later.
 */
bool tsr_comm_is_dead(const tsr_comm *comm);

/**
 * Payload bytes this rank has sent over comm since its creation, by link class: what is for each
 * other rank counts once for it, whichever way it travels. Agreements and barriers count nothing.
 */
void tsr_comm_bytes(const tsr_comm *comm, int64_t bytes_out[TSR_LINKS]);

/**
 * Name what this process is doing, for the message its peers print when it gets stuck.
 * text is copied (63 characters); step < 0: none. Threads: any.
 */
void tsr_comm_set_phase(const char *text, int64_t step);

/**
 * Make one verdict out of P local ones.
 *
 * The rank with local != TSR_OK keeps its code and message; the others get TSR_ERR_PEER and
 * "rank R: message" of the lowest failing rank.
 * Collective: on comm, blocking.
 * Errors:     TSR_ERR_COMM, TSR_ERR_TIMEOUT if the transport failed: comm is dead. On a dead one:
 *             local if that is an error, else TSR_ERR_COMM, without a message to anybody.
 */
TSR_NODISCARD tsr_status tsr_comm_agree(tsr_comm *comm, tsr_status local);

/** Wait for all ranks. Collective. */
TSR_NODISCARD tsr_status tsr_comm_barrier(tsr_comm *comm);

/** Copy bytes from root to all. Collective; sizes must be equal on all ranks. */
TSR_NODISCARD tsr_status tsr_comm_broadcast(tsr_comm *comm, void *buffer, size_t bytes, int root);

typedef enum tsr_reduce { TSR_REDUCE_SUM, TSR_REDUCE_MAX, TSR_REDUCE_MIN } tsr_reduce;

/** In place; combined in the order of ranks 0 .. P-1: all ranks hold equal bits. A NaN stays one.
 *  Collective. Errors: TSR_ERR_ARG if count < 0. */
TSR_NODISCARD tsr_status tsr_comm_all_reduce_f64(tsr_comm *comm, double *values, int64_t count,
                                                 tsr_reduce op);
/** As above; sums wrap modulo 2^64. */
TSR_NODISCARD tsr_status tsr_comm_all_reduce_u64(tsr_comm *comm, uint64_t *values, int64_t count,
                                                 tsr_reduce op);

/** Collect `bytes` from each rank into all[P, bytes], in rank order, on every rank. Collective. */
TSR_NODISCARD tsr_status tsr_comm_all_gather(tsr_comm *comm, const void *mine, size_t bytes,
                                             void *all);

/**
 * Sum a vector over ranks and leave each rank its own part, in place.
 *
 * Shapes:     values[cuts[P]] f32; rank r's part is elements cuts[r] .. cuts[r+1] - 1 (any may be
 *             empty; cuts equal on all ranks). On return the own part holds the sum; the rest is
 *             undefined.
 * Order:      own part + rank r-1's + rank r-2's ... (mod P), f32: fixed for a given P.
 * Memory:     chunks of a buffer made with the communicator; nothing is allocated.
 * Collective: on comm, blocking.
 * Errors:     TSR_ERR_ARG if cuts descend; TSR_ERR_COMM, TSR_ERR_TIMEOUT: comm is dead.
 */
TSR_NODISCARD tsr_status tsr_comm_reduce_scatter_f32(tsr_comm *comm, float *values,
                                                     const int64_t *cuts);

/** Inverse layout of the above: every rank's own part is copied to all, in place.
 *  element_bytes: 4 or 2; cuts count elements. Collective. */
TSR_NODISCARD tsr_status tsr_comm_all_gather_parts(tsr_comm *comm, void *values,
                                                   size_t element_bytes, const int64_t *cuts);

/** A run of bytes in a buffer. */
typedef struct tsr_segment {
    int64_t at, bytes;
} tsr_segment;

/** Who gets what from whom. Peer p's segments are begin[p] .. begin[p+1] - 1 of a list; what one
 *  rank sends to another has there the same number of segments, of the same lengths, in the same
 *  order. A rank's for itself are empty. */
typedef struct tsr_exchange {
    const void *send;
    void *receive; /* may be the memory of send where the segments do not meet */
    const tsr_segment *send_segments, *receive_segments;
    const int64_t *send_begin, *receive_begin; /* [P+1] */
    bool sums; /* f32 segments are added to what is there, else copied over it */
    tsr_traffic purpose;
} tsr_exchange;

/**
 * Move runs of bytes between all pairs of ranks: what all-to-alls and sparse collectives are made
 * of.
 *
 * Order:      sums add what comes from rank - 1, then rank - 2, ... (mod P).
 * Memory:     as in tsr_comm_reduce_scatter_f32(): nothing is allocated.
 * Collective: on comm, blocking; a pair without segments sends no message.
 * Errors:     TSR_ERR_ARG for bytes to itself, lengths below 0, or not a multiple of 4 when summed.
 */
TSR_NODISCARD tsr_status tsr_comm_exchange(tsr_comm *comm, const tsr_exchange *exchange);

/* ---- device memory -------------------------------------------------------------------------- */

/** May the four calls below be used on comm? False: copy to the host and use the calls above. */
bool tsr_comm_takes_device_memory(const tsr_comm *comm);

/**
 * As tsr_comm_reduce_scatter_f32(), with equal bits, on device memory.
 *
 * Async:      queued on stream, which owns values until tsr_comm_stream_wait() has returned; cuts
 *             are read before the call returns.
 * Collective: on comm. All ranks queue the same calls on all their communicators in one order:
 *             another order on one of them is a deadlock on the GPUs.
 * Errors:     TSR_ERR_UNSUPPORTED if comm takes no device memory; TSR_ERR_ARG as above;
 *             TSR_ERR_STATE if the order is checked and differs; TSR_ERR_COMM, TSR_ERR_TIMEOUT,
 *             TSR_ERR_DEVICE: comm is dead.
 */
TSR_NODISCARD tsr_status tsr_comm_reduce_scatter_f32_on(tsr_comm *comm, float *values,
                                                        const int64_t *cuts, tsr_stream *stream);

/** As tsr_comm_all_gather_parts(), and as above. */
TSR_NODISCARD tsr_status tsr_comm_all_gather_parts_on(tsr_comm *comm, void *values,
                                                      size_t element_bytes, const int64_t *cuts,
                                                      tsr_stream *stream);

/** As tsr_comm_exchange(), and as above; begin and segments are read before the call returns. */
TSR_NODISCARD tsr_status tsr_comm_exchange_on(tsr_comm *comm, const tsr_exchange *exchange,
                                              tsr_stream *stream);

/** As tsr_comm_broadcast(), and as above. */
TSR_NODISCARD tsr_status tsr_comm_broadcast_on(tsr_comm *comm, void *buffer, size_t bytes, int root,
                                               tsr_stream *stream);

/**
 * Wait for stream like tsr_stream_wait(), but not longer than timeout_s from when the first of its
 * collectives got its turn; plainly on a communicator that takes no device memory.
 *
 * Errors: those of the device; TSR_ERR_TIMEOUT, naming who does not respond, or TSR_ERR_COMM: comm
 *         is dead, and what was under way on every such communicator of this process has been
 *         aborted, so that the stream comes to its end.
 */
TSR_NODISCARD tsr_status tsr_comm_stream_wait(tsr_comm *comm, tsr_stream *stream);

/** Values of [parallel] for communicators by NCCL. */
typedef struct tsr_nccl_options {
    int max_ctas; /* thread blocks, so at most as many SMs, that NCCL may take; 0: NCCL's choice */
    size_t buffer_bytes; /* of device memory for parts to be summed; 0: 64 MiB */
    bool library_sums;   /* ncclReduceScatter where parts are even: its own order of summation */
    bool checks_order;   /* compare each call with the other ranks' before it is queued (slow) */
} tsr_nccl_options;

/**
 * A communicator over the ranks of host (borrowed; made by tsr_comm_create_mpi()) that moves the
 * memory of a cuda device by NCCL, and all else, agreements and time-outs included, by host.
 *
 * Reads nothing from the environment; NCCL itself does: NCCL_DEBUG, NCCL_DEBUG_FILE,
 * NCCL_SOCKET_IFNAME, NCCL_IB_HCA, NCCL_IB_GID_INDEX, NCCL_NET, NCCL_NET_PLUGIN, NCCL_TOPO_FILE,
 * NCCL_ALGO, NCCL_PROTO are launch's and the job script's to set, before the first communicator.
 * Owns:       device memory of buffer_bytes; destroy it before device, and host after it.
 * Collective: on host, blocking, up to host's timeout_s.
 * Errors:     TSR_ERR_UNSUPPORTED if the module is missing, device is not cuda or two ranks share a
 *             GPU (then use `mpi`, which stages); TSR_ERR_ARG if options are out of range or differ
 *             between ranks; TSR_ERR_NOMEM, TSR_ERR_DEVICE, TSR_ERR_COMM, TSR_ERR_TIMEOUT,
 *             TSR_ERR_PEER.
 */
TSR_NODISCARD tsr_status tsr_comm_create_nccl(tsr_comm *host, tsr_device *device,
                                              const tsr_nccl_options *options, tsr_comm **comm_out);

/* ---- for tests ------------------------------------------------------------------------------ */

/** What goes wrong on a faulty communicator. Zeroed but for rank = -1: nothing. */
typedef struct tsr_comm_fault {
    int rank; /* here, call number `call` (from 1) fails with `code` before it is entered */
    int64_t call;
    tsr_status code;    /* the communicator is dead on this rank from then on */
    double max_delay_s; /* each call on each rank comes late by up to this, drawn from seed */
    uint64_t seed;
} tsr_comm_fault;

/** A communicator that passes calls on to inner (borrowed), late or not at all. Local. */
TSR_NODISCARD tsr_status tsr_comm_create_faulty(tsr_comm *inner, const tsr_comm_fault *fault,
                                                tsr_comm **comm_out);

#ifdef __cplusplus
}
#endif

#endif
