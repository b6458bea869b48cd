/* State and waiting of the MPI backend, shared by its own files only. */
#ifndef TSR_MPI_IMPL_H
#define TSR_MPI_IMPL_H

#include "collectives/comm_impl.h"
#include "collectives/mpi_bridge.h"

#include <pthread.h>

enum { TAG_EXCHANGE = 1 }; /* on `handle` */

/* What a rank that gave up tells the others: where it stands; then once more, whom it has heard. */
typedef struct word {
    int64_t step;
    char phase[TSR_PHASE_MAX];
    char operation[32];
    bool is_last;
    bool is_heard;    /* meaningful at the receiver only */
    uint64_t heard[]; /* [P / 64, rounded up] a bit for each rank that the speaker has heard */
} word;

/* Shared by an outermost communicator and all that were split from it: a rank that waits on any of
 * them hears who gave up on another. */
typedef struct watch {
    MPI_Comm handle;      /* private duplicate of the outermost */
    pthread_mutex_t lock; /* of all that follows: each communicator may have a thread of its own */
    int users, rank, size;
    size_t word_bytes;
    _Alignas(word) char words[]; /* [P + 1] newest one of each rank, and the own last one */
} watch;

/* What MPI may still write to after a time-out lives here, never on a stack. */
typedef struct comm_mpi {
    tsr_comm base;   /* first: a tsr_comm of this backend is a comm_mpi */
    MPI_Comm handle; /* a private duplicate */
    watch *watch;
    bool is_crowded; /* more ranks of this communicator on this node than cores */
    int verdict, first_bad;
    char message[512];
    size_t chunk_bytes;    /* longest message that is summed or copied on arrival */
    size_t direct_bytes;   /* longest message that goes straight to its place */
    char *chunk[2];        /* received, not yet summed */
    char *pieces;          /* [P + 1, TSR_COMM_PIECE_BYTES]: own, then everybody's */
    tsr_seat *seats;       /* [P] */
    int *names;            /* [P] ranks of the watch */
    tsr_segment *segments; /* [2P] of a reduce-scatter or all-gather under way: to and from each */
    int64_t *one_each;     /* [P+1] 0, 1, ...: each peer has one of those */
} comm_mpi;

/* One wait: time without progress. Zeroed is a new one. */
typedef struct waiter {
    double last_s, waited_s, listened_s;
    int64_t turns;
} waiter;

/* A private duplicate that returns errors. Collective; an MPI error code. */
int mpi_duplicate(MPI_Comm parent, MPI_Comm *out);

/* Memory of a watch for so many ranks; mpi_watch_open makes it one, before which a release only
 * frees it. */
TSR_NODISCARD tsr_status mpi_watch_take(int size, watch **watch_out);

/* Collective on parent; an MPI error code. */
int mpi_watch_open(watch *self, MPI_Comm parent);

/* One more or one less communicator that uses it. */
watch *mpi_watch_share(watch *self);
void mpi_watch_release(watch *self);

/* Take in the words that have arrived; has any other rank spoken? */
bool mpi_watch_listen(watch *self);

/* Tell all others where this process stands, hear them, and say why a wait for `ranks` [count] has
 * no answer: who is silent, who does not reach whom, or who waits where. Takes window_s at most. */
void mpi_watch_ask(watch *self, const char *operation, const int *ranks, int count, double window_s,
                   char *message, size_t size);

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
