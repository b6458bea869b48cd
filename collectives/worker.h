/* A thread that runs calls one after the other beside the caller: what makes collectives
 * asynchronous where the transport is not.
 *
 * A call's memory is the caller's, so that submitting allocates nothing and no queue is ever full.
 * A communicator belongs to one thread at a time: those that calls use are the worker's until they
 * have been waited for. */
#ifndef TSR_WORKER_H
#define TSR_WORKER_H

#include "runtime/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tsr_worker tsr_worker;

/** What a call does, on the worker's thread. */
typedef tsr_status tsr_worker_function(void *argument);

enum { TSR_WORKER_MESSAGE_BYTES = 512 };

/** One call. Zeroed is one that has not been submitted. */
typedef struct tsr_worker_call {
    tsr_worker_function *run;
    void *argument;
    const char *name; /* in traces, kept */
    int64_t number;   /* goes with it (a layer); < 0: none */
    /* the worker's: */
    struct tsr_worker_call *next;
    bool is_submitted, is_done;
    tsr_status status;
    char message[TSR_WORKER_MESSAGE_BYTES];
} tsr_worker_call;

/** Errors: TSR_ERR_NOMEM if the system gives no thread. */
TSR_NODISCARD tsr_status tsr_worker_create(tsr_worker **worker_out);

/** Runs what was submitted to its end, then ends the thread. */
void tsr_worker_destroy(tsr_worker **worker_p);

/**
 * Queue a call behind those submitted before it.
 *
 * Async:   call and what its argument points to belong to the worker until tsr_worker_wait().
 * Threads: any.
 * Errors:  TSR_ERR_STATE if the call is submitted and has not been waited for.
 */
TSR_NODISCARD tsr_status tsr_worker_submit(tsr_worker *worker, tsr_worker_call *call);

/** Has the call come to its end? True where it was not submitted. Threads: any. */
bool tsr_worker_is_done(tsr_worker *worker, const tsr_worker_call *call);

/**
 * Wait for a call; its status and message become this thread's. TSR_OK at once where it was not
 * submitted, or has been waited for. Calls may be waited for in any order. How long this takes is
 * for the call to bound.
 *
 * Threads: any, one a call. Errors: those of the call.
 */
TSR_NODISCARD tsr_status tsr_worker_wait(tsr_worker *worker, tsr_worker_call *call);

#ifdef __cplusplus
}
#endif

#endif
