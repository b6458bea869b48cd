/* Sparse all-gather and reduce-scatter: chunks go from their owner to the other ranks that hold
 * them, and sums of what all of these have come back.
 *
 * Any set of holders, without a communicator or an allocation of its own. Between nodes a chunk
 * goes once to each other node that holds it, in its owner's plane. Which chunks go where is the
 * caller's to know, equal on all ranks; where a device's memory is not the host's and the
 * communicator does not take it, the caller stages. */
#ifndef TSR_SPARSE_H
#define TSR_SPARSE_H

#include "collectives/comm.h"
#include "collectives/worker.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Which ranks hold which chunks. */
typedef struct tsr_holding {
    int chunks;
    const int32_t *begin; /* [chunks+1], from 0 */
    const int32_t *rank;  /* rank[begin[c]] owns chunk c, the others follow in ascending order */
} tsr_holding;

/** Errors: TSR_ERR_ARG, naming the chunk that is not as described above for so many ranks. */
TSR_NODISCARD tsr_status tsr_holding_check(const tsr_holding *holding, int ranks);

/** What an all-gather moves, by all ranks together, in chunks; a reduce-scatter moves the same the
 *  other way. It is the least possible. */
typedef struct tsr_sparse_volume {
    int64_t copies;    /* held beyond the owner: each is received once */
    int64_t relays;    /* received once more by a rank that does not hold it: where no holder of
                            another node is in the owner's plane, a rank that is takes it in */
    int64_t crossings; /* of copies and relays, between nodes: once for each other node */
    int64_t off_plane; /* of the nodes entered, those without a rank in the owner's plane: 0 on a
                            regular cluster, where nothing goes across planes */
} tsr_sparse_volume;

/** Count it, without planning. seats [P]. Holding must be valid. */
tsr_sparse_volume tsr_sparse_count(const tsr_seat *seats, int ranks, const tsr_holding *holding);

/** Zeroed but for the first two: defaults, on the host. */
typedef struct tsr_sparse_options {
    int max_chunks;     /* of a call */
    int max_parts;      /* that a chunk consists of */
    tsr_device *device; /* whose memory calls name, if comm takes device memory; NULL: the host's */
    int64_t relay_bytes;     /* room to relay in, taken only where planes make relays possible;
                                0: 16 MiB */
    int64_t min_piece_bytes; /* no finer are chunks cut; 0: 64 KiB */
} tsr_sparse_options;

typedef struct tsr_sparse tsr_sparse;

/**
 * Take all memory that calls over comm will need.
 *
 * Owns:   comm and worker are borrowed. comm: one that exchanges segments, with the seats of its
 *         ranks, so no composite. worker: runs what is started on the host; NULL: nothing is.
 * Errors: TSR_ERR_ARG for numbers below 1, or relay_bytes or min_piece_bytes out of range;
 *         TSR_ERR_UNSUPPORTED for a device that comm does not take, or a composite; TSR_ERR_NOMEM,
 *         local.
 */
TSR_NODISCARD tsr_status tsr_sparse_create(tsr_comm *comm, tsr_worker *worker,
                                           const tsr_sparse_options *options,
                                           tsr_sparse **sparse_out);
void tsr_sparse_destroy(tsr_sparse **sparse_p);

/** One call. What it points to must not change until it has been waited for. */
typedef struct tsr_sparse_call {
    const tsr_holding *holding; /* equal on all ranks */
    const int64_t *part_bytes;  /* [parts] of a chunk, equal on all ranks */
    int parts;                  /* equal on all ranks */
    bool is_queued;             /* on stream, and not yet waited for; zeroed before */
    void *const *memory; /* [chunks, parts] where a part lies if this rank holds the chunk; not read
                            for others */
    tsr_stream *stream;  /* of the device; NULL on the host */
    int64_t number;      /* goes with it in traces (a layer); < 0: none */
    tsr_traffic purpose; /* that bytes are counted under; 0: the collective's own */
    /* of calls that are started, zeroed before: */
    tsr_sparse *sparse;
    tsr_worker_call work;
} tsr_sparse_call;

/**
 * Copy each chunk from its owner to its other holders.
 *
 * Collective: on comm, blocking; on a device as tsr_comm_exchange_on(): queued on stream.
 * Errors:     TSR_ERR_ARG for a holding that is not valid, more than was planned for, or no memory
 *             where a chunk is held, before any message; those of tsr_comm_exchange().
 */
TSR_NODISCARD tsr_status tsr_sparse_all_gather(tsr_sparse *sparse, tsr_sparse_call *call);

/**
 * Sum each chunk's f32 copies into its owner's. Other copies are undefined afterwards.
 *
 * Order:      a fixed one for given seats and holding, whichever the transport: see tree.c.
 * Collective: as above. Errors: as above; TSR_ERR_ARG also for parts that are not whole floats.
 */
TSR_NODISCARD tsr_status tsr_sparse_reduce_scatter(tsr_sparse *sparse, tsr_sparse_call *call);

/**
 * The same beside the caller: on the worker's thread, or, on a device, queued here and now.
 *
 * Async:      until tsr_sparse_wait(), call belongs to it, and so does the memory that it names,
 *             but for reading what all-gather sends; comm as well, on the host.
 * Collective: on comm. Any number may be under way; all ranks start the same ones in one order.
 * Errors:     TSR_ERR_STATE without a worker, or if call is under way; on a device as above.
 */
TSR_NODISCARD tsr_status tsr_sparse_start_all_gather(tsr_sparse *sparse, tsr_sparse_call *call);
TSR_NODISCARD tsr_status tsr_sparse_start_reduce_scatter(tsr_sparse *sparse, tsr_sparse_call *call);

/** Wait for a call that was started; TSR_OK at once for one that was not, or has been waited for.
 *  On a device: for its stream, by tsr_comm_stream_wait(). Errors: those of the call. */
TSR_NODISCARD tsr_status tsr_sparse_wait(tsr_sparse_call *call);

#ifdef __cplusplus
}
#endif

#endif
