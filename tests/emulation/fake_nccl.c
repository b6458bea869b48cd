/* NCCL between the processes of an MPI world: communicators, groups, checks of arguments. What a
 * launch does when its stream gets there is in fake_nccl_run.c. A communicator comes to be in two
 * messages, polled: each rank says hello to the id's maker, which answers who is who. */
#include "tests/emulation/fake_nccl_impl.h"

#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_RANKS = 64, MOST_CALLS = 2048 /* in a group: NCCL's own limit */ };

double nccl_deadline_s = 20.0;
static bool is_gpu_shared;
static char last_error[1800];

void fake_nccl_share_gpu(bool is_shared)
{
    is_gpu_shared = is_shared;
}

void fake_nccl_set_deadline(double seconds)
{
    nccl_deadline_s = seconds;
}

double fake_now_s(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int world_rank(void)
{
    int rank = 0, is_running = 0;

    (void)MPI_Initialized(&is_running);
    if (is_running) {
        (void)MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    }
    return rank;
}

/* The runtime's, but NCCL alone asks for it. */
cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device)
{
    if (text == NULL || size < 13 || device != 0) {
        return fake_error(cudaErrorInvalidValue);
    }
    (void)snprintf(text, (size_t)size, "0000:%02X:00.0",
                   (unsigned)(is_gpu_shared ? 0 : world_rank() & 0xff));
    return cudaSuccess;
}

/* ---- errors and names ----------------------------------------------------------------------- */

ncclResult_t fake_nccl_error(ncclResult_t code, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    (void)fprintf(stderr, "emulated NCCL: %s\n", last_error);
    return code;
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return last_error;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    static const char *const texts[ncclNumResults] = {
        "no error",         "unhandled cuda error", "unhandled system error", "internal error",
        "invalid argument", "invalid usage",        "remote process exited",  "in progress"};

    return (unsigned)result < ncclNumResults ? texts[result] : "unknown result code";
}

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

size_t fake_type_bytes(ncclDataType_t type)
{
    switch (type) {
    case ncclInt8:
    case ncclUint8:
        return 1;
    case ncclFloat16:
    case ncclBfloat16:
        return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
        return 8;
    default:
        return 0;
    }
}

const char *fake_call_text(const call *c)
{
    static const char *const names[] = {"send", "recv", "all-gather", "reduce-scatter",
                                        "broadcast"};
    static char text[96];
    const bool is_known = (unsigned)c->kind < sizeof names / sizeof *names;

    (void)snprintf(text, sizeof text, "%s of %zu elements of type %d",
                   is_known ? names[c->kind] : "?", c->count, (int)c->type);
    if (c->kind == CALL_BROADCAST) {
        const size_t used = strlen(text);
        (void)snprintf(text + used, sizeof text - used, " from root %d", c->peer);
    }
    return text;
}

/* ---- meeting -------------------------------------------------------------------------------- */

typedef struct id_content {
    int root, tag; /* root: in MPI_COMM_WORLD */
} id_content;

typedef struct hello {
    int rank, size, world;
    char gpu[32];
} hello;

typedef struct answer {
    ncclResult_t code;
    char text[200];
    int world[MOST_RANKS];
} answer;

struct meeting {
    id_content id;
    hello own, all[MOST_RANKS];
    answer outcome;
    int heard, sent;
    MPI_Request request[MOST_RANKS];
};

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static int made;
    int is_running = 0, size = 1;
    id_content content = {.root = world_rank()};

    (void)MPI_Initialized(&is_running);
    if (!is_running) {
        return fake_nccl_error(ncclSystemError, "MPI has not been started");
    }
    (void)MPI_Comm_size(MPI_COMM_WORLD, &size);
    content.tag = TAG_FIRST + made++ * size + content.root;
    memset(id, 0, sizeof *id);
    memcpy(id, &content, sizeof content);
    return ncclSuccess;
}

