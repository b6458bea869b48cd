/* Seats, splitting, exchange of segments, and the composite that keeps to planes: results as those
 * of the flat communicator, and no byte across. Nodes are pretended. */
#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"

#include <string.h>

enum { LENGTH = 3000 };

/* The ranks of a run believed to sit on nodes of `places` ranks, each place on its own plane. */
typedef struct fixture {
    tsr_comm *flat, *node, *rail, *planes;
    int nodes, places;
} fixture;

static tsr_status open_flat(int places, bool dealt, fixture *f)
{
    tsr_comm *world = tsr_test_comm();
    const int rank = tsr_comm_rank(world), size = tsr_comm_size(world);
    tsr_seat seats[TSR_TEST_MAX_RANKS];

    *f = (fixture){.nodes = size / places, .places = places};
    TSR_TRY(tsr_comm_split(world, 0, rank, &f->flat));
    for (int r = 0; r < size; ++r) { /* in blocks, or dealt out to the nodes in turn */
        seats[r] = dealt ? (tsr_seat){.node = 7 + r % f->nodes, .plane = r / f->nodes}
                         : (tsr_seat){.node = 9 - r / places, .plane = r % places};
    }
    tsr_comm_set_seats(f->flat, seats);
    return TSR_OK;
}

static tsr_status open_planes(int places, bool dealt, fixture *f)
{
    TSR_TRY(open_flat(places, dealt, f));
    const tsr_seat *seat = &tsr_comm_seats(f->flat)[tsr_comm_rank(f->flat)];
    TSR_TRY(tsr_comm_split(f->flat, seat->node, seat->local, &f->node));
    TSR_TRY(tsr_comm_split(f->flat, seat->local, seat->node, &f->rail));
    return tsr_comm_create_planes(f->flat, f->node, f->rail, &f->planes);
}

static void close_all(fixture *f)
{
    tsr_comm_destroy(&f->planes);
    tsr_comm_destroy(&f->rail);
    tsr_comm_destroy(&f->node);
    tsr_comm_destroy(&f->flat);
}

/* Sums of whole numbers below 2^24 are exact in whatever order. */
static float value_of(int rank, int64_t at)
{
    return (float)((rank + 1) * 1000 + at % 577);
}

static void cut(int64_t length, int size, bool is_even, int64_t *cuts)
{
    for (int part = 0; part <= size; ++part) {
        cuts[part] = is_even ? length * part / size : length * part * part / (size * size);
    }
}

static bool sums_are_right(tsr_comm *comm, const int64_t *cuts)
{
    static float values[LENGTH];
    const int rank = tsr_comm_rank(comm), size = tsr_comm_size(comm);

    for (int64_t i = 0; i < LENGTH; ++i) {
        values[i] = value_of(rank, i);
    }
    if (tsr_comm_reduce_scatter_f32(comm, values, cuts) != TSR_OK) {
        return false;
    }
    for (int64_t i = cuts[rank]; i < cuts[rank + 1]; ++i) {
        float sum = 0.0f;
        for (int r = 0; r < size; ++r) {
            sum += value_of(r, i);
        }
        if (values[i] != sum) {
            return false;
        }
    }
    return true;
}

static bool parts_are_gathered(tsr_comm *comm, size_t element, const int64_t *cuts)
{
    static unsigned char values[4 * LENGTH];
    const int rank = tsr_comm_rank(comm), size = tsr_comm_size(comm);

    memset(values, 0xee, sizeof values);
    for (size_t i = (size_t)cuts[rank] * element; i < (size_t)cuts[rank + 1] * element; ++i) {
        values[i] = (unsigned char)(i * 31 + (size_t)rank);
    }
    if (tsr_comm_all_gather_parts(comm, values, element, cuts) != TSR_OK) {
        return false;
    }
    for (int r = 0; r < size; ++r) {
        for (size_t i = (size_t)cuts[r] * element; i < (size_t)cuts[r + 1] * element; ++i) {
            if (values[i] != (unsigned char)(i * 31 + (size_t)r)) {
                return false;
            }
        }
    }
    return true;
}

