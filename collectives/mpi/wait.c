/* Waiting with a deadline, and who is to blame when it passes.
 *
 *   healthy ranks                                   stuck rank
 *   wait, no progress for timeout_s - window
 *   first one: word to all others on `watch`  --->  (delivered, never read)
 *   others, still waiting: hear it within LISTEN_S
 *   and send theirs at once
 *   all: collect words until everybody has spoken or the window has passed
 *   who has not spoken is named; the communicator is dead
 *
 * The word reaches a rank only where it waits on this communicator: one that waits on another, for
 * a lost rank or for one that waits for it, does not speak here either. The message says so.
 *
 * A rank that is merely late enters a wait within the window, hears the word there and answers. The
 * window is part of timeout_s, so that the whole ends within it. */
#include "collectives/mpi/mpi_impl.h"

#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    TAG_WORD = 1, /* on `watch` */
    SPIN_TURNS = 64
};

static const double listen_s = 0.1;      /* between looks for a word of a rank that gave up */
static const double doze_after_s = 1e-3; /* of waiting, on a node with more ranks than cores */

/* A turn that took longer means that this process was stopped itself: no reason to blame others. */
static const double longest_turn_s = 0.25;

static double window_s(const tsr_comm *comm)
{
    const double window = comm->timeout_s / 4 > 1 ? comm->timeout_s / 4 : 1;

    return window < comm->timeout_s / 2 ? window : comm->timeout_s / 2;
}

static void doze(long microseconds)
{
    const struct timespec pause = {.tv_nsec = microseconds * 1000};

    (void)nanosleep(&pause, NULL);
}

/* Take in the words that have arrived; how many ranks have spoken by now. */
static int listen(comm_mpi *self)
{
    const int own = self->base.rank;
    int heard = 1, here = 1;

    while (here) {
        MPI_Status status;
        if (MPI_Iprobe(MPI_ANY_SOURCE, TAG_WORD, self->watch, &here, &status) != MPI_SUCCESS) {
            here = 0;
        }
        if (here) {
            probe *word = &self->probes[status.MPI_SOURCE];
            /* it is here and short: this does not wait */
            word->is_heard = MPI_Recv(word, sizeof *word, MPI_BYTE, status.MPI_SOURCE, TAG_WORD,
                                      self->watch, MPI_STATUS_IGNORE) == MPI_SUCCESS;
        }
    }
    for (int peer = 0; peer < self->base.size; ++peer) {
        heard += peer != own && self->probes[peer].is_heard;
    }
    return heard;
}

static void speak(comm_mpi *self, const char *operation)
{
    probe *own = &self->probes[self->base.rank];

    own->step = tsr_comm_phase(own->phase);
    (void)snprintf(own->operation, sizeof own->operation, "%s", operation);
    own->is_heard = true;
    for (int peer = 0; peer < self->base.size; ++peer) {
        MPI_Request request = MPI_REQUEST_NULL;
        if (peer != self->base.rank && MPI_Isend(own, sizeof *own, MPI_BYTE, peer, TAG_WORD,
                                                 self->watch, &request) == MPI_SUCCESS) {
            (void)MPI_Request_free(&request); /* the word stays where it is: is_dead leaks it */
        }
    }
}

static void append(char *text, size_t size, const char *more)
{
    const size_t length = strlen(text);

    (void)snprintf(text + length, size - length, "%s", more);
}

/* "rank 2" or "ranks 0 1 3": those whose is_heard is as asked for and who say the same as `like`.
 */
static void append_ranks(const comm_mpi *self, bool is_heard, const probe *like, char *text,
                         size_t size)
{
    char list[400] = "", number[16];
    int count = 0;

    for (int peer = 0; peer < self->base.size; ++peer) {
        const probe *word = &self->probes[peer];
        const bool same =
            like == NULL || (word->step == like->step && strcmp(word->phase, like->phase) == 0 &&
                             strcmp(word->operation, like->operation) == 0);
        if (word->is_heard == is_heard && same) {
            (void)snprintf(number, sizeof number, " %d", self->names[peer]);
            append(list, sizeof list, number);
            ++count;
        }
    }
    append(text, size, count == 1 ? "rank" : "ranks");
    append(text, size, list);
}

