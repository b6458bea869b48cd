/* Three ranks all of which hold all chunks; the communicator of rank 1 fails in the background.
 * Each rank's wait must say so in its way and in time: rank 1 by the cause, the others by its name.
 * They agree on a private way and rank 0 ends the job with code 4, as launch does; see stuck.cmake.
 */
#include "collectives/mpi_bridge.h"
#include "collectives/sparse.h"

#include <stdio.h>
#include <string.h>

enum { RANKS = 3, FLOATS = 1 << 20 /* too long to be delivered without the receiver's help */ };

static const double timeout_s = 2.0, slack_s = 2.0; /* the machine may be busy */

static float values[RANKS][FLOATS];

static bool play(tsr_comm *inner, tsr_worker *worker)
{
    const int rank = tsr_comm_rank(inner);
    const tsr_comm_fault fault = {.rank = 1, .call = 3, .code = TSR_ERR_COMM};
    const tsr_sparse_options options = {.max_chunks = RANKS, .max_parts = 1};
    const int32_t begin[RANKS + 1] = {0, 3, 6, 9}, holders[] = {0, 1, 2, 1, 0, 2, 2, 0, 1};
    const tsr_holding holding = {RANKS, begin, holders};
    const int64_t bytes = sizeof *values;
    void *memory[RANKS] = {values[0], values[1], values[2]};
    const char *expected =
        rank == 1 ? "call 3 fails on rank 1 on purpose" : "rank 1 does not respond";
    tsr_sparse_call call = {
        .holding = &holding, .parts = 1, .part_bytes = &bytes, .memory = memory, .number = -1};
    tsr_comm *faulty = NULL;
    tsr_sparse *sparse = NULL;

    if (tsr_comm_create_faulty(inner, &fault, &faulty) != TSR_OK ||
        tsr_sparse_create(faulty, worker, &options, &sparse) != TSR_OK) {
        return false;
    }
    const double start = MPI_Wtime();
    const tsr_status begun = tsr_sparse_start_all_gather(sparse, &call);
    const tsr_status st = tsr_sparse_wait(&call);
    const double took = MPI_Wtime() - start;
    const bool ok = begun == TSR_OK && st == (rank == 1 ? TSR_ERR_COMM : TSR_ERR_TIMEOUT) &&
                    strstr(tsr_error_message(), expected) != NULL && took <= timeout_s + slack_s;
    if (!ok) {
        (void)fprintf(stderr, "rank %d: status %s after %.2f s: %s\n", rank, tsr_status_name(st),
                      took, tsr_error_message());
    }
    return ok && tsr_comm_is_dead(faulty);
}

int main(int argc, char **argv)
{
    tsr_comm *comm = NULL;
    tsr_worker *worker = NULL;
    int provided = 0, rank = 0, ok = 0, all_ok = 0;

    if (argc != 2 || MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided) != 0) {
        return 2;
    }
    (void)MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (provided == MPI_THREAD_MULTIPLE &&
        tsr_comm_create_mpi(MPI_COMM_WORLD, timeout_s, 0, &comm) == TSR_OK &&
        tsr_comm_size(comm) == RANKS && tsr_worker_create(&worker) == TSR_OK) {
        ok = play(comm, worker);
    }
    (void)MPI_Allreduce(&ok, &all_ok, 1, MPI_INT, MPI_LAND, MPI_COMM_WORLD);
    if (rank == 0) {
        (void)fprintf(stderr, "%s: %s\n", argv[1], all_ok ? "as it should be" : "wrong");
        (void)MPI_Abort(MPI_COMM_WORLD, all_ok ? 4 : 1);
    }
    (void)MPI_Barrier(MPI_COMM_WORLD); /* rank 0 ends the job while the others are here */
    return 1;
}