/* all_gather in more than one piece, all_reduce over it, broadcast from each root, barrier. */
static bool small_calls_are_right(tsr_comm *comm)
{
    static char mine[3 * TSR_TEST_MAX_RANKS * 1000], all[sizeof mine * TSR_TEST_MAX_RANKS];
    const int rank = tsr_comm_rank(comm), size = tsr_comm_size(comm);
    double values[2] = {rank + 1.0, -rank};
    bool ok = tsr_comm_barrier(comm) == TSR_OK;

    memset(mine, rank + 1, sizeof mine);
    ok = ok && tsr_comm_all_gather(comm, mine, sizeof mine, all) == TSR_OK;
    for (int r = 0; ok && r < size; ++r) {
        ok = all[(size_t)r * sizeof mine] == r + 1 &&
             all[(size_t)(r + 1) * sizeof mine - 1] == r + 1;
    }
    ok = ok && tsr_comm_all_reduce_f64(comm, values, 1, TSR_REDUCE_SUM) == TSR_OK;
    ok = ok && tsr_comm_all_reduce_f64(comm, values + 1, 1, TSR_REDUCE_MIN) == TSR_OK;
    ok = ok && values[0] == size * (size + 1) / 2.0 && values[1] == 1.0 - size;
    for (int root = 0; ok && root < size; ++root) {
        int64_t text[3] = {rank, rank * 7, -1};
        ok = tsr_comm_broadcast(comm, text, sizeof text, root) == TSR_OK && text[0] == root &&
             text[1] == root * 7;
    }
    return ok;
}

/* What this process has sent across planes, and between nodes at all. */
static void count(int64_t *across, int64_t *between)
{
    int64_t bytes[TSR_TRAFFICS][TSR_LINKS];

    tsr_traffic_read(bytes);
    *across = *between = 0;
    for (int purpose = 0; purpose < TSR_TRAFFICS; ++purpose) {
        *across += bytes[purpose][TSR_LINK_CROSS_PLANE];
        *between += bytes[purpose][TSR_LINK_IN_PLANE];
    }
}

static void composite_keeps_to_planes(void **state)
{
    const int size = tsr_comm_size(tsr_test_comm());

    (void)state;
    for (int places = 1; places <= size; ++places) {
        for (int dealt = 0; size % places == 0 && dealt < 2; ++dealt) {
            int64_t cuts[TSR_TEST_MAX_RANKS + 1], before[2], after[2];
            fixture f;
            bool ok = open_planes(places, dealt != 0, &f) == TSR_OK;

            assert_all_ranks(tsr_test_comm(), ok);
            count(&before[0], &before[1]);
            for (int is_even = 0; is_even < 2; ++is_even) {
                cut(LENGTH, size, is_even != 0, cuts);
                ok = sums_are_right(f.planes, cuts) && ok;
                ok = parts_are_gathered(f.planes, 4, cuts) &&
                     parts_are_gathered(f.planes, 2, cuts) && ok;
            }
            ok = small_calls_are_right(f.planes) && ok;
            count(&after[0], &after[1]);
            ok = ok && after[0] == before[0] && (f.nodes == 1) == (after[1] == before[1]);
            close_all(&f);
            assert_all_ranks(tsr_test_comm(), ok);
        }
    }
}

