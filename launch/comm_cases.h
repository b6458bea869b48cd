/* What `tessera bench comm` measures: each collective at any size, with a check of what it did. */
#ifndef TSR_LAUNCH_COMM_CASES_H
#define TSR_LAUNCH_COMM_CASES_H

#include "parallel/parallel.h"

/** What is equal for all cases, and the buffers that they share. Zeroed but for the first seven. */
typedef struct comm_job {
    const tsr_mesh *mesh; /* one expert group of all ranks, with a communicator for copies */
    tsr_device *device;
    tsr_stream *stream;
    int64_t max_bytes, hidden; /* of a case; D */
    int top_k, experts;
    /* made by comm_job_open(): */
    int rank, ranks;
    char *host, *memory; /* [2 * max_bytes] staging, and of the device: the same where it can be */
    int64_t *cuts;       /* [P+1] */
    tsr_segment *segments;           /* [2, P] */
    int64_t *begin;                  /* [P+1] 0, 1, ... */
    int32_t *owner, *place;          /* [E] rank, and place among its experts */
    int places;                      /* the most that a rank has */
    int32_t *holders, *holder_begin; /* of experts as chunks: every second one is on all ranks */
    void **chunks;                   /* [E] where they lie */
    tsr_sparse *sparse;
    tsr_dispatch *dispatch[2]; /* flat; in two stages, NULL where nodes do not allow it */
    tsr_dispatch_plan *plan[2];
    int32_t *lanes; /* [tokens, K] */
    float *weights; /* [tokens, K], of 1 */
    tsr_growing units, fetched;
    /* of the case under way: */
    tsr_comm *comm;
    bool on_device; /* it moves device memory */
    int variant;
    int64_t bytes;
} comm_job;

/** How a case's bus bandwidth follows from its algorithm bandwidth, with P ranks. */
typedef enum comm_bus {
    COMM_BUS_NONE,  /* no bytes to speak of */
    COMM_BUS_ONE,   /* the same */
    COMM_BUS_SHARE, /* x (P - 1) / P */
    COMM_BUS_TWICE, /* x 2 (P - 1) / P */
    COMM_BUS_SENT   /* what a rank sends on average, as counted, per time */
} comm_bus;

typedef struct comm_case {
    const char *name;
    comm_bus bus;
    bool has_sums; /* in place: repeated, they grow */
    int variant;   /* of those that share the functions below */
    /** The nearest size that it can have, up to `bytes`; 0: none. COMM_BUS_NONE: not called. */
    int64_t (*fit)(const comm_job *j, int64_t bytes);
    /** Set comm, on_device and the memory's contents for j->bytes. Collective. */
    tsr_status (*prepare)(comm_job *j);
    tsr_status (*run)(comm_job *j);
    /** Fails where the run's result is wrong. Local. */
    tsr_status (*check)(comm_job *j);
} comm_case;

const comm_case *comm_cases_vectors(int *count_out);
const comm_case *comm_cases_rows(int *count_out);

/** Take all memory. Local. */
TSR_NODISCARD tsr_status comm_job_open(comm_job *j);
void comm_job_close(comm_job *j);

/** Bring the first bytes of the buffer to where the case works, or back. Waits. */
TSR_NODISCARD tsr_status comm_job_send(comm_job *j, int64_t bytes);
TSR_NODISCARD tsr_status comm_job_fetch(comm_job *j, int64_t bytes);

/** Where the case works: in device memory, or in the host's. */
void *comm_job_memory(const comm_job *j);

/** Rooms for rows: make and free what comm_cases_rows() needs. Local. */
TSR_NODISCARD tsr_status comm_rows_open(comm_job *j);
void comm_rows_close(comm_job *j);

#endif
