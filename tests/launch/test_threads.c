/* An MPI that does not take calls from several threads is refused when the program starts: this
 * test stands between the program and such an MPI, by MPI's own profiling interface. */
#include "tests/support/unit_test.h"

#include "launch/world.h"

#include <mpi.h>

#include <string.h>

static int rank, argument_count;
static char **arguments;

int MPI_Init_thread(int *argc, char ***argv, int required, int *provided)
{
    const int rc = PMPI_Init_thread(argc, argv, required, provided);

    *provided = MPI_THREAD_SERIALIZED;
    return rc;
}

static void calls_from_one_thread_only_are_refused(void **state)
{
    world w = {0};
    char text[256];

    (void)state;
    const tsr_status st = world_start(&argument_count, &arguments, true, &w);
    (void)snprintf(text, sizeof text, "%s", tsr_error_message());
    (void)MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    const int code = world_stop(&w, 0); /* collective: before what may jump out of here */
    assert_int_equal(code, 0);
    assert_int_equal(st, rank == 0 ? TSR_ERR_UNSUPPORTED : TSR_ERR_PEER); /* told once */
    assert_non_null(strstr(text, "thread level 2, must be 3"));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(calls_from_one_thread_only_are_refused)};

    argument_count = argc;
    arguments = argv;
    return tsr_unit_test_main("threads", tests, sizeof tests / sizeof tests[0]);
}
