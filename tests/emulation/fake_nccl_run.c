/* What a launch of the fake NCCL does once its stream gets there. Each call is messages, one to or
 * from each peer that it concerns; messages say which call they belong to, so that a peer that
 * makes another one is found out. A message counts as sent only when it was received. */
#include "tests/emulation/fake_nccl_impl.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct header {
    int64_t launch, collectives; /* the sender's; the second must be the receiver's too */
    int32_t kind, type, root, unused;
    uint64_t count;
} header;

typedef struct message {
    const call *of;
    int peer;     /* in the communicator */
    size_t bytes; /* of payload */
    char *data;   /* outgoing: header and payload; incoming: payload, once it is here */
    char *to;     /* device memory, or NULL */
    MPI_Request request;
    bool is_done;
} message;

struct launch {
    ncclComm_t comm;
    int64_t number, collectives; /* on the communicator, this one included */
    double start_s;              /* 0: the stream has not got here */
    size_t call_count, out_count, in_count;
    call *calls;
    message *out, *in;
};

/* ---- making --------------------------------------------------------------------------------- */

launch *launch_create(const call *calls, size_t count)
{
    launch *l = calloc(1, sizeof *l);
    const size_t most = count * (size_t)calls[0].comm->size;

    if (l == NULL) {
        return NULL;
    }
    l->comm = calls[0].comm;
    l->number = ++l->comm->launches;
    for (size_t i = 0; i < count; ++i) {
        l->comm->collectives += calls[i].kind != CALL_SEND && calls[i].kind != CALL_RECV;
    }
    l->collectives = l->comm->collectives;
    ++l->comm->in_flight;
    l->calls = malloc(count * sizeof *calls);
    l->out = calloc(most, sizeof *l->out);
    l->in = calloc(most, sizeof *l->in);
    if (l->calls == NULL || l->out == NULL || l->in == NULL) {
        launch_destroy(l);
        return NULL;
    }
    memcpy(l->calls, calls, count * sizeof *calls);
    l->call_count = count;
    return l;
}

void launch_destroy(launch *l)
{
    for (size_t i = 0; i < l->out_count; ++i) {
        if (l->out[i].is_done) { /* else MPI still has it */
            free(l->out[i].data);
        }
    }
    for (size_t i = 0; i < l->in_count; ++i) {
        free(l->in[i].data);
    }
    --l->comm->in_flight;
    fake_nccl_release(l->comm);
    free(l->calls);
    free(l->out);
    free(l->in);
    free(l);
}

static cudaError_t run(const void *arg);

ncclResult_t launch_queue(launch *l)
{
    const cudaError_t code = fake_enqueue(l->calls[0].stream, run, &l, sizeof l);

    if (code != cudaSuccess) {
        launch_destroy(l);
        return fake_nccl_error(ncclUnhandledCudaError, "launch: %s", cudaGetErrorString(code));
    }
    return ncclSuccess;
}

/* ---- messages ------------------------------------------------------------------------------- */

static bool post(launch *l, const call *c, int peer, const char *from, size_t bytes)
{
    const header head = {.launch = l->number,
                         .collectives = l->collectives,
                         .kind = (int32_t)c->kind,
                         .type = (int32_t)c->type,
                         .root = c->kind == CALL_BROADCAST ? c->peer : 0,
                         .count = c->count};
    message *m = &l->out[l->out_count];

    *m = (message){.of = c, .peer = peer, .bytes = bytes, .data = malloc(sizeof head + bytes)};
    if (m->data == NULL) {
        return false;
    }
    ++l->out_count;
    memcpy(m->data, &head, sizeof head);
    memcpy(m->data + sizeof head, from, bytes);
    return MPI_Issend(m->data, (int)(sizeof head + bytes), MPI_BYTE, l->comm->world[peer],
                      l->comm->tag, MPI_COMM_WORLD, &m->request) == MPI_SUCCESS;
}

static void expect(launch *l, const call *c, int peer, char *to, size_t bytes)
{
    l->in[l->in_count++] = (message){.of = c, .peer = peer, .bytes = bytes, .to = to};
}

/* Sends of this rank to itself go to its receives, in their order: GroupEnd has paired them. */
static void copy_to_self(launch *l, const call *receive, size_t which)
{
    for (size_t i = 0; i < l->call_count; ++i) {
        const call *c = &l->calls[i];
        if (c->kind == CALL_SEND && c->peer == l->comm->rank && which-- == 0) {
            memmove(receive->to, c->from, c->count * fake_type_bytes(c->type));
        }
    }
}

