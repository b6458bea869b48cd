/* Helper of test_h5py.py: all ranks save the fixture of step 10 into RUN, with rows cut by CUT. */
#include "collectives/mpi_bridge.h"
#include "tests/checkpoints/state_fixture.h"

#include <stdlib.h>

static int save(tsr_comm *comm, const char *run, fixture_cut cut)
{
    const tsr_checkpoint_config config = {.async = true};
    tsr_ckpt_result result;
    fixture state;

    if (!fixture_make(&state, cut, tsr_comm_rank(comm), tsr_comm_size(comm), TSR_BF16, 10, 1)) {
        return 1;
    }
    const tsr_status st = fixture_save(comm, run, &state, &config, &result);
    if (st != TSR_OK) {
        (void)fprintf(stderr, "%s\n", tsr_error_message());
    }
    fixture_free(&state);
    return st == TSR_OK ? 0 : 1;
}

int main(int argc, char **argv)
{
    tsr_comm *comm = NULL;
    int failed = 1, provided = 0;

    if (argc != 3 || MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS) {
        return 2;
    }
    if (tsr_comm_create_mpi(MPI_COMM_WORLD, 20.0, 0, &comm) == TSR_OK) {
        failed = save(comm, argv[1], (fixture_cut)strtol(argv[2], NULL, 10));
    }
    tsr_comm_destroy(&comm);
    (void)MPI_Finalize();
    return failed;
}