static void judge(struct meeting *m)
{
    answer *a = &m->outcome;

    for (int i = 0; i < m->own.size; ++i) {
        const hello *one = &m->all[i];
        a->world[one->rank] = one->world;
        for (int k = 0; k < i && a->code == ncclSuccess; ++k) {
            const hello *other = &m->all[k];
            if (one->rank == other->rank || one->size != other->size) {
                a->code = ncclInvalidArgument;
                (void)snprintf(a->text, sizeof a->text, "rank %d of %d met rank %d of %d",
                               one->rank, one->size, other->rank, other->size);
            } else if (strcmp(one->gpu, other->gpu) == 0) {
                a->code = ncclInvalidUsage;
                (void)snprintf(
                    a->text, sizeof a->text,
                    "Duplicate GPU detected : rank %d and rank %d both on CUDA device %s",
                    other->rank, one->rank, one->gpu);
            }
        }
    }
}

/* The maker of the id hears all, then tells all. */
static bool lead(struct meeting *m)
{
    while (m->heard < m->own.size) {
        int here = 0;
        if (m->heard == 0) {
            m->all[m->heard++] = m->own;
            continue;
        }
        (void)MPI_Iprobe(MPI_ANY_SOURCE, m->id.tag, MPI_COMM_WORLD, &here, MPI_STATUS_IGNORE);
        if (!here) {
            return false;
        }
        (void)MPI_Recv(&m->all[m->heard++], sizeof(hello), MPI_BYTE, MPI_ANY_SOURCE, m->id.tag,
                       MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    }
    if (m->sent == 0) {
        judge(m);
        for (int i = 1; i < m->own.size; ++i) {
            (void)MPI_Isend(&m->outcome, sizeof m->outcome, MPI_BYTE, m->all[i].world, m->id.tag,
                            MPI_COMM_WORLD, &m->request[i]);
        }
        m->sent = 1;
    }
    int passed = 1;
    for (int i = 1; i < m->own.size && passed; ++i) {
        (void)MPI_Test(&m->request[i], &passed, MPI_STATUS_IGNORE);
    }
    return passed != 0;
}

static bool follow(struct meeting *m)
{
    int passed = 0;

    if (m->sent == 0) {
        (void)MPI_Isend(&m->own, sizeof m->own, MPI_BYTE, m->id.root, m->id.tag, MPI_COMM_WORLD,
                        &m->request[0]);
        (void)MPI_Irecv(&m->outcome, sizeof m->outcome, MPI_BYTE, m->id.root, m->id.tag,
                        MPI_COMM_WORLD, &m->request[1]);
        m->sent = 1;
    }
    (void)MPI_Testall(2, m->request, &passed, MPI_STATUSES_IGNORE);
    return passed != 0;
}

static void meet(ncclComm_t comm)
{
    struct meeting *m = comm->meeting;

    if (!(m->id.root == m->own.world ? lead(m) : follow(m))) {
        return;
    }
    comm->state = m->outcome.code;
    if (comm->state == ncclSuccess) {
        memcpy(comm->world, m->outcome.world, (size_t)comm->size * sizeof *comm->world);
        comm->is_ready = true;
    } else {
        (void)fake_nccl_error(comm->state, "%s", m->outcome.text);
    }
    free(m);
    comm->meeting = NULL;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *out, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config)
{
    const double start = fake_now_s();

    if (out == NULL || size < 1 || size > MOST_RANKS || rank < 0 || rank >= size ||
        (config != NULL && (config->size != sizeof *config || config->magic != 0xcafebeefu))) {
        return fake_nccl_error(ncclInvalidArgument, "init of rank %d of %d", rank, size);
    }
    ncclComm_t comm = calloc(1, sizeof *comm);
    struct meeting *m = calloc(1, sizeof *m);
    int *world = calloc((size_t)size, sizeof *world);
    if (comm == NULL || m == NULL || world == NULL) {
        free(comm);
        free(m);
        free(world);
        return fake_nccl_error(ncclSystemError, "no memory");
    }
    memcpy(&m->id, &id, sizeof m->id);
    m->own = (hello){.rank = rank, .size = size, .world = world_rank()};
    (void)cudaDeviceGetPCIBusId(m->own.gpu, sizeof m->own.gpu, 0);
    *comm = (struct ncclComm){.rank = rank,
                              .size = size,
                              .tag = m->id.tag,
                              .world = world,
                              .is_blocking = config == NULL || config->blocking != 0,
                              .state = ncclInProgress,
                              .meeting = m};
    *out = comm;
    while (comm->is_blocking && comm->state == ncclInProgress) {
        meet(comm);
        (void)sched_yield();
        if (fake_now_s() - start > nccl_deadline_s) {
            return fake_nccl_error(ncclRemoteError, "init: not all of %d ranks came", size);
        }
    }
    return comm->state;
}

ncclResult_t ncclCommInitRank(ncclComm_t *out, int size, ncclUniqueId id, int rank)
{
    return ncclCommInitRankConfig(out, size, id, rank, NULL);
}

/* ---- state and end -------------------------------------------------------------------------- */

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state_out)
{
    if (comm->meeting != NULL) {
        meet(comm);
    } else if (comm->pending != NULL) { /* only now is it on its stream */
        launch *l = comm->pending;
        comm->pending = NULL;
        comm->state = launch_queue(l);
    }
    *state_out = comm->state;
    return ncclSuccess;
}

