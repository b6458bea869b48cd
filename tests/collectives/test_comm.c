/* The small operations, the verdict of many ranks, and what a failed communicator does. */
#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    COUNT = 2500 /* more than two pieces of an all-reduce */
};

static void broadcast_from_each_root(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
    char text[1000];
    bool ok = true;

    tsr_comm_set_message_bytes(comm, 64);
    for (int root = 0; root < size; ++root) {
        memset(text, rank == root ? 'a' + root : '-', sizeof text);
        ok = tsr_comm_broadcast(comm, text, sizeof text, root) == TSR_OK && ok;
        for (size_t i = 0; i < sizeof text; ++i) {
            ok = ok && text[i] == 'a' + root;
        }
    }
    tsr_comm_set_message_bytes(comm, SIZE_MAX / 2);
    ok = tsr_comm_broadcast(comm, text, 0, 0) == TSR_OK && ok;
    assert_all_ranks(comm, ok);
}

static void a_root_that_is_no_rank_is_refused(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm);
    char byte = 0;

    bool ok = tsr_comm_broadcast(comm, &byte, 1, size) == TSR_ERR_ARG &&
              strstr(tsr_error_message(), "root = ") != NULL;
    ok = tsr_comm_broadcast(comm, &byte, 1, -1) == TSR_ERR_ARG && ok;
    assert_all_ranks(comm, ok);
}

static void gather_in_rank_order(void **state)
{
    (void)state;
    static unsigned char mine[20000], all[TSR_TEST_MAX_RANKS * 20000];
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
    const size_t lengths[] = {0, 1, 8192, 8193, 20000}; /* around the ends of a piece */
    bool ok = true;

    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; ++i) {
        for (size_t at = 0; at < lengths[i]; ++at) {
            mine[at] = (unsigned char)(at * 7 + (size_t)rank * 3);
        }
        ok = tsr_comm_all_gather(comm, mine, lengths[i], all) == TSR_OK && ok;
        for (int peer = 0; peer < size; ++peer) {
            for (size_t at = 0; at < lengths[i]; ++at) {
                ok = ok && all[(size_t)peer * lengths[i] + at] ==
                               (unsigned char)(at * 7 + (size_t)peer * 3);
            }
        }
    }
    assert_all_ranks(comm, ok);
}

/* No exact sum in f64, so that another order would show in the last bits. */
static double value_of(int rank, int at)
{
    return 1.0 / (3.0 + rank * 11 + at) + rank * 1e6;
}

static void sums_are_in_rank_order(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
    double values[COUNT];

    for (int at = 0; at < COUNT; ++at) {
        values[at] = value_of(rank, at);
    }
    bool ok = tsr_comm_all_reduce_f64(comm, values, COUNT, TSR_REDUCE_SUM) == TSR_OK;
    for (int at = 0; at < COUNT; ++at) {
        double sum = value_of(0, at);
        for (int peer = 1; peer < size; ++peer) {
            sum += value_of(peer, at);
        }
        ok = ok && sum == values[at];
    }
    assert_all_ranks(comm, ok);
}

static void extremes_and_whole_numbers(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
    double low = rank - 5.0, high = -(double)rank;
    uint64_t sum = UINT64_MAX - (uint64_t)rank, most = (uint64_t)rank << 60, least = most;
    uint64_t expected = 0;

    for (int peer = 0; peer < size; ++peer) {
        expected += UINT64_MAX - (uint64_t)peer; /* wraps */
    }
    bool ok = tsr_comm_all_reduce_f64(comm, &low, 1, TSR_REDUCE_MIN) == TSR_OK && low == -5.0;
    ok = tsr_comm_all_reduce_f64(comm, &high, 1, TSR_REDUCE_MAX) == TSR_OK && high == 0.0 && ok;
    ok = tsr_comm_all_reduce_u64(comm, &sum, 1, TSR_REDUCE_SUM) == TSR_OK && sum == expected && ok;
    ok = tsr_comm_all_reduce_u64(comm, &most, 1, TSR_REDUCE_MAX) == TSR_OK && ok;
    ok = tsr_comm_all_reduce_u64(comm, &least, 1, TSR_REDUCE_MIN) == TSR_OK && ok;
    ok = ok && most == (uint64_t)(size - 1) << 60 && least == 0;
    ok = tsr_comm_all_reduce_f64(comm, &low, 0, TSR_REDUCE_SUM) == TSR_OK && ok;
    ok = tsr_comm_all_reduce_u64(comm, &sum, -1, TSR_REDUCE_SUM) == TSR_ERR_ARG && ok;
    ok = tsr_comm_all_reduce_f64(comm, &low, -1, TSR_REDUCE_SUM) == TSR_ERR_ARG && ok;
    assert_all_ranks(comm, ok);
}

