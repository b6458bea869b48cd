/* Parts of communicators of every kind, and two communicators used by two threads at once. */
#include "tests/support/mpi_test.h"
#include "tests/support/scarce_memory.h"

#include "collectives/mpi_bridge.h"

#include <pthread.h>
#include <string.h>

enum { ROUNDS = 200, LENGTH = 3001 };

/* Each rank tells every other its number, by one float each. */
static tsr_status tell_numbers(tsr_comm *comm, float *heard)
{
    const int rank = tsr_comm_rank(comm), size = tsr_comm_size(comm);
    const float number = (float)(rank + 1);
    tsr_segment send[TSR_TEST_MAX_RANKS] = {{0}}, receive[TSR_TEST_MAX_RANKS] = {{0}};
    int64_t begin[TSR_TEST_MAX_RANKS + 1];

    for (int peer = 0; peer < size; ++peer) {
        begin[peer] = peer;
        send[peer].bytes = receive[peer].bytes = peer == rank ? 0 : (int64_t)sizeof number;
        receive[peer].at = peer * (int64_t)sizeof number;
    }
    begin[size] = size;
    heard[rank] = number;
    const tsr_exchange what = {.send = &number,
                               .receive = heard,
                               .send_segments = send,
                               .receive_segments = receive,
                               .send_begin = begin,
                               .receive_begin = begin};
    return tsr_comm_exchange(comm, &what);
}

static bool numbers_are_heard(tsr_comm *comm)
{
    float heard[TSR_TEST_MAX_RANKS] = {0};
    bool ok = tell_numbers(comm, heard) == TSR_OK;

    for (int peer = 0; peer < tsr_comm_size(comm); ++peer) {
        ok = ok && heard[peer] == (float)(peer + 1);
    }
    return ok;
}

static void keys_give_the_order(void **state)
{
    tsr_comm *world = tsr_test_comm(), *part = NULL;
    const int rank = tsr_comm_rank(world), size = tsr_comm_size(world);

    (void)state;
    /* even and odd ranks, from the last to the first */
    bool ok = tsr_comm_split(world, rank % 2, -rank, &part) == TSR_OK;
    const int mine = (size - rank % 2 + 1) / 2;
    ok = ok && tsr_comm_size(part) == mine && tsr_comm_rank(part) == mine - 1 - rank / 2;
    ok = ok && tsr_comm_local_size(part) == mine && numbers_are_heard(part);
    tsr_comm_destroy(&part);
    assert_all_ranks(world, ok);
}

static void alone_there_is_one_part(void **state)
{
    tsr_comm *alone = NULL, *part = NULL;

    (void)state;
    bool ok = tsr_comm_create_self(&alone) == TSR_OK && numbers_are_heard(alone);
    ok = ok && tsr_comm_split(alone, 5, 0, &part) == TSR_OK && tsr_comm_size(part) == 1 &&
         tsr_comm_seats(part)[0].node == 0;
    ok = ok && tsr_comm_barrier(part) == TSR_OK;
    tsr_comm_destroy(&part);
    ok = ok && tsr_comm_split(alone, -1, 0, &part) == TSR_ERR_ARG && part == NULL &&
         strstr(tsr_error_message(), "color = -1") != NULL;
    tsr_comm_destroy(&alone);
    assert_all_ranks(tsr_test_comm(), ok);
}

static void faults_come_in_these_calls_too(void **state)
{
    tsr_comm *world = tsr_test_comm(), *faulty = NULL, *part = NULL, *none = NULL;
    const tsr_comm_fault fault = {
        .rank = tsr_comm_rank(world), .call = 3, .code = TSR_ERR_COMM}; /* on all, without waits */
    float heard[TSR_TEST_MAX_RANKS] = {0};

    (void)state;
    bool ok = tsr_comm_create_faulty(world, &fault, &faulty) == TSR_OK;
    ok = ok && tsr_comm_split(faulty, 0, tsr_comm_rank(world), &part) == TSR_OK &&
         tsr_comm_size(part) == tsr_comm_size(world) && numbers_are_heard(part);
    ok = ok && numbers_are_heard(faulty);
    ok = ok && tell_numbers(faulty, heard) == TSR_ERR_COMM && tsr_comm_is_dead(faulty);
    ok = ok && tell_numbers(faulty, heard) == TSR_ERR_COMM &&
         strstr(tsr_error_message(), "has failed before") != NULL;
    ok = ok && tsr_comm_split(faulty, 0, 0, &none) == TSR_ERR_COMM && none == NULL;
    tsr_comm_destroy(&part);
    tsr_comm_destroy(&faulty);
    assert_all_ranks(world, ok && !tsr_comm_is_dead(world));
}