static bool start_call(launch *l, const call *c)
{
    const int rank = l->comm->rank;
    const size_t bytes = c->count * fake_type_bytes(c->type);
    bool ok = true;

    for (int peer = 0; peer < l->comm->size && ok; ++peer) {
        const size_t block = (size_t)peer * bytes;
        if (c->kind == CALL_ALL_GATHER && peer == rank) {
            memmove(c->to + block, c->from, bytes);
        } else if (c->kind == CALL_BROADCAST && peer == rank && rank == c->peer) {
            memmove(c->to, c->from, bytes);
        }
        if (peer == rank || ((c->kind == CALL_SEND || c->kind == CALL_RECV) && peer != c->peer)) {
            continue;
        }
        switch (c->kind) {
        case CALL_SEND:
            ok = post(l, c, peer, c->from, bytes);
            break;
        case CALL_RECV:
            expect(l, c, peer, c->to, bytes);
            break;
        case CALL_ALL_GATHER:
            ok = post(l, c, peer, c->from, bytes);
            expect(l, c, peer, c->to + block, bytes);
            break;
        case CALL_REDUCE_SCATTER:
            ok = post(l, c, peer, c->from + block, bytes);
            expect(l, c, peer, NULL, bytes);
            break;
        case CALL_BROADCAST: /* all tell all that they are here */
            ok = post(l, c, peer, c->from, rank == c->peer ? bytes : 0);
            expect(l, c, peer, c->to, peer == c->peer ? bytes : 0);
            break;
        }
    }
    return ok;
}

static bool start(launch *l)
{
    size_t to_self = 0;

    l->start_s = fake_now_s();
    for (size_t i = 0; i < l->call_count; ++i) {
        const call *c = &l->calls[i];
        if (c->kind == CALL_RECV && c->peer == l->comm->rank) {
            copy_to_self(l, c, to_self++);
        } else if (!start_call(l, c)) {
            return false;
        }
    }
    return true;
}

static const char *header_text(const header *head)
{
    const call c = {.kind = (call_kind)head->kind,
                    .type = (ncclDataType_t)head->type,
                    .count = head->count,
                    .peer = head->root};

    return fake_call_text(&c);
}

/* Does what has come belong to the call that waits for it? */
static bool is_match(const launch *l, const message *m, const header *head, size_t bytes)
{
    const call *c = m->of;
    const bool is_point = c->kind == CALL_RECV;

    return head->kind == (int32_t)(is_point ? CALL_SEND : c->kind) && head->count == c->count &&
           head->type == (int32_t)c->type && bytes == m->bytes &&
           (is_point || (head->collectives == l->collectives &&
                         head->root == (c->kind == CALL_BROADCAST ? c->peer : 0)));
}