void fake_nccl_release(ncclComm_t comm)
{
    if (comm->is_over && comm->in_flight == 0) {
        if (comm->meeting == NULL) { /* else MPI may write to it */
            free(comm->world);
            free(comm);
        }
    }
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    if (comm->in_flight != 0) {
        return fake_nccl_error(ncclInvalidUsage, "finalized with %d launches under way",
                               comm->in_flight);
    }
    return comm->state;
}

static ncclResult_t end(ncclComm_t comm)
{
    launch *l = comm->pending;

    comm->pending = NULL;
    comm->is_over = true;
    if (l != NULL) {
        launch_destroy(l); /* releases comm */
    } else {
        fake_nccl_release(comm);
    }
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    if (comm->in_flight != 0) {
        return fake_nccl_error(ncclInvalidUsage, "destroyed with %d launches under way",
                               comm->in_flight);
    }
    return end(comm);
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    comm->is_aborted = true;
    return end(comm);
}

/* ---- groups --------------------------------------------------------------------------------- */

static _Thread_local struct {
    int depth;
    size_t count;
    ncclResult_t failed; /* of a call inside */
    call calls[MOST_CALLS];
} group;

/* Sends to oneself inside a group are copies; each needs its receive. */
static ncclResult_t check_self(const call *calls, size_t count)
{
    const int rank = calls[0].comm->rank;
    size_t receives = 0;

    for (size_t i = 0; i < count; ++i) {
        const call *c = &calls[i], *pair = NULL;
        size_t sends = 0;
        if (c->kind != CALL_RECV || c->peer != rank) {
            continue;
        }
        for (size_t k = 0; k < count && pair == NULL; ++k) {
            if (calls[k].kind == CALL_SEND && calls[k].peer == rank && sends++ == receives) {
                pair = &calls[k];
            }
        }
        if (pair == NULL || pair->count != c->count || pair->type != c->type) {
            return fake_nccl_error(ncclInvalidUsage, "rank %d: a %s from itself has no such send",
                                   rank, fake_call_text(c));
        }
        ++receives;
    }
    for (size_t i = 0; i < count; ++i) {
        receives -= calls[i].kind == CALL_SEND && calls[i].peer == rank;
    }
    return receives == 0
               ? ncclSuccess
               : fake_nccl_error(ncclInvalidUsage, "rank %d: a send to itself has no recv", rank);
}

static ncclResult_t start(const call *calls, size_t count)
{
    const ncclComm_t comm = calls[0].comm;

    for (size_t i = 1; i < count; ++i) {
        if (calls[i].stream != calls[0].stream) {
            return fake_nccl_error(ncclInvalidUsage,
                                   "calls of one group on one communicator are on two streams");
        }
    }
    const ncclResult_t code = check_self(calls, count);
    if (code != ncclSuccess) {
        return code;
    }
    launch *l = launch_create(calls, count);
    if (l == NULL) {
        return fake_nccl_error(ncclSystemError, "no memory");
    }
    if (comm->is_blocking) {
        return launch_queue(l);
    }
    comm->pending = l;
    comm->state = ncclInProgress;
    return ncclInProgress;
}

ncclResult_t ncclGroupStart(void)
{
    if (group.depth++ == 0) {
        group.count = 0;
        group.failed = ncclSuccess;
    }
    return ncclSuccess;
}