static void a_plane_is_not_below_zero(void **state)
{
    tsr_comm *world = tsr_test_comm(), *none = world;
    const tsr_status st = tsr_comm_create_mpi(MPI_COMM_WORLD, 1.0, -1, &none);

    (void)state;
    assert_all_ranks(world, st == TSR_ERR_ARG && none == NULL &&
                                strstr(tsr_error_message(), "plane = -1") != NULL);
}

/* Wherever one rank's memory ends, no part comes to be: not that of the other ranks either. */
static void without_memory_on_one_rank_there_are_no_parts(void **state)
{
    tsr_comm *world = tsr_test_comm(), *part = NULL;
    const int rank = tsr_comm_rank(world), culprit = tsr_comm_size(world) - 1;
    tsr_status st = TSR_ERR_NOMEM;
    char cause[64];

    (void)state;
    (void)snprintf(cause, sizeof cause, "rank %d: cannot allocate", culprit);
    for (int64_t block = 1; st != TSR_OK; ++block) {
        tsr_test_refuse_block(rank == culprit ? block : 0);
        st = tsr_comm_split(world, rank % 2, rank, &part);
        tsr_test_refuse_block(0);
        const bool is_told = rank == culprit
                                 ? st == TSR_ERR_NOMEM && strstr(tsr_error_message(), cause + 8)
                                 : st == TSR_ERR_PEER && strstr(tsr_error_message(), cause);
        assert_all_ranks(world, st == TSR_OK ? block > 5 : is_told && part == NULL);
    }
    const bool ok = numbers_are_heard(part);
    tsr_comm_destroy(&part);
    assert_all_ranks(world, ok);
}

/* ---- threads -------------------------------------------------------------------------------- */

typedef struct runner {
    tsr_comm *comm;
    float values[LENGTH];
    int offset; /* of the values, so that what strays to the other thread shows */
    bool ok;
} runner;

static void *run_rounds(void *argument)
{
    runner *r = argument;
    const int rank = tsr_comm_rank(r->comm), size = tsr_comm_size(r->comm);
    int64_t cuts[TSR_TEST_MAX_RANKS + 1];

    for (int part = 0; part <= size; ++part) {
        cuts[part] = (int64_t)LENGTH * part / size;
    }
    r->ok = true;
    for (int round = 0; r->ok && round < ROUNDS; ++round) {
        const float all = (float)(size * (size - 1) / 2 + size * (r->offset + round));
        double total = rank + r->offset + round;

        for (int i = 0; i < LENGTH; ++i) {
            r->values[i] = (float)(rank + r->offset + round);
        }
        r->ok = tsr_comm_reduce_scatter_f32(r->comm, r->values, cuts) == TSR_OK &&
                tsr_comm_all_gather_parts(r->comm, r->values, sizeof(float), cuts) == TSR_OK &&
                tsr_comm_all_reduce_f64(r->comm, &total, 1, TSR_REDUCE_SUM) == TSR_OK &&
                total == (double)all;
        for (int i = 0; r->ok && i < LENGTH; ++i) {
            r->ok = r->values[i] == all;
        }
    }
    return NULL;
}

static void two_threads_use_two_communicators(void **state)
{
    static runner runners[2] = {{.offset = 0}, {.offset = 5000}};
    tsr_comm *world = tsr_test_comm();
    pthread_t other;
    int level = 0;

    (void)state;
    (void)MPI_Query_thread(&level);
    bool ok = level == MPI_THREAD_MULTIPLE;
    for (int i = 0; i < 2; ++i) {
        ok = tsr_comm_split(world, 0, tsr_comm_rank(world), &runners[i].comm) == TSR_OK && ok;
    }
    assert_all_ranks(world, ok);
    ok = pthread_create(&other, NULL, run_rounds, &runners[1]) == 0;
    assert_all_ranks(world, ok); /* else some would wait for a thread that there is not */
    (void)run_rounds(&runners[0]);
    ok = pthread_join(other, NULL) == 0 && runners[0].ok && runners[1].ok;
    for (int i = 0; i < 2; ++i) {
        tsr_comm_destroy(&runners[i].comm);
    }
    assert_all_ranks(world, ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_give_the_order),
        cmocka_unit_test(alone_there_is_one_part),
        cmocka_unit_test(faults_come_in_these_calls_too),
        cmocka_unit_test(a_plane_is_not_below_zero),
        cmocka_unit_test(without_memory_on_one_rank_there_are_no_parts),
        cmocka_unit_test(two_threads_use_two_communicators),
    };

    return tsr_mpi_test_main(argc, argv, "split", tests, sizeof tests / sizeof tests[0]);
}
