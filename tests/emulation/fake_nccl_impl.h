/* What the files of the fake NCCL share: communicators, calls, launches. */
#ifndef TSR_FAKE_NCCL_IMPL_H
#define TSR_FAKE_NCCL_IMPL_H

#include "tests/emulation/fake_cudart.h"
#include "tests/emulation/fake_nccl.h"

#include <mpi.h>
#include <nccl.h>

enum { /* on MPI_COMM_WORLD, which nothing else here uses */
       TAG_WORD = 20000,
       TAG_FIRST /* communicators have one each */
};

typedef enum call_kind {
    CALL_SEND,
    CALL_RECV,
    CALL_ALL_GATHER,
    CALL_REDUCE_SCATTER,
    CALL_BROADCAST
} call_kind;

typedef struct call {
    call_kind kind;
    ncclComm_t comm;
    cudaStream_t stream;
    const char *from;
    char *to;
    size_t count;
    ncclDataType_t type;
    int peer; /* or root; else 0 */
} call;

/* The calls of one group on one communicator: what one kernel does. */
typedef struct launch launch;

struct ncclComm {
    int rank, size, tag;
    int *world; /* [size] rank in MPI_COMM_WORLD */
    bool is_blocking, is_ready, is_aborted, is_over;
    ncclResult_t state;
    int in_flight; /* launches not finished: the last one frees a communicator that is over */
    int64_t launches,
        collectives; /* so far; ranks may differ in those of sends and receives alone */
    launch *pending; /* of a group whose end has returned ncclInProgress */
    struct meeting *meeting;
};

/* nccl.h declares these two without a prototype. */
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);

extern double nccl_deadline_s;

double fake_now_s(void);
size_t fake_type_bytes(ncclDataType_t type);
const char *fake_call_text(const call *c); /* valid until the next one */

/** Keep text for ncclGetLastError() and say it on stderr; returns code. */
ncclResult_t fake_nccl_error(ncclResult_t code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/** Free a communicator that nobody uses any more. */
void fake_nccl_release(ncclComm_t comm);

/** Make a launch of calls[count], all of one communicator and stream; NULL: no memory. */
launch *launch_create(const call *calls, size_t count);
void launch_destroy(launch *l);
/** Put it on its stream. */
ncclResult_t launch_queue(launch *l);

#endif
