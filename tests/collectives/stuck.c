/* Three ranks, one of which does not come: `stopped`, `late`, `mismatch`, `part`, `chain` or
 * `apart`. The others must get a TSR_ERR_TIMEOUT in time that says why. They agree on a private
 * way, rank 0 prints the verdict and ends the job with code 4, as launch does; stuck.cmake checks
 * both. */
#include "collectives/mpi_bridge.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    ELEMENTS = 1 << 20 /* too long to be delivered without the receiver's help */
};

static const double timeout_s = 2.0, slack_s = 1.5; /* the machine may be busy */

static float values[ELEMENTS];

static void pause_s(double seconds)
{
    const struct timespec pause = {.tv_sec = (time_t)seconds,
                                   .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};

    (void)nanosleep(&pause, NULL);
}

static tsr_status gradients(tsr_comm *comm)
{
    const int64_t cuts[4] = {0, ELEMENTS / 3, ELEMENTS / 3 * 2, ELEMENTS};

    tsr_comm_set_phase("gradient reduce-scatter", 14);
    return tsr_comm_reduce_scatter_f32(comm, values, cuts);
}

static tsr_status checkpoint(tsr_comm *comm)
{
    tsr_comm_set_phase("checkpoint", -1);
    return tsr_comm_barrier(comm);
}

/* Ranks 1 and 2 meet on a communicator of all, or on one of their own while rank 0 computes, waits
 * on one with rank 1, or waits on that of all. */
typedef enum place { TOGETHER, ALONE, CHAIN, APART } place;

static const struct scene {
    const char *name, *expected, *expected_of_0;
    double late_s;     /* rank 1 */
    bool is_stopped;   /* rank 2 */
    bool is_elsewhere; /* rank 1 */
    place place;
} scenes[] = {
    {"stopped",
     "no answer within 2 s in gradient reduce-scatter (step 14): rank 2 does not respond (ranks 0 "
     "1 do): it is lost",
     NULL, 0, true, false, TOGETHER},
    /* rank 0 gives up after 1 s and asks for 1 s; rank 1 comes in between and must not be blamed */
    {"late",
     "no answer within 2 s in gradient reduce-scatter (step 14): rank 2 does not respond (ranks 0 "
     "1 do)",
     NULL, 1.3, true, false, TOGETHER},
    {"mismatch",
     "all ranks respond, but wait for each other: ranks 0 2 in reduce-scatter of gradient "
     "reduce-scatter (step 14), rank 1 in barrier of checkpoint",
     NULL, 0, false, true, TOGETHER},
    {"part", "rank 2 does not respond (rank 1 does)", NULL, 0, true, false, ALONE},
    /* rank 1 responds wherever it waits: who waits for it must not blame it */
    {"chain", "rank 2 does not respond (rank 1 does)", "rank 2 does not respond (ranks 0 1 do)", 0,
     true, false, CHAIN},
    {"apart", "rank 2 does not respond (rank 1 does)", "rank 2 does not respond (ranks 0 1 do)", 0,
     true, false, APART},
};

static bool play(const struct scene *scene, tsr_comm *comm, int rank)
{
    if (scene->is_stopped && rank == 2) {
        (void)raise(SIGSTOP); /* for good: the others end the job */
    }
    if (rank == 1) {
        pause_s(scene->late_s);
    }
    const double start = MPI_Wtime();
    const tsr_status st = scene->is_elsewhere && rank == 1 ? checkpoint(comm) : gradients(comm);
    const double took = MPI_Wtime() - start;
    const char *expected =
        rank == 0 && scene->expected_of_0 != NULL ? scene->expected_of_0 : scene->expected;
    const bool ok = st == TSR_ERR_TIMEOUT && strstr(tsr_error_message(), expected) != NULL &&
                    took <= timeout_s + slack_s && tsr_comm_is_dead(comm) &&
                    tsr_comm_barrier(comm) == TSR_ERR_COMM;
    if (!ok) {
        (void)fprintf(stderr, "rank %d: status %s after %.2f s: %s\n", rank, tsr_status_name(st),
                      took, tsr_error_message());
    }
    return ok;
}

int main(int argc, char **argv)
{
    const struct scene *scene = NULL;
    tsr_comm *comm = NULL, *part = NULL, *other = NULL;
    MPI_Comm healthy = MPI_COMM_NULL;
    int provided = 0, rank = 0, ok = 0, all_ok = 0;

    for (size_t i = 0; argc == 2 && i < sizeof scenes / sizeof *scenes; ++i) {
        scene = strcmp(scenes[i].name, argv[1]) == 0 ? &scenes[i] : scene;
    }
    if (scene == NULL || MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided) != 0) {
        return 2;
    }
    (void)MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    (void)MPI_Comm_split(MPI_COMM_WORLD, scene->is_stopped && rank == 2, rank, &healthy);
    if (tsr_comm_create_mpi(MPI_COMM_WORLD, timeout_s, 0, &comm) == TSR_OK &&
        tsr_comm_split(comm, scene->place != TOGETHER && rank > 0, rank, &part) == TSR_OK &&
        tsr_comm_split(comm, rank > 1, rank, &other) == TSR_OK &&
        tsr_comm_barrier(part) == TSR_OK) {
        tsr_comm *const of_0[] = {part, NULL, other, comm};
        tsr_comm *const own = rank == 0 ? of_0[scene->place] : part;

        ok = own == NULL || play(scene, own, rank);
    }
    (void)MPI_Allreduce(&ok, &all_ok, 1, MPI_INT, MPI_LAND, healthy);
    if (rank == 0) {
        (void)fprintf(stderr, "%s: %s\n", scene->name, all_ok ? "as it should be" : "wrong");
        (void)MPI_Abort(MPI_COMM_WORLD, all_ok ? 4 : 1);
    }
    (void)MPI_Barrier(healthy); /* rank 0 ends the job while the others are here */
    return 1;
}