static ncclResult_t receive(launch *l, message *m, bool *moved)
{
    const int from = l->comm->world[m->peer];
    MPI_Status status;
    header head;
    int here = 0, bytes = 0;

    (void)MPI_Iprobe(from, l->comm->tag, MPI_COMM_WORLD, &here, &status);
    if (!here) {
        return ncclSuccess;
    }
    (void)MPI_Get_count(&status, MPI_BYTE, &bytes);
    m->data = malloc((size_t)bytes);
    if (m->data == NULL) {
        return fake_nccl_error(ncclSystemError, "no memory for a message");
    }
    (void)MPI_Recv(m->data, bytes, MPI_BYTE, from, l->comm->tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    memcpy(&head, m->data, sizeof head);
    if (!is_match(l, m, &head, (size_t)bytes - sizeof head)) {
        char theirs[96];
        (void)snprintf(theirs, sizeof theirs, "%s", header_text(&head));
        return fake_nccl_error(
            ncclInvalidUsage,
            "mismatch on communicator %d: rank %d waits in %s (launch %lld), rank %d makes %s "
            "(launch %lld)",
            l->comm->tag - TAG_FIRST, l->comm->rank, fake_call_text(m->of), (long long)l->number,
            m->peer, theirs, (long long)head.launch);
    }
    memmove(m->data, m->data + sizeof head, m->bytes);
    if (m->to != NULL) {
        memcpy(m->to, m->data, m->bytes);
    }
    m->is_done = true;
    *moved = true;
    return ncclSuccess;
}

/* Only the oldest one from each peer may come next. */
static bool is_next(const launch *l, size_t which)
{
    for (size_t i = 0; i < which; ++i) {
        if (l->in[i].peer == l->in[which].peer && !l->in[i].is_done) {
            return false;
        }
    }
    return true;
}

static ncclResult_t progress(launch *l, bool *is_done)
{
    bool moved = true;

    while (moved) {
        moved = false;
        *is_done = true;
        for (size_t i = 0; i < l->in_count; ++i) {
            if (!l->in[i].is_done && is_next(l, i)) {
                const ncclResult_t code = receive(l, &l->in[i], &moved);
                if (code != ncclSuccess) {
                    return code;
                }
            }
            *is_done = *is_done && l->in[i].is_done;
        }
        for (size_t i = 0; i < l->out_count; ++i) {
            message *m = &l->out[i];
            int passed = 0;
            if (!m->is_done && MPI_Test(&m->request, &passed, MPI_STATUS_IGNORE) == MPI_SUCCESS) {
                m->is_done = passed != 0;
                moved = moved || passed;
            }
            *is_done = *is_done && m->is_done;
        }
    }
    return ncclSuccess;
}

/* In the order of a ring that ends at the owner: not the one of our own summation. */
static void sum(const launch *l)
{
    const int size = l->comm->size, rank = l->comm->rank;

    for (size_t i = 0; i < l->call_count; ++i) {
        const call *c = &l->calls[i];
        const float *own = (const float *)(const void *)c->from + (size_t)rank * c->count;
        for (size_t at = 0; c->kind == CALL_REDUCE_SCATTER && at < c->count; ++at) {
            float total = 0.0f;
            for (int step = 1; step < size; ++step) {
                for (size_t k = 0; k < l->in_count; ++k) {
                    if (l->in[k].of == c && l->in[k].peer == (rank + step) % size) {
                        total += ((const float *)(const void *)l->in[k].data)[at];
                    }
                }
            }
            ((float *)(void *)c->to)[at] = total + own[at];
        }
    }
}

/* ---- the deadline --------------------------------------------------------------------------- */

typedef struct word {
    double time_s;
    int communicator;
    char text[160];
} word;

static void describe_wait(const launch *l, char *text, size_t size)
{
    const message *waits = NULL;
    bool is_out = false;

    for (size_t i = 0; i < l->in_count && waits == NULL; ++i) {
        waits = l->in[i].is_done ? NULL : &l->in[i];
    }
    for (size_t i = 0; i < l->out_count && waits == NULL; ++i) {
        waits = l->out[i].is_done ? NULL : &l->out[i];
        is_out = waits != NULL;
    }
    (void)snprintf(text, size, "rank %d on communicator %d in %s (launch %lld), %s rank %d",
                   l->comm->rank, l->comm->tag - TAG_FIRST,
                   waits != NULL ? fake_call_text(waits->of) : "nothing", (long long)l->number,
                   is_out ? "not received by" : "nothing from", waits != NULL ? waits->peer : -1);
}

/* Tell the peers where this rank waits, and hear where they do. */
static ncclResult_t give_up(const launch *l)
{
    static word own; /* MPI may send it later */
    char text[1500];
    bool elsewhere = false;
    const double until = fake_now_s() + 0.5;

    own = (word){.time_s = fake_now_s(), .communicator = l->comm->tag - TAG_FIRST};
    describe_wait(l, own.text, sizeof own.text);
    (void)snprintf(text, sizeof text, "%s", own.text);
    for (int peer = 0; peer < l->comm->size; ++peer) {
        MPI_Request request;
        if (peer != l->comm->rank && MPI_Isend(&own, sizeof own, MPI_BYTE, l->comm->world[peer],
                                               TAG_WORD, MPI_COMM_WORLD, &request) == MPI_SUCCESS) {
            (void)MPI_Request_free(&request);
        }
    }
    while (fake_now_s() < until) {
        int here = 0;
        word theirs;
        (void)MPI_Iprobe(MPI_ANY_SOURCE, TAG_WORD, MPI_COMM_WORLD, &here, MPI_STATUS_IGNORE);
        if (here &&
            MPI_Recv(&theirs, sizeof theirs, MPI_BYTE, MPI_ANY_SOURCE, TAG_WORD, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE) == MPI_SUCCESS &&
            theirs.time_s >= l->start_s) {
            const size_t used = strlen(text);
            elsewhere = elsewhere || theirs.communicator != own.communicator;
            (void)snprintf(text + used, sizeof text - used, "; %s", theirs.text);
        }
    }
    return fake_nccl_error(ncclRemoteError, "deadlock after %g s%s: %s", nccl_deadline_s,
                           elsewhere ? ", communicators are used in different orders" : "", text);
}

static cudaError_t run(const void *arg)
{
    launch *l = *(launch *const *)arg;
    ncclComm_t comm = l->comm;
    bool is_done = false;
    ncclResult_t code = comm->state;

    if (comm->is_aborted) {
        launch_destroy(l);
        return cudaSuccess; /* the kernel was told to stop, and has */
    }
    if (l->start_s == 0.0 && !start(l)) {
        code = fake_nccl_error(ncclSystemError, "a message could not be sent");
    }
    if (code == ncclSuccess || code == ncclInProgress) {
        code = progress(l, &is_done);
    }
    if (code == ncclSuccess && !is_done && fake_now_s() - l->start_s > nccl_deadline_s) {
        code = give_up(l);
    }
    if (code == ncclSuccess && !is_done) {
        const struct timespec doze = {.tv_nsec = 20000};
        (void)nanosleep(&doze, NULL);
        return cudaErrorNotReady;
    }
    if (code == ncclSuccess) {
        sum(l);
    } else {
        comm->state = code;
    }
    launch_destroy(l);
    return code == ncclSuccess ? cudaSuccess : cudaErrorLaunchFailure;
}
