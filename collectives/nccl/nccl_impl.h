/* State, waiting and order of the NCCL backend, shared by its own files only.
 *
 * The same sources make two modules: libtessera_nccl.so, and libtessera_nccl_emulated.so over the
 * fakes in tests/emulation. */
#ifndef TSR_NCCL_IMPL_H
#define TSR_NCCL_IMPL_H

#include "collectives/comm_impl.h"

#include <nccl.h>

enum { TSR_NCCL_ACCESS = 16 }; /* bytes that a thread moves at once */

/* How far an exchange has come with the segments between this rank and another. */
typedef struct nccl_walk {
    const tsr_segment *segments;
    int64_t next, end, done; /* segments[next], and how many bytes of it are done */
} nccl_walk;

typedef struct comm_nccl {
    tsr_comm base;      /* first: a tsr_comm of this backend is a comm_nccl */
    tsr_comm *host;     /* borrowed: the same ranks, for all that is in host memory */
    tsr_device *device; /* borrowed */
    tsr_nccl_options options;
    ncclComm_t handle; /* NULL before it is made, and again once it was aborted */
    float *buffer;     /* device memory: received, not yet summed */
    int64_t buffer_bytes;
    nccl_walk *sends, *receives; /* [P] by distance, of the exchange that is being queued */
    tsr_segment *segments;       /* [2P] of a reduce-scatter or all-gather that is being queued */
    int64_t *one_each;           /* [P+1] 0, 1, ...: each peer has one of those */
    tsr_event *done;             /* after the last call: the next may be queued on another stream */
    int64_t calls;               /* queued on this communicator */
    struct comm_nccl *next;      /* all of this process, newest first */
} comm_nccl;

static inline cudaStream_t nccl_stream_of(const tsr_stream *stream)
{
    return (cudaStream_t)tsr_stream_handle(stream);
}

/** Take a communicator into the list of this process, or out of it. */
TSR_NODISCARD tsr_status nccl_register(comm_nccl *self);
void nccl_unregister(comm_nccl *self);

/** Before a call is queued: it takes its place in the order, which is compared with the other
 *  ranks' if that is asked for. digest: of its arguments, equal on all ranks; balance: adds up to 0
 *  over the ranks, modulo 2^64. */
TSR_NODISCARD tsr_status nccl_begin(comm_nccl *self, const char *operation, uint64_t digest,
                                    uint64_t balance, tsr_stream *stream);

/** After a call was queued, with the result of its last NCCL call: NCCL may go on in the
 *  background. A failure ends the communicator. */
TSR_NODISCARD tsr_status nccl_finish(comm_nccl *self, ncclResult_t code, const char *operation,
                                     tsr_stream *stream);

/** Poll until NCCL is through with what it does in the background; ncclInProgress: not in time. */
ncclResult_t nccl_settle(comm_nccl *self, ncclResult_t code);

/** Turn a result of NCCL into a status with its own words. */
TSR_NODISCARD tsr_status nccl_fail(const comm_nccl *self, ncclResult_t code, const char *operation);

TSR_NODISCARD tsr_status nccl_stream_wait(tsr_comm *comm, tsr_stream *stream);
TSR_NODISCARD tsr_status nccl_reduce_scatter_f32_on(tsr_comm *comm, float *values,
                                                    const int64_t *cuts, tsr_stream *stream);
TSR_NODISCARD tsr_status nccl_all_gather_parts_on(tsr_comm *comm, void *values,
                                                  size_t element_bytes, const int64_t *cuts,
                                                  tsr_stream *stream);
TSR_NODISCARD tsr_status nccl_exchange_on(tsr_comm *comm, const tsr_exchange *what,
                                          tsr_stream *stream);
TSR_NODISCARD tsr_status nccl_broadcast_on(tsr_comm *comm, void *buffer, size_t bytes, int root,
                                           tsr_stream *stream);

/** The module's one entry. Contract as tsr_comm_create_nccl(). */
TSR_NODISCARD tsr_status tsr_nccl_comm_create(tsr_comm *host, tsr_device *device,
                                              const tsr_nccl_options *options, tsr_comm **comm_out);

#endif