/* A NaN on any rank is seen by all, whatever the operation. */
static void a_nan_survives(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const tsr_reduce ops[] = {TSR_REDUCE_SUM, TSR_REDUCE_MAX, TSR_REDUCE_MIN};
    bool ok = true;

    for (int culprit = 0; culprit < tsr_comm_size(comm); ++culprit) {
        for (size_t i = 0; i < sizeof ops / sizeof *ops; ++i) {
            double value = tsr_comm_rank(comm) == culprit ? (double)NAN : 1.0;
            ok = tsr_comm_all_reduce_f64(comm, &value, 1, ops[i]) == TSR_OK && isnan(value) && ok;
        }
    }
    assert_all_ranks(comm, ok);
}

static void the_lowest_bad_rank_speaks(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
    bool ok = tsr_comm_agree(comm, TSR_OK) == TSR_OK;
    char expected[64];

    for (int lowest = 0; lowest < size; ++lowest) { /* all from `lowest` on are bad */
        const tsr_status local =
            rank >= lowest ? TSR_FAIL(TSR_ERR_IO, "disk %d is full", rank) : TSR_OK;
        const tsr_status st = tsr_comm_agree(comm, local);
        if (rank >= lowest) {
            (void)snprintf(expected, sizeof expected, "disk %d is full", rank);
        } else {
            (void)snprintf(expected, sizeof expected, "rank %d: disk %d is full", lowest, lowest);
        }
        ok = ok && st == (rank >= lowest ? TSR_ERR_IO : TSR_ERR_PEER) &&
             strcmp(tsr_error_message(), expected) == 0;
    }
    assert_all_ranks(comm, ok && !tsr_comm_is_dead(comm));
}

static void counters_are_payload_to_each_peer(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
    static char block[TSR_TEST_MAX_RANKS * 100];
    int64_t before[TSR_LINKS], after[TSR_LINKS];
    double values[COUNT] = {0};

    tsr_comm_bytes(comm, before);
    bool ok = tsr_comm_broadcast(comm, block, 100, size - 1) == TSR_OK;
    ok = tsr_comm_all_gather(comm, block, 50, block + 100) == TSR_OK && ok;
    ok = tsr_comm_all_reduce_f64(comm, values, COUNT, TSR_REDUCE_SUM) == TSR_OK && ok;
    ok = tsr_comm_barrier(comm) == TSR_OK && ok;
    tsr_comm_bytes(comm, after);
    const int64_t each = (rank == size - 1 ? 100 : 0) + 50 + COUNT * 8;
    ok = ok && after[TSR_LINK_INTRA_NODE] - before[TSR_LINK_INTRA_NODE] == each * (size - 1);
    ok = ok && after[TSR_LINK_SELF] == 0 && after[TSR_LINK_IN_PLANE] == 0;
    assert_all_ranks(comm, ok);
}

static void all_ranks_are_on_this_node(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();

    assert_all_ranks(comm, tsr_comm_local_size(comm) == tsr_comm_size(comm) &&
                               tsr_comm_local_rank(comm) == tsr_comm_rank(comm));
}

static void a_time_limit_must_be_positive(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm(), *other = comm;
    const tsr_status st = tsr_comm_create_mpi(MPI_COMM_WORLD, 0.0, 0, &other);

    assert_all_ranks(comm, st == TSR_ERR_ARG && other == NULL &&
                               strstr(tsr_error_message(), "timeout_s = 0") != NULL);
}

static void alone_everything_succeeds(void **state)
{
    (void)state;
    tsr_comm *world = tsr_test_comm(), *alone = NULL;
    const int64_t cuts[2] = {0, 3};
    float values[3] = {1, 2, 3};
    double sum = 2.5;
    char from = 'x', to = 0;

    bool ok = tsr_comm_create_self(&alone) == TSR_OK && tsr_comm_size(alone) == 1;
    ok = ok && tsr_comm_rank(alone) == 0 && tsr_comm_local_size(alone) == 1;
    ok = ok && tsr_comm_reduce_scatter_f32(alone, values, cuts) == TSR_OK && values[2] == 3;
    ok = ok && tsr_comm_all_gather_parts(alone, values, 4, cuts) == TSR_OK && values[0] == 1;
    ok = ok && tsr_comm_all_reduce_f64(alone, &sum, 1, TSR_REDUCE_SUM) == TSR_OK && sum == 2.5;
    ok = ok && tsr_comm_all_gather(alone, &from, 1, &to) == TSR_OK && to == 'x';
    ok = ok && tsr_comm_broadcast(alone, &to, 1, 0) == TSR_OK && tsr_comm_barrier(alone) == TSR_OK;
    ok = ok && tsr_comm_agree(alone, TSR_OK) == TSR_OK;
    ok = ok && tsr_comm_agree(alone, TSR_FAIL(TSR_ERR_IO, "no disk")) == TSR_ERR_IO &&
         strcmp(tsr_error_message(), "no disk") == 0;
    tsr_comm_destroy(&alone);
    assert_all_ranks(world, ok && alone == NULL);
}