/* One launch for each communicator of the group, in the order of their first calls. */
ncclResult_t ncclGroupEnd(void)
{
    ncclResult_t code = ncclSuccess;

    if (group.depth == 0) {
        return fake_nccl_error(ncclInvalidUsage, "a group ends that was not begun");
    }
    if (--group.depth != 0) {
        return ncclSuccess;
    }
    if (group.failed != ncclSuccess) {
        return group.failed;
    }
    while (group.count != 0 && (code == ncclSuccess || code == ncclInProgress)) {
        const ncclComm_t comm = group.calls[0].comm;
        size_t own = 0, others = 0;
        call *sorted = malloc(group.count * sizeof *sorted);

        if (sorted == NULL) {
            return fake_nccl_error(ncclSystemError, "no memory");
        }
        for (size_t i = 0; i < group.count; ++i) {
            if (group.calls[i].comm == comm) {
                sorted[own++] = group.calls[i];
            } else {
                group.calls[others++] = group.calls[i];
            }
        }
        group.count = others;
        const ncclResult_t one = start(sorted, own);
        code = one != ncclSuccess ? one : code;
        free(sorted);
    }
    return code;
}

/* What every call is checked for; bytes: of each of its two places. */
static ncclResult_t check(const call *c, size_t from_bytes, size_t to_bytes)
{
    if (c->comm == NULL || c->comm->is_over || !c->comm->is_ready) {
        return fake_nccl_error(ncclInvalidArgument, "%s on a communicator that is not ready",
                               fake_call_text(c));
    }
    if (c->comm->pending != NULL) {
        return fake_nccl_error(ncclInvalidUsage, "%s while the call before is still in progress",
                               fake_call_text(c));
    }
    if (c->comm->state != ncclSuccess) {
        return c->comm->state;
    }
    if (c->peer < 0 || c->peer >= c->comm->size || fake_type_bytes(c->type) == 0) {
        return fake_nccl_error(ncclInvalidArgument, "%s: rank %d of %d", fake_call_text(c), c->peer,
                               c->comm->size);
    }
    if (from_bytes > 1u << 30 || to_bytes > 1u << 30) {
        return fake_nccl_error(ncclInvalidArgument, "%s: too long for the fake", fake_call_text(c));
    }
    if ((from_bytes != 0 && !fake_is_device(c->from, from_bytes)) ||
        (to_bytes != 0 && !fake_is_device(c->to, to_bytes))) {
        return fake_nccl_error(ncclInvalidArgument, "%s: not inside a block of device memory",
                               fake_call_text(c));
    }
    return ncclSuccess;
}

static ncclResult_t submit(call c, size_t from_bytes, size_t to_bytes)
{
    ncclResult_t code = check(&c, from_bytes, to_bytes);

    if (code == ncclSuccess && group.depth != 0 && group.count == MOST_CALLS) {
        code = fake_nccl_error(ncclInvalidUsage, "more than %d calls in a group", MOST_CALLS);
    }
    if (code != ncclSuccess) {
        group.failed = code;
        return code;
    }
    if (group.depth == 0) {
        return start(&c, 1);
    }
    group.calls[group.count++] = c;
    return ncclSuccess;
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream)
{
    return submit((call){CALL_SEND, comm, stream, from, NULL, count, type, peer},
                  count * fake_type_bytes(type), 0);
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return submit((call){CALL_RECV, comm, stream, NULL, to, count, type, peer}, 0,
                  count * fake_type_bytes(type));
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream)
{
    const size_t bytes = count * fake_type_bytes(type);

    return submit((call){CALL_ALL_GATHER, comm, stream, from, to, count, type, 0}, bytes,
                  comm != NULL ? bytes * (size_t)comm->size : 0);
}

ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream)
{
    const size_t bytes = count * fake_type_bytes(type);

    if (type != ncclFloat32 || op != ncclSum) {
        return fake_nccl_error(ncclInvalidArgument, "the fake sums float32 only");
    }
    return submit((call){CALL_REDUCE_SCATTER, comm, stream, from, to, count, type, 0},
                  comm != NULL ? bytes * (size_t)comm->size : 0, bytes);
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    const size_t bytes = count * fake_type_bytes(type);

    return submit((call){CALL_BROADCAST, comm, stream, from, to, count, type, root},
                  comm != NULL && comm->rank == root ? bytes : 0, bytes);
}
