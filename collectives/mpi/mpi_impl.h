/* State and waiting of the MPI backend, shared by its own files only. */
#ifndef TSR_MPI_IMPL_H
#define TSR_MPI_IMPL_H

#include "collectives/comm_impl.h"
#include "collectives/mpi_bridge.h"

enum { TAG_EXCHANGE = 1 }; /* on `handle` */

/* What a rank that gave up tells the others: where it stands. */
typedef struct probe {
    int64_t step;
    char phase[TSR_PHASE_MAX];
    char operation[32];
    bool is_heard; /* meaningful at the receiver only */
} probe;

/* What MPI may still write to after a time-out lives here, never on a stack. */
typedef struct comm_mpi {
    tsr_comm base;          /* first: a tsr_comm of this backend is a comm_mpi */
    MPI_Comm handle, watch; /* private duplicates: for data, for the round after a time-out */
    bool is_crowded;        /* more ranks of this communicator on this node than cores */
    int verdict, first_bad;
    char message[512];
    size_t chunk_bytes;    /* longest message that is summed or copied on arrival */
    size_t direct_bytes;   /* longest message that goes straight to its place */
    char *chunk[2];        /* received, not yet summed */
    char *pieces;          /* [P + 1, TSR_COMM_PIECE_BYTES]: own, then everybody's */
    probe *probes;         /* [P] last word of each rank; own entry is what is sent */
    tsr_seat *seats;       /* [P] */
    int *names;            /* [P] */
    tsr_segment *segments; /* [2P] of a reduce-scatter or all-gather under way: to and from each */
    int64_t *one_each;     /* [P+1] 0, 1, ...: each peer has one of those */
} comm_mpi;

/* One wait: time without progress. Zeroed is a new one. */
typedef struct waiter {
    double last_s, waited_s, listened_s;
    int64_t turns;
} waiter;

/* After a test that found nothing: pause as long as is wise. Ends the communicator with
 * TSR_ERR_TIMEOUT, naming who does not respond, when timeout_s has passed without progress. */
TSR_NODISCARD tsr_status mpi_pause(comm_mpi *self, waiter *wait, const char *operation);

/* An MPI call returned rc != MPI_SUCCESS: the communicator is dead. */
TSR_NODISCARD tsr_status mpi_fail(comm_mpi *self, int rc, const char *operation);

/* Wait for a request that a call with result rc has started. */
TSR_NODISCARD tsr_status mpi_wait(comm_mpi *self, int rc, MPI_Request *request,
                                  const char *operation);

TSR_NODISCARD tsr_status mpi_reduce_scatter_f32(tsr_comm *comm, float *values, const int64_t *cuts);
TSR_NODISCARD tsr_status mpi_all_gather_parts(tsr_comm *comm, void *values, size_t element_bytes,
                                              const int64_t *cuts);
TSR_NODISCARD tsr_status mpi_exchange(tsr_comm *comm, const tsr_exchange *what);

#endif
