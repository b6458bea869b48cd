/* Waiting with a deadline, giving up, and the order of calls.
 *
 * NCCL's kernels wait on the GPU for their peers, for ever and each holding its place on a stream.
 * So half of timeout_s is for NCCL; then everything of this process is aborted, and in the other
 * half the host's communicator, which has a wait of its own, finds out who does not respond. */
#include "collectives/nccl/nccl_impl.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* What is ordered and aborted together is what this process has, so it belongs to the process. */
static struct {
    comm_nccl *newest;
    cudaEvent_t turn; /* before the first collective since the last wait */
    bool has_turn;
} process;

static const double doze_after_s = 1e-3;

static double now_s(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double patience_s(const comm_nccl *self)
{
    return self->base.timeout_s / 2;
}

static void pause_since(double start_s)
{
    if (now_s() - start_s > doze_after_s) {
        const struct timespec doze = {.tv_nsec = 20000};
        (void)nanosleep(&doze, NULL);
    } else {
        (void)sched_yield();
    }
}

tsr_status nccl_register(comm_nccl *self)
{
    if (process.newest == NULL) {
        const cudaError_t code = cudaEventCreateWithFlags(&process.turn, cudaEventDisableTiming);
        TSR_CHECK(code == cudaSuccess, TSR_ERR_DEVICE, "cudaEventCreateWithFlags: %s",
                  cudaGetErrorString(code));
        process.has_turn = false;
    }
    self->next = process.newest;
    process.newest = self;
    return TSR_OK;
}

void nccl_unregister(comm_nccl *self)
{
    comm_nccl **link = &process.newest;

    while (*link != NULL && *link != self) {
        link = &(*link)->next;
    }
    if (*link == NULL) {
        return;
    }
    *link = self->next;
    if (process.newest == NULL) {
        (void)cudaEventDestroy(process.turn);
    }
}

/* A kernel that hangs may stand before those of other communicators on the same stream. */
static void abort_all(void)
{
    for (comm_nccl *c = process.newest; c != NULL; c = c->next) {
        if (c->handle != NULL) {
            (void)ncclCommAbort(c->handle);
            c->handle = NULL;
        }
    }
}

/* All of this process, for the reason st. */
static tsr_status end_all(tsr_status st)
{
    abort_all();
    for (comm_nccl *c = process.newest; c != NULL; c = c->next) {
        (void)tsr_comm_end(&c->base, st);
    }
    return st;
}

tsr_status nccl_fail(const comm_nccl *self, ncclResult_t code, const char *operation)
{
    const char *more = ncclGetLastError(self->handle);

    return TSR_FAIL(code == ncclUnhandledCudaError ? TSR_ERR_DEVICE : TSR_ERR_COMM,
                    "%s: NCCL: %s%s%s", operation, ncclGetErrorString(code),
                    more != NULL && *more != '\0' ? ": " : "", more != NULL ? more : "");
}

static tsr_status end_with(comm_nccl *self, ncclResult_t code, const char *operation)
{
    return end_all(nccl_fail(self, code, operation)); /* asks NCCL: before it is aborted */
}

/* The one of most ranks: all that hang can meet there, wherever each of them does. */
static comm_nccl *widest(void)
{
    comm_nccl *most = process.newest;

    for (comm_nccl *c = process.newest; c != NULL; c = c->next) {
        most = c->base.size >= most->base.size ? c : most;
    }
    return most;
}

static tsr_status give_up(const comm_nccl *self, const char *operation)
{
    const double patience = patience_s(self);
    tsr_comm *host = widest()->host;
    char text[700] = "";

    abort_all();
    host->timeout_s = patience;
    const tsr_status st = tsr_comm_barrier(host);
    (void)snprintf(text, sizeof text, "%s",
                   st == TSR_OK
                       ? "all ranks respond, so they have queued different calls, or NCCL's "
                         "network is stuck (NCCL_DEBUG=INFO tells its way)"
                       : tsr_error_message());
    return end_all(TSR_FAIL(TSR_ERR_TIMEOUT, "%s: NCCL is not through within %g s: %s", operation,
                            patience, text));
}

ncclResult_t nccl_settle(comm_nccl *self, ncclResult_t code)
{
    const double start = now_s();

    while (code == ncclInProgress && now_s() - start < patience_s(self)) {
        ncclResult_t state = ncclSuccess;
        const ncclResult_t asked = ncclCommGetAsyncError(self->handle, &state);

        code = asked != ncclSuccess ? asked : state;
        if (code == ncclInProgress) {
            pause_since(start);
        }
    }
    return code;
}

tsr_status nccl_finish(comm_nccl *self, ncclResult_t code, const char *operation,
                       tsr_stream *stream)
{
    code = nccl_settle(self, code);
    if (code == ncclInProgress) {
        return give_up(self, operation);
    }
    return code == ncclSuccess ? tsr_event_record(self->done, stream)
                               : end_with(self, code, operation);
}

/* ---- waiting for a stream ------------------------------------------------------------------- */

/* What NCCL has found out by itself about any communicator of this process. */
static tsr_status check_health(void)
{
    for (comm_nccl *c = process.newest; c != NULL; c = c->next) {
        ncclResult_t state = ncclSuccess;
        ncclResult_t code =
            c->handle != NULL ? ncclCommGetAsyncError(c->handle, &state) : ncclSuccess;

        code = code == ncclSuccess ? state : code;
        if (code != ncclSuccess && code != ncclInProgress) {
            return end_with(c, code, "a collective under way");
        }
    }
    return TSR_OK;
}

/* Has the first collective got its turn? What was queued before it may take as long as it likes. */
static bool is_turn(void)
{
    return !process.has_turn || cudaEventQuery(process.turn) != cudaErrorNotReady;
}

tsr_status nccl_stream_wait(tsr_comm *comm, tsr_stream *stream)
{
    comm_nccl *self = (comm_nccl *)comm;
    const double start = now_s();
    double turn_s = -1.0;
    cudaError_t code = cudaErrorNotReady;

    while ((code = cudaStreamQuery(nccl_stream_of(stream))) == cudaErrorNotReady) {
        TSR_TRY(check_health());
        if (turn_s < 0 && is_turn()) {
            turn_s = now_s();
        }
        if (turn_s >= 0 && now_s() - turn_s > patience_s(self)) {
            return give_up(self, "collectives on the device");
        }
        pause_since(start);
    }
    TSR_TRY(check_health());
    if (code != cudaSuccess) {
        return end_all(TSR_FAIL(TSR_ERR_DEVICE, "a stream with collectives: %s (%s)",
                                cudaGetErrorString(code), cudaGetErrorName(code)));
    }
    process.has_turn = false;
    return TSR_OK;
}

/* A wait by somebody who knows nothing of collectives has its deadline too. */
static tsr_status wait_in_time(tsr_stream *stream)
{
    if (process.newest == NULL) {
        tsr_stream_set_waiter(stream, NULL);
        return tsr_stream_wait(stream);
    }
    return nccl_stream_wait(&widest()->base, stream);
}

/* ---- order ---------------------------------------------------------------------------------- */

typedef struct note {
    int64_t call; /* from 1: on this communicator */
    uint64_t digest, balance;
    char operation[24];
} note;

/* A rank that is in a call of another communicator does not come: the host's time-out tells. */
static tsr_status gather_notes(comm_nccl *self, const note *own)
{
    char text[700] = "";
    const tsr_status st = tsr_comm_all_gather(self->host, own, sizeof *own, self->base.scratch);

    if (st == TSR_OK) {
        return TSR_OK;
    }
    (void)snprintf(text, sizeof text, "%s", tsr_error_message());
    return TSR_FAIL(st,
                    "%s, call %" PRId64 " of an nccl communicator of %d ranks, or ranks use "
                    "their communicators in different orders: %s",
                    own->operation, own->call, self->base.size, text);
}

/* Every rank sees all notes, so all come to the same verdict. Only this communicator's calls are
 * compared: those that this process makes on others are another rank's business or not. */
static tsr_status compare_notes(comm_nccl *self, const note *own)
{
    const note *all = (const note *)(const void *)self->base.scratch;
    uint64_t balance = 0;

    TSR_TRY(gather_notes(self, own));
    for (int peer = 0; peer < self->base.size; ++peer) {
        const note *other = &all[peer];
        const bool is_same =
            other->call == all[0].call && strcmp(other->operation, all[0].operation) == 0;

        TSR_CHECK(is_same && other->digest == all[0].digest, TSR_ERR_STATE,
                  "ranks queue different collectives: rank 0 %s (call %" PRId64
                  " here), rank %d %s (call %" PRId64 ")%s",
                  all[0].operation, all[0].call, peer, other->operation, other->call,
                  is_same ? " of other sizes or kind" : "");
        balance += other->balance;
    }
    TSR_CHECK(balance == 0, TSR_ERR_STATE,
              "%s (call %" PRId64 " here): what some rank sends is not what another expects",
              own->operation, own->call);
    return TSR_OK;
}

tsr_status nccl_begin(comm_nccl *self, const char *operation, uint64_t digest, uint64_t balance,
                      tsr_stream *stream)
{
    note own = {.call = ++self->calls, .digest = digest, .balance = balance};

    (void)snprintf(own.operation, sizeof own.operation, "%s", operation);
    if (self->options.checks_order && self->base.size > 1) {
        TSR_TRY(compare_notes(self, &own));
    }
    if (!process.has_turn) {
        const cudaError_t code = cudaEventRecord(process.turn, nccl_stream_of(stream));
        TSR_CHECK(code == cudaSuccess, TSR_ERR_DEVICE, "%s: cudaEventRecord: %s", operation,
                  cudaGetErrorString(code));
        process.has_turn = true;
    }
    tsr_stream_set_waiter(stream, wait_in_time);
    return tsr_stream_wait_event(stream, self->done);
}
