/* Reduce-scatter and all-gather of parts: uneven and empty parts, many small messages, counters. */
#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"

#include <string.h>

enum { LENGTH = 5000 };

/* Part sizes that differ, with an empty one among three or more. */
static void uneven_cuts(int64_t length, int size, int64_t *cuts)
{
    for (int part = 0; part <= size; ++part) {
        cuts[part] = length * part * part / (size * size);
    }
    if (size > 2) {
        cuts[1] = 0;
    }
}

/* Not a sum of few powers of two, so that rounding shows the order of summation. */
static float value_of(int rank, int64_t at)
{
    return 1.0f / (float)(1 + rank * 7 + at % 97) + (float)(rank * 1000);
}

static float *take(int64_t count)
{
    void *block = NULL;

    if (tsr_mem_alloc_array(TSR_MEM_OTHER, count, sizeof(float), &block) != TSR_OK) {
        fail_msg("%s", tsr_error_message());
    }
    return block;
}

/* The documented order, own + rank-1 + rank-2 ..., by hand, to the bit. */
static bool reduce_scatter_is_right(tsr_comm *comm, const int64_t *cuts)
{
    const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
    float *values = take(LENGTH);
    bool ok = true;

    for (int64_t at = 0; at < LENGTH; ++at) {
        values[at] = value_of(rank, at);
    }
    ok = tsr_comm_reduce_scatter_f32(comm, values, cuts) == TSR_OK;
    for (int64_t at = cuts[rank]; ok && at < cuts[rank + 1]; ++at) {
        float sum = value_of(rank, at);
        for (int distance = 1; distance < size; ++distance) {
            sum += value_of((rank - distance + size) % size, at);
        }
        ok = sum == values[at];
    }
    tsr_mem_free(values);
    return ok;
}

static bool all_gather_is_right(tsr_comm *comm, size_t element_bytes, const int64_t *cuts)
{
    const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
    unsigned char *values = (unsigned char *)take(LENGTH);
    bool ok = true;

    memset(values, 0xee, (size_t)LENGTH * element_bytes);
    for (size_t at = (size_t)cuts[rank] * element_bytes;
         at < (size_t)cuts[rank + 1] * element_bytes; ++at) {
        values[at] = (unsigned char)(at * 31 + (size_t)rank);
    }
    ok = tsr_comm_all_gather_parts(comm, values, element_bytes, cuts) == TSR_OK;
    for (int part = 0; part < size; ++part) {
        for (size_t at = (size_t)cuts[part] * element_bytes;
             at < (size_t)cuts[part + 1] * element_bytes; ++at) {
            ok = ok && values[at] == (unsigned char)(at * 31 + (size_t)part);
        }
    }
    tsr_mem_free(values);
    return ok;
}

static void even_and_uneven_parts(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm);
    int64_t cuts[TSR_TEST_MAX_RANKS + 1];
    bool ok = true;

    for (int part = 0; part <= size; ++part) {
        cuts[part] = (int64_t)LENGTH * part / size;
    }
    ok = reduce_scatter_is_right(comm, cuts) && all_gather_is_right(comm, 4, cuts);
    uneven_cuts(LENGTH, size, cuts);
    ok = reduce_scatter_is_right(comm, cuts) && all_gather_is_right(comm, 2, cuts) && ok;
    for (int part = 0; part <= size; ++part) { /* all of it belongs to the last rank */
        cuts[part] = part == size ? LENGTH : 0;
    }
    ok = reduce_scatter_is_right(comm, cuts) && all_gather_is_right(comm, 4, cuts) && ok;
    memset(cuts, 0, sizeof cuts);
    ok = reduce_scatter_is_right(comm, cuts) && all_gather_is_right(comm, 4, cuts) && ok;
    assert_all_ranks(comm, ok);
}

static void many_messages_give_the_same(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    int64_t cuts[TSR_TEST_MAX_RANKS + 1];
    bool ok = true;

    uneven_cuts(LENGTH, tsr_comm_size(comm), cuts);
    for (size_t bytes = 40; bytes < 5000; bytes *= 5) { /* not divisors of the parts */
        tsr_comm_set_message_bytes(comm, bytes);
        ok = reduce_scatter_is_right(comm, cuts) && all_gather_is_right(comm, 4, cuts) && ok;
        ok = all_gather_is_right(comm, 2, cuts) && ok;
    }
    tsr_comm_set_message_bytes(comm, SIZE_MAX / 2);
    assert_all_ranks(comm, ok);
}

static void bytes_are_those_of_the_parts(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm), rank = tsr_comm_rank(comm);
    int64_t cuts[TSR_TEST_MAX_RANKS + 1], before[TSR_LINKS], after[TSR_LINKS];

    uneven_cuts(LENGTH, size, cuts);
    const int64_t own = cuts[rank + 1] - cuts[rank];
    tsr_comm_bytes(comm, before);
    bool ok = reduce_scatter_is_right(comm, cuts) && all_gather_is_right(comm, 2, cuts);
    tsr_comm_bytes(comm, after);
    /* every other rank's part goes to it as f32, the own part of 2 bytes goes to every other rank
     */
    const int64_t sent = (LENGTH - own) * 4 + own * 2 * (size - 1);
    ok = ok && after[TSR_LINK_INTRA_NODE] - before[TSR_LINK_INTRA_NODE] == sent;
    ok = ok && after[TSR_LINK_SELF] == before[TSR_LINK_SELF] && after[TSR_LINK_IN_PLANE] == 0 &&
         after[TSR_LINK_CROSS_PLANE] == 0;
    assert_all_ranks(comm, ok);
}

static void bad_cuts_are_refused_everywhere(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    int64_t cuts[TSR_TEST_MAX_RANKS + 1] = {0};
    float values[4] = {0};

    cuts[0] = 3;
    cuts[1] = 2;
    bool ok = tsr_comm_reduce_scatter_f32(comm, values, cuts) == TSR_ERR_ARG &&
              strstr(tsr_error_message(), "cuts[1] = 2 is below cuts[0] = 3") != NULL;
    cuts[0] = -1;
    ok = ok && tsr_comm_all_gather_parts(comm, values, 4, cuts) == TSR_ERR_ARG &&
         strstr(tsr_error_message(), "cuts[0] = -1") != NULL;
    cuts[0] = 0;
    ok = ok && tsr_comm_all_gather_parts(comm, values, 3, cuts) == TSR_ERR_ARG &&
         strstr(tsr_error_message(), "element_bytes = 3") != NULL;
    assert_all_ranks(comm, ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(even_and_uneven_parts),
        cmocka_unit_test(many_messages_give_the_same),
        cmocka_unit_test(bytes_are_those_of_the_parts),
        cmocka_unit_test(bad_cuts_are_refused_everywhere),
    };

    return tsr_mpi_test_main(argc, argv, "exchange", tests, sizeof tests / sizeof tests[0]);
}
