/* The table behind collectives.h; for collectives and its backends only.
 *
 * The front end (comm.c) validates, refuses dead communicators and counts bytes; a backend gets
 * valid arguments. Every entry is required but where said. A backend whose transport fails calls
 * tsr_comm_end(). */
#ifndef TSR_COMM_IMPL_H
#define TSR_COMM_IMPL_H

#include "collectives/comm.h"

enum {
    TSR_COMM_PIECE_BYTES = 8192, /* of one rank in all-reduce: scratch holds P of them */
    TSR_PHASE_MAX = 64,          /* bytes of a phase's text with its end */
    TSR_CAUSE_MAX = 512
};

typedef struct tsr_comm_ops {
    const char *name;
    tsr_status (*agree)(tsr_comm *comm, tsr_status local);
    tsr_status (*barrier)(tsr_comm *comm);
    tsr_status (*broadcast)(tsr_comm *comm, void *buffer, size_t bytes, int root);
    tsr_status (*all_gather)(tsr_comm *comm, const void *mine, size_t bytes, void *all);
    tsr_status (*reduce_scatter_f32)(tsr_comm *comm, float *values, const int64_t *cuts);
    tsr_status (*all_gather_parts)(tsr_comm *comm, void *values, size_t element_bytes,
                                   const int64_t *cuts);
    tsr_status (*exchange)(tsr_comm *comm, const tsr_exchange *exchange);         /* may be NULL, */
    tsr_status (*split)(tsr_comm *comm, int color, int key, tsr_comm **comm_out); /* too */
    void (*destroy)(tsr_comm *comm);
    /* Device memory: required where takes_device_memory is set, else never called. */
    tsr_status (*reduce_scatter_f32_on)(tsr_comm *comm, float *values, const int64_t *cuts,
                                        tsr_stream *stream);
    tsr_status (*all_gather_parts_on)(tsr_comm *comm, void *values, size_t element_bytes,
                                      const int64_t *cuts, tsr_stream *stream);
    tsr_status (*exchange_on)(tsr_comm *comm, const tsr_exchange *exchange, tsr_stream *stream);
    tsr_status (*broadcast_on)(tsr_comm *comm, void *buffer, size_t bytes, int root,
                               tsr_stream *stream);
    tsr_status (*stream_wait)(tsr_comm *comm, tsr_stream *stream);
} tsr_comm_ops;

struct tsr_comm { /* base of every backend's communicator */
    const tsr_comm_ops *ops;
    int rank, size, local_rank, local_size;
    double timeout_s;
    bool takes_device_memory;
    tsr_comm *parts[2];        /* borrowed: what it is made of, or NULL; it dies with any of them */
    bool is_dead;              /* a transport call failed: every later call is refused, */
    char cause[TSR_CAUSE_MAX]; /* which tells why */
    const tsr_seat *seats;     /* [P]; the backend's memory */
    const int *names;    /* [P] what messages call the ranks: their numbers in the outermost */
    bool counts_nothing; /* others, which it is made of, do the sending and the counting */
    char *scratch;       /* [P, TSR_COMM_PIECE_BYTES]; the backend's; NULL if P is 1 */
    int64_t bytes[TSR_LINKS];
};

/** A transport call has failed with st and the message of this thread: comm is dead, and the first
 *  cause is kept. Gives st. */
tsr_status tsr_comm_end(tsr_comm *comm, tsr_status st);

/** TSR_ERR_COMM with the cause if comm or one of its parts is dead. */
TSR_NODISCARD tsr_status tsr_comm_check_alive(const tsr_comm *comm);

/** Link between two ranks of a communicator. */
tsr_link tsr_comm_link(const tsr_comm *comm, int from, int to);

/** Count bytes that this process sends, or that dispatch leaves where they are. Threads: any. */
void tsr_traffic_add(tsr_traffic purpose, tsr_link link, int64_t bytes);

/** Copy the phase set last into text_out (TSR_PHASE_MAX bytes) and give its step. */
int64_t tsr_comm_phase(char *text_out);

#endif