/* "gradient reduce-scatter (step 14)"; the operation where no phase was set. */
static void append_place(const probe *word, bool with_operation, char *text, size_t size)
{
    char step[32];

    if (with_operation || word->phase[0] == '\0') {
        append(text, size, word->operation);
    }
    if (word->phase[0] != '\0') {
        append(text, size, with_operation ? " of " : "");
        append(text, size, word->phase);
    }
    if (word->step >= 0) {
        (void)snprintf(step, sizeof step, " (step %" PRId64 ")", word->step);
        append(text, size, step);
    }
}

/* All respond, so they wait for different things: say who is where, each place once. */
static void append_places(const comm_mpi *self, char *text, size_t size)
{
    for (int peer = 0; peer < self->base.size; ++peer) {
        const probe *word = &self->probes[peer];
        bool is_told = false;
        for (int before = 0; before < peer && !is_told; ++before) {
            const probe *other = &self->probes[before];
            is_told = other->step == word->step && strcmp(other->phase, word->phase) == 0 &&
                      strcmp(other->operation, word->operation) == 0;
        }
        if (!is_told) {
            append(text, size, peer == 0 ? "" : ", ");
            append_ranks(self, true, word, text, size);
            append(text, size, " in ");
            append_place(word, true, text, size);
        }
    }
}

/* The round of words after a time-out; ends the communicator. */
static tsr_status give_up(comm_mpi *self, const char *operation)
{
    const int size = self->base.size;
    char text[900] = "";

    speak(self, operation);
    const double until = MPI_Wtime() + window_s(&self->base);
    int heard = listen(self);
    while (heard < size && MPI_Wtime() < until) {
        doze(1000);
        heard = listen(self);
    }
    append_place(&self->probes[self->base.rank], false, text, sizeof text);
    append(text, sizeof text, ": ");
    if (heard < size) {
        append_ranks(self, false, NULL, text, sizeof text);
        append(text, sizeof text, size - heard == 1 ? " does not respond (" : " do not respond (");
        append_ranks(self, true, NULL, text, sizeof text);
        append(text, sizeof text, heard == 1 ? " does): " : " do): ");
        append(text, sizeof text,
               size - heard == 1 ? "it is lost or stuck, or waits elsewhere for one that is"
                                 : "they are lost or stuck, or wait elsewhere for one that is");
    } else {
        append(text, sizeof text, "all ranks respond, but wait for each other: ");
        append_places(self, text, sizeof text);
    }
    return tsr_comm_end(&self->base, TSR_FAIL(TSR_ERR_TIMEOUT, "no answer within %g s in %s",
                                              self->base.timeout_s, text));
}

tsr_status mpi_pause(comm_mpi *self, waiter *wait, const char *operation)
{
    const double now = MPI_Wtime();

    if (++wait->turns == 1) {
        wait->last_s = now;
    }
    const double turn = now - wait->last_s;
    wait->last_s = now;
    wait->waited_s += turn < longest_turn_s ? turn : longest_turn_s;
    if (wait->waited_s > self->base.timeout_s - window_s(&self->base)) {
        return give_up(self, operation);
    }
    if (wait->waited_s > wait->listened_s + listen_s) {
        wait->listened_s = wait->waited_s;
        if (listen(self) > 1) {
            return give_up(self, operation);
        }
    }
    if (self->is_crowded && wait->waited_s > doze_after_s) {
        doze(50); /* leave the core to a rank that computes */
    } else if (wait->turns > SPIN_TURNS) {
        (void)sched_yield();
    }
    return TSR_OK;
}

tsr_status mpi_fail(comm_mpi *self, int rc, const char *operation)
{
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;

    (void)MPI_Error_string(rc, text, &length);
    return tsr_comm_end(&self->base, TSR_FAIL(TSR_ERR_COMM, "%s: %s", operation, text));
}

tsr_status mpi_wait(comm_mpi *self, int rc, MPI_Request *request, const char *operation)
{
    waiter wait = {0};
    int done = 0;

    while (rc == MPI_SUCCESS) {
        rc = MPI_Test(request, &done, MPI_STATUS_IGNORE);
        if (rc == MPI_SUCCESS && done) {
            return TSR_OK;
        }
        if (rc == MPI_SUCCESS) {
            TSR_TRY(mpi_pause(self, &wait, operation));
        }
    }
    return mpi_fail(self, rc, operation);
}