/* The documented order: the node's ranks, own first, then the one before it ...; then the nodes. */
static void order_of_sums_is_fixed(void **state)
{
    static float first[LENGTH], second[LENGTH];
    const int size = tsr_comm_size(tsr_test_comm()), rank = tsr_comm_rank(tsr_test_comm());
    int64_t cuts[TSR_TEST_MAX_RANKS + 1];
    fixture f;

    (void)state;
    if (size % 2 != 0) {
        return;
    }
    bool ok = open_planes(2, false, &f) == TSR_OK;
    assert_all_ranks(tsr_test_comm(), ok);
    cut(LENGTH, size, false, cuts);
    for (int64_t i = 0; i < LENGTH; ++i) {
        first[i] = second[i] = 1.0f / (float)(1 + rank * 7 + i % 97) + (float)(rank * 1000);
    }
    ok = tsr_comm_reduce_scatter_f32(f.planes, first, cuts) == TSR_OK &&
         tsr_comm_reduce_scatter_f32(f.planes, second, cuts) == TSR_OK;
    for (int64_t i = cuts[rank]; ok && i < cuts[rank + 1]; ++i) {
        float nodes[TSR_TEST_MAX_RANKS] = {0}, sum = 0.0f;
        const int own_node = rank / 2;

        for (int n = 0; n < f.nodes; ++n) { /* at place rank % 2 of node n */
            const int here = 2 * n + rank % 2, other = 2 * n + 1 - rank % 2;
            nodes[n] = 1.0f / (float)(1 + here * 7 + i % 97) + (float)(here * 1000);
            nodes[n] += 1.0f / (float)(1 + other * 7 + i % 97) + (float)(other * 1000);
        }
        sum = nodes[own_node];
        for (int k = 1; k < f.nodes; ++k) {
            sum += nodes[(own_node - k + f.nodes) % f.nodes];
        }
        ok = first[i] == sum && second[i] == sum;
    }
    close_all(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

static void one_failure_is_told_by_its_rank(void **state)
{
    const int size = tsr_comm_size(tsr_test_comm());
    fixture f;

    (void)state;
    if (size < 4 || size % 2 != 0) {
        return;
    }
    bool ok = open_planes(2, false, &f) == TSR_OK;
    assert_all_ranks(tsr_test_comm(), ok);
    for (int culprit = 0; culprit < size; ++culprit) {
        const bool is_mine = tsr_comm_rank(f.planes) == culprit;
        char text[64];
        const tsr_status local = is_mine ? TSR_FAIL(TSR_ERR_IO, "disk of %d", culprit) : TSR_OK;
        const tsr_status st = tsr_comm_agree(f.planes, local);

        (void)snprintf(text, sizeof text, "rank %d: disk of %d", culprit, culprit);
        ok = ok && st == (is_mine ? TSR_ERR_IO : TSR_ERR_PEER) &&
             (is_mine || strcmp(tsr_error_message(), text) == 0);
    }
    ok = ok && tsr_comm_agree(f.planes, TSR_OK) == TSR_OK;
    close_all(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

static void irregular_nodes_are_refused(void **state)
{
    tsr_comm *world = tsr_test_comm();
    const int size = tsr_comm_size(world), rank = tsr_comm_rank(world);
    tsr_seat seats[TSR_TEST_MAX_RANKS];
    fixture f;

    (void)state;
    if (size < 3) {
        return;
    }
    bool ok = open_flat(1, false, &f) == TSR_OK;
    for (int r = 0; r < size; ++r) { /* two ranks on the first node, one on each other */
        seats[r] = (tsr_seat){.node = r < 2 ? 0 : r};
    }
    tsr_comm_set_seats(f.flat, seats);
    ok = ok && tsr_comm_split(f.flat, seats[rank].node, rank, &f.node) == TSR_OK &&
         tsr_comm_split(f.flat, rank == 1, rank, &f.rail) == TSR_OK;
    ok = ok && tsr_comm_create_planes(f.flat, f.node, f.rail, &f.planes) == TSR_ERR_ARG &&
         strstr(tsr_error_message(), "node 1 has 1") != NULL && f.planes == NULL;
    close_all(&f);
    assert_all_ranks(world, ok);
}

/* Two ranks a node, but on the last node their planes are exchanged. */
static void places_on_other_planes_are_refused(void **state)
{
    tsr_comm *world = tsr_test_comm();
    const int size = tsr_comm_size(world), rank = tsr_comm_rank(world);
    tsr_seat seats[TSR_TEST_MAX_RANKS];
    char text[64];
    fixture f;

    (void)state;
    if (size < 4 || size % 2 != 0) {
        return;
    }
    bool ok = open_flat(2, false, &f) == TSR_OK;
    for (int r = 0; r < size; ++r) {
        seats[r] = (tsr_seat){.node = r / 2, .plane = r < size - 2 ? r % 2 : 1 - r % 2};
    }
    tsr_comm_set_seats(f.flat, seats);
    ok = ok && tsr_comm_split(f.flat, rank / 2, rank, &f.node) == TSR_OK &&
         tsr_comm_split(f.flat, rank % 2, rank, &f.rail) == TSR_OK;
    (void)snprintf(text, sizeof text, "plane 0 on node 0 and on plane 1 on node %d", size / 2 - 1);
    ok = ok && tsr_comm_create_planes(f.flat, f.node, f.rail, &f.planes) == TSR_ERR_ARG &&
         strstr(tsr_error_message(), text) != NULL && f.planes == NULL;
    close_all(&f);
    assert_all_ranks(world, ok);
}

/* Node and rail taken for each other; and what has no direct way between all pairs. */
static void wrong_uses_are_refused(void **state)
{
    tsr_comm *none = NULL;
    int64_t begin[TSR_TEST_MAX_RANKS + 1] = {0};
    const tsr_exchange nothing = {.send_begin = begin, .receive_begin = begin};
    fixture f;

    (void)state;
    if (tsr_comm_size(tsr_test_comm()) != 6) {
        return;
    }
    bool ok = open_planes(2, false, &f) == TSR_OK;
    assert_all_ranks(tsr_test_comm(), ok);
    ok = tsr_comm_create_planes(f.flat, f.rail, f.node, &none) == TSR_ERR_ARG && none == NULL &&
         strstr(tsr_error_message(), "of a node's 3") != NULL;
    ok = ok && tsr_comm_exchange(f.planes, &nothing) == TSR_ERR_UNSUPPORTED &&
         strstr(tsr_error_message(), "no direct way") != NULL && !tsr_comm_is_dead(f.planes);
    close_all(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* What ends a part ends the whole; the other ranks do not enter. */
static void a_dead_part_is_a_dead_whole(void **state)
{
    tsr_comm *bad_node = NULL, *planes = NULL;
    const tsr_comm_fault fault = {
        .rank = tsr_comm_rank(tsr_test_comm()) % 2, .call = 1, .code = TSR_ERR_COMM};
    char byte = 0;
    fixture f;

    (void)state;
    if (tsr_comm_size(tsr_test_comm()) != 4) {
        return;
    }
    bool ok = open_planes(2, false, &f) == TSR_OK;
    assert_all_ranks(tsr_test_comm(), ok);
    ok = tsr_comm_create_faulty(f.node, &fault, &bad_node) == TSR_OK &&
         tsr_comm_create_planes(f.flat, bad_node, f.rail, &planes) == TSR_OK;
    ok = ok && tsr_comm_barrier(planes) == TSR_ERR_COMM && tsr_comm_is_dead(planes);
    ok = ok && tsr_comm_broadcast(planes, &byte, 1, 0) == TSR_ERR_COMM &&
         strstr(tsr_error_message(), "planes communicator of 4 ranks has failed before") != NULL;
    tsr_comm_destroy(&planes);
    tsr_comm_destroy(&bad_node);
    close_all(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* Rank 0's rail fails in a call of its own: the composite takes no call there from then on, neither
 * enters its parts nor waits for the others, and tells the cause. */
static void a_part_that_dies_elsewhere_ends_the_whole(void **state)
{
    tsr_comm *world = tsr_test_comm(), *bad_rail = NULL, *planes = NULL;
    const bool is_hit = tsr_comm_rank(world) == 0;
    const tsr_comm_fault fault = {.rank = is_hit ? 0 : -1, .call = 1, .code = TSR_ERR_TIMEOUT};
    fixture f;

    (void)state;
    if (tsr_comm_size(world) != 4) {
        return;
    }
    bool ok = open_planes(2, false, &f) == TSR_OK;
    assert_all_ranks(world, ok);
    ok = tsr_comm_create_faulty(f.rail, &fault, &bad_rail) == TSR_OK &&
         tsr_comm_create_planes(f.flat, f.node, bad_rail, &planes) == TSR_OK;
    if (is_hit) {
        char byte = 0, all[4];

        ok = ok && !tsr_comm_is_dead(planes) && tsr_comm_barrier(bad_rail) == TSR_ERR_TIMEOUT;
        ok = ok && tsr_comm_is_dead(planes) && tsr_comm_barrier(planes) == TSR_ERR_COMM &&
             strstr(tsr_error_message(), "planes communicator of 4 ranks has failed before") &&
             strstr(tsr_error_message(), "call 1 fails on rank 0 on purpose");
        ok = ok && tsr_comm_all_gather(planes, &byte, 1, all) == TSR_ERR_COMM;
        ok = ok && tsr_comm_agree(planes, TSR_OK) == TSR_ERR_COMM &&
             tsr_comm_agree(planes, TSR_FAIL(TSR_ERR_IO, "full disk")) == TSR_ERR_IO &&
             strcmp(tsr_error_message(), "full disk") == 0;
    }
    tsr_comm_destroy(&planes);
    tsr_comm_destroy(&bad_rail);
    close_all(&f);
    assert_all_ranks(world, ok);
}

static void parts_know_their_seats(void **state)
{
    const int size = tsr_comm_size(tsr_test_comm());
    tsr_comm *none = NULL;
    fixture f;

    (void)state;
    if (size != 6) {
        return;
    }
    bool ok =
        open_planes(3, true, &f) == TSR_OK; /* node of rank r: r % 2, place and plane: r / 2 */
    for (int r = 0; ok && r < size; ++r) {
        const tsr_seat *seat = &tsr_comm_seats(f.flat)[r];
        ok = seat->node == r % 2 && seat->local == r / 2 && seat->plane == r / 2;
    }
    for (int r = 0; ok && r < 3; ++r) {
        const tsr_seat *seat = &tsr_comm_seats(f.node)[r];
        ok = seat->node == 0 && seat->local == r && seat->plane == r;
    }
    ok = ok && tsr_comm_size(f.rail) == 2 && tsr_comm_local_size(f.rail) == 1 &&
         tsr_comm_seats(f.rail)[1].node == 1 &&
         tsr_comm_seats(f.rail)[0].plane == tsr_comm_rank(f.flat) / 2;
    ok = ok && tsr_comm_split(f.flat, -1, 0, &none) == TSR_ERR_ARG;
    close_all(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* Every rank sends peer p two runs, of p + 1 and of rank + 2 floats; some pairs have none. */
static bool exchange_is_right(tsr_comm *comm, bool sums)
{
    enum { RUN = 2 * TSR_TEST_MAX_RANKS + 8, ALL = 2 * RUN * TSR_TEST_MAX_RANKS };
    static float out[ALL], in[ALL];
    const int rank = tsr_comm_rank(comm), size = tsr_comm_size(comm);
    tsr_segment send[2 * TSR_TEST_MAX_RANKS], receive[2 * TSR_TEST_MAX_RANKS];
    int64_t begin[2][TSR_TEST_MAX_RANKS + 1] = {{0}};

    for (int i = 0; i < ALL; ++i) {
        out[i] = (float)(rank * 10000 + i);
        in[i] = 0.5f;
    }
    for (int p = 0; p < size; ++p) {
        const bool has = p != rank && (rank + p) % 3 != 2;
        int64_t n = begin[0][p];

        for (int k = 0; has && k < 2; ++k, ++n) {
            const int64_t at = (int64_t)(p * 2 + k) * RUN * 4;
            send[n] = (tsr_segment){at, 4 * (k == 0 ? p + 1 : rank + 2)};
            receive[n] = (tsr_segment){at, 4 * (k == 0 ? rank + 1 : p + 2)};
        }
        begin[0][p + 1] = begin[1][p + 1] = n;
    }
    const tsr_exchange what = {.send = out,
                               .receive = in,
                               .send_segments = send,
                               .receive_segments = receive,
                               .send_begin = begin[0],
                               .receive_begin = begin[1],
                               .sums = sums,
                               .purpose = TSR_TRAFFIC_DISPATCH};
    if (tsr_comm_exchange(comm, &what) != TSR_OK) {
        return false;
    }
    for (int i = 0; i < ALL; ++i) {
        const int p = i / (2 * RUN), k = i / RUN % 2, at = i % RUN;
        const bool has = p < size && p != rank && (rank + p) % 3 != 2;
        const bool is_in = has && at < (k == 0 ? rank + 1 : p + 2);
        const float sent = (float)(p * 10000 + (rank * 2 + k) * RUN + at);

        if (in[i] != (is_in ? sent + (sums ? 0.5f : 0.0f) : 0.5f)) {
            return false;
        }
    }
    return true;
}

static void segments_reach_their_places(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    bool ok = true;

    (void)state;
    for (size_t bytes = 8; bytes < 200; bytes *= 4) {
        tsr_comm_set_message_bytes(comm, bytes);
        ok = exchange_is_right(comm, false) && exchange_is_right(comm, true) && ok;
    }
    tsr_comm_set_message_bytes(comm, SIZE_MAX / 2);
    ok = exchange_is_right(comm, false) && exchange_is_right(comm, true) && ok;
    assert_all_ranks(comm, ok);
}

static void bad_segments_are_refused(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    const int rank = tsr_comm_rank(comm), size = tsr_comm_size(comm);
    const int next = rank + 1 < size ? rank + 1 : 0;
    int64_t begin[TSR_TEST_MAX_RANKS + 1];
    tsr_segment segments[TSR_TEST_MAX_RANKS] = {{0}};
    float memory[4] = {0};
    tsr_exchange what = {.send = memory,
                         .receive = memory,
                         .send_segments = segments,
                         .receive_segments = segments,
                         .send_begin = begin,
                         .receive_begin = begin};

    (void)state;
    for (int p = 0; p <= size; ++p) {
        begin[p] = p;
    }
    segments[rank].bytes = 4;
    bool ok = tsr_comm_exchange(comm, &what) == TSR_ERR_ARG;
    segments[rank].bytes = 0;
    segments[next].bytes = size > 1 ? -4 : 0;
    segments[rank].at = size > 1 ? 0 : -1;
    ok = ok && tsr_comm_exchange(comm, &what) == TSR_ERR_ARG;
    segments[next] = (tsr_segment){0, size > 1 ? 6 : 0};
    what.sums = true;
    ok = ok && (size == 1 || tsr_comm_exchange(comm, &what) == TSR_ERR_ARG);
    assert_all_ranks(comm, ok && !tsr_comm_is_dead(comm));
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(segments_reach_their_places),
        cmocka_unit_test(bad_segments_are_refused),
        cmocka_unit_test(parts_know_their_seats),
        cmocka_unit_test(composite_keeps_to_planes),
        cmocka_unit_test(order_of_sums_is_fixed),
        cmocka_unit_test(one_failure_is_told_by_its_rank),
        cmocka_unit_test(irregular_nodes_are_refused),
        cmocka_unit_test(places_on_other_planes_are_refused),
        cmocka_unit_test(wrong_uses_are_refused),
        cmocka_unit_test(a_dead_part_is_a_dead_whole),
        cmocka_unit_test(a_part_that_dies_elsewhere_ends_the_whole),
    };

    return tsr_mpi_test_main(argc, argv, "planes", tests, sizeof tests / sizeof tests[0]);
}
