/* Waiting with a deadline. What is left of it when a rank gives up is for finding out who is to
 * blame: see watch.c. */
#include "collectives/mpi/mpi_impl.h"

#include <sched.h>
#include <time.h>

enum { SPIN_TURNS = 64 };

static const double listen_s = 0.1;      /* between looks for a word of a rank that gave up */
static const double doze_after_s = 1e-3; /* of waiting, on a node with more ranks than cores */

/* A turn that took longer means that this process was stopped itself: no reason to blame others. */
static const double longest_turn_s = 0.25;

static double window_s(const tsr_comm *comm)
{
    const double window = comm->timeout_s / 4 > 1 ? comm->timeout_s / 4 : 1;

    return window < comm->timeout_s / 2 ? window : comm->timeout_s / 2;
}

/* Ends the communicator. */
static tsr_status give_up(comm_mpi *self, const char *operation)
{
    char text[900];

    mpi_watch_ask(self->watch, operation, self->names, self->base.size, window_s(&self->base), text,
                  sizeof text);
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
        if (mpi_watch_listen(self->watch)) {
            return give_up(self, operation);
        }
    }
    if (self->is_crowded && wait->waited_s > doze_after_s) {
        const struct timespec doze = {.tv_nsec = 50000};
        (void)nanosleep(&doze, NULL); /* leave the core to a rank that computes */
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
