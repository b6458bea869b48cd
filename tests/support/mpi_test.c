#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"

#include <stdio.h>

static tsr_comm *world;

void assert_all_ranks(tsr_comm *comm, bool ok)
{
    const tsr_status local = ok ? TSR_OK : TSR_FAIL(TSR_ERR_ARG, "check failed here");
    const tsr_status all = tsr_comm_agree(comm, local);
    if (all != TSR_OK) {
        fail_msg("%s", tsr_error_message());
    }
}

tsr_comm *tsr_test_comm(void)
{
    return world;
}

int tsr_mpi_test_main(int argc, char **argv, const char *name, const struct CMUnitTest *tests,
                      size_t count)
{
    int failed = 1, worst = 1, provided = 0;

    if (MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS) {
        return 1;
    }
    if (tsr_comm_create_mpi(MPI_COMM_WORLD, 20.0, 0, &world) == TSR_OK) {
        if (tsr_comm_rank(world) != 0 && freopen("/dev/null", "w", stdout) == NULL) {
            return 1;
        }
        failed = _cmocka_run_group_tests(name, tests, count, NULL, NULL);
    }
    (void)MPI_Allreduce(&failed, &worst, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
    tsr_comm_destroy(&world);
    if (worst == 0 && tsr_mem_live_blocks() != 0) {
        (void)fprintf(stderr, "%s: %lld blocks were not freed\n", name,
                      (long long)tsr_mem_live_blocks());
        worst = 1;
    }
    (void)MPI_Finalize();
    return worst == 0 ? 0 : 1;
}