/* One rank's call fails on purpose; it is refused from then on, and no memory is lost. */
static void a_dead_communicator_is_refused(void **state)
{
    (void)state;
    tsr_comm *world = tsr_test_comm(), *faulty = NULL;
    const int last = tsr_comm_size(world) - 1;
    const bool culprit = tsr_comm_rank(world) == last;
    const tsr_comm_fault fault = {.rank = last, .call = 2, .code = TSR_ERR_COMM};
    int64_t cuts[TSR_TEST_MAX_RANKS + 1] = {0};
    double value = 0;
    float none = 0;

    bool ok = tsr_comm_create_faulty(world, &fault, &faulty) == TSR_OK;
    ok = ok && tsr_comm_barrier(faulty) == TSR_OK && !tsr_comm_is_dead(faulty);
    if (ok && culprit) { /* its peers do not enter: their wait for it is another test's matter */
        ok = tsr_comm_barrier(faulty) == TSR_ERR_COMM && tsr_comm_is_dead(faulty);
        ok = ok && tsr_comm_barrier(faulty) == TSR_ERR_COMM &&
             strstr(tsr_error_message(), "has failed before") != NULL;
        ok = ok && tsr_comm_agree(faulty, TSR_OK) == TSR_ERR_COMM;
        ok = ok && tsr_comm_agree(faulty, TSR_FAIL(TSR_ERR_IO, "the cause")) == TSR_ERR_IO &&
             strcmp(tsr_error_message(), "the cause") == 0;
        ok = ok && tsr_comm_broadcast(faulty, &value, 8, 0) == TSR_ERR_COMM;
        ok = ok && tsr_comm_all_gather(faulty, &none, 4, &none) == TSR_ERR_COMM;
        ok = ok && tsr_comm_all_reduce_f64(faulty, &value, 1, TSR_REDUCE_SUM) == TSR_ERR_COMM;
        ok = ok && tsr_comm_reduce_scatter_f32(faulty, &none, cuts) == TSR_ERR_COMM;
        ok = ok && tsr_comm_all_gather_parts(faulty, &none, 4, cuts) == TSR_ERR_COMM;
    }
    tsr_comm_destroy(&faulty);
    assert_all_ranks(world, ok && !tsr_comm_is_dead(world));
}

/* Ranks that arrive in another order each time get the same results. */
static void late_ranks_change_nothing(void **state)
{
    (void)state;
    tsr_comm *world = tsr_test_comm(), *faulty = NULL;
    const int size = tsr_comm_size(world), rank = tsr_comm_rank(world);
    const tsr_comm_fault fault = {.rank = -1, .seed = 7, .max_delay_s = 2e-3};
    bool ok = tsr_comm_create_faulty(world, &fault, &faulty) == TSR_OK;

    for (int round = 0; round < 20; ++round) {
        double sum = rank + round;
        int64_t cuts[TSR_TEST_MAX_RANKS + 1];
        float values[TSR_TEST_MAX_RANKS];
        for (int part = 0; part <= size; ++part) {
            cuts[part] = part;
        }
        for (int part = 0; part < size; ++part) {
            values[part] = (float)(part + rank);
        }
        ok = ok && tsr_comm_all_reduce_f64(faulty, &sum, 1, TSR_REDUCE_SUM) == TSR_OK &&
             sum == size * (size - 1) / 2 + size * round;
        ok = ok && tsr_comm_reduce_scatter_f32(faulty, values, cuts) == TSR_OK &&
             values[rank] == (float)(size * (size - 1) / 2 + size * rank);
        ok = ok && tsr_comm_all_gather_parts(faulty, values, 4, cuts) == TSR_OK &&
             values[size - 1] == (float)(size * (size - 1) / 2 + size * (size - 1));
    }
    tsr_comm_destroy(&faulty);
    assert_all_ranks(world, ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broadcast_from_each_root),
        cmocka_unit_test(a_root_that_is_no_rank_is_refused),
        cmocka_unit_test(gather_in_rank_order),
        cmocka_unit_test(sums_are_in_rank_order),
        cmocka_unit_test(extremes_and_whole_numbers),
        cmocka_unit_test(a_nan_survives),
        cmocka_unit_test(the_lowest_bad_rank_speaks),
        cmocka_unit_test(counters_are_payload_to_each_peer),
        cmocka_unit_test(all_ranks_are_on_this_node),
        cmocka_unit_test(a_time_limit_must_be_positive),
        cmocka_unit_test(alone_everything_succeeds),
        cmocka_unit_test(a_dead_communicator_is_refused),
        cmocka_unit_test(late_ranks_change_nothing),
    };

    return tsr_mpi_test_main(argc, argv, "comm", tests, sizeof tests / sizeof tests[0]);
}
