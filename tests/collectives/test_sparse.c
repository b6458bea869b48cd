/* Sparse all-gather and reduce-scatter over random holders and seats: values, bytes, orders. */
#include "tests/collectives/sparse_rig.h"

enum { ROUNDS = 6 };

static bool ok_or_say(tsr_status st)
{
    if (st != TSR_OK) {
        (void)fprintf(stderr, "%s\n", tsr_error_message());
    }
    return st == TSR_OK;
}

/* Many pieces, or a few, or one; chains, or trees; little room to relay in. */
static const tsr_sparse_options options_of_round[] = {
    {.max_chunks = RIG_MOST_CHUNKS, .max_parts = RIG_MOST_PARTS, .min_piece_bytes = 64},
    {.max_chunks = RIG_MOST_CHUNKS, .max_parts = RIG_MOST_PARTS, .min_piece_bytes = 1000},
    {.max_chunks = RIG_MOST_CHUNKS, .max_parts = RIG_MOST_PARTS},
    {.max_chunks = RIG_MOST_CHUNKS,
     .max_parts = RIG_MOST_PARTS,
     .min_piece_bytes = 2000,
     .relay_bytes = 320 * RIG_MOST_CHUNKS},
};

static void read_all(tsr_comm *comm, tsr_traffic purpose, uint64_t *links_out)
{
    int64_t bytes[TSR_TRAFFICS][TSR_LINKS];

    tsr_traffic_read(bytes);
    for (int link = 0; link < TSR_LINKS; ++link) {
        links_out[link] = (uint64_t)bytes[purpose][link];
    }
    if (tsr_comm_all_reduce_u64(comm, links_out, TSR_LINKS, TSR_REDUCE_SUM) != TSR_OK) {
        memset(links_out, 0, TSR_LINKS * sizeof *links_out);
    }
}

/* All ranks' bytes are those that were counted beforehand, by the link. */
static bool bytes_are_right(const rig *r, const uint64_t *before, const uint64_t *after)
{
    const tsr_sparse_volume v = tsr_sparse_count(r->seats, r->ranks, &r->holding);
    const int64_t bytes = r->chunk_floats * (int64_t)sizeof(float);
    int64_t sent[TSR_LINKS];

    for (int link = 0; link < TSR_LINKS; ++link) {
        sent[link] = (int64_t)(after[link] - before[link]);
    }
    return sent[TSR_LINK_INTRA_NODE] == (v.copies + v.relays - v.crossings) * bytes &&
           sent[TSR_LINK_IN_PLANE] + sent[TSR_LINK_CROSS_PLANE] == v.crossings * bytes &&
           (v.off_plane > 0 || sent[TSR_LINK_CROSS_PLANE] == 0) &&
           (v.off_plane == 0 || !rig_is_regular(r));
}

static bool run_is_right(tsr_comm *comm, tsr_sparse *sparse, rig *r, bool sums)
{
    const tsr_traffic purpose =
        sums ? TSR_TRAFFIC_SPARSE_REDUCE_SCATTER : TSR_TRAFFIC_SPARSE_ALL_GATHER;
    uint64_t before[TSR_LINKS], after[TSR_LINKS];
    tsr_sparse_call call = rig_call(r);

    rig_fill(r, !sums);
    read_all(comm, purpose, before);
    const bool ok = ok_or_say(sums ? tsr_sparse_reduce_scatter(sparse, &call)
                                   : tsr_sparse_all_gather(sparse, &call));
    read_all(comm, purpose, after);
    return ok && rig_is_right(r, sums) && bytes_are_right(r, before, after);
}

/* Whoever finds a mistake takes the others along: they must not wait for it in the next round. */
static bool agreed(tsr_comm *world, bool ok, int layout, int round)
{
    return ok_or_say(tsr_comm_agree(
        world, ok ? TSR_OK : TSR_FAIL(TSR_ERR_STATE, "layout %d, round %d", layout, round)));
}

static void any_holders_on_any_seats(void **state)
{
    (void)state;
    tsr_comm *world = tsr_test_comm();
    static rig r;
    bool ok = true;

    for (int layout = 0; layout < RIG_LAYOUTS; ++layout) {
        tsr_comm *comm = NULL;
        rig_make(&r, world, 1, (rig_layout)layout, RIG_RANDOM);
        ok = ok && rig_split(world, &r, &comm);
        for (uint64_t round = 0; ok && round < ROUNDS * RIG_KINDS; ++round) {
            tsr_sparse *sparse = NULL;
            rig_make(&r, world, 100 * (uint64_t)layout + round, (rig_layout)layout,
                     (rig_kind)(round % RIG_KINDS));
            ok = ok_or_say(
                tsr_sparse_create(comm, NULL, &options_of_round[round / RIG_KINDS % 4], &sparse));
            const int64_t allocations = tsr_mem_alloc_calls();
            for (int sums = 0; sums <= 1 && ok; ++sums) {
                ok = run_is_right(comm, sparse, &r, sums != 0);
                ok = ok && tsr_mem_alloc_calls() == allocations;
                ok = agreed(world, ok, layout, (int)round);
            }
            tsr_sparse_destroy(&sparse);
        }
        tsr_comm_destroy(&comm);
    }
    assert_all_ranks(world, ok);
}

/* Two nodes of two ranks, each place in a plane of its own. */
static void volumes_by_hand(void **state)
{
    (void)state;
    const tsr_seat seats[4] = {{0, 0, 0}, {0, 1, 1}, {1, 0, 0}, {1, 1, 1}};
    const int32_t begin[6] = {0, 1, 3, 5, 7, 11};
    const int32_t rank[11] = {3, 0, 1, 0, 2, 0, 3, 2, 0, 1, 3};
    /* alone; in the node; along the plane; by way of rank 2; everybody */
    const int64_t expected[5][3] = {{0, 0, 0}, {1, 0, 0}, {1, 0, 1}, {1, 1, 1}, {3, 0, 1}};
    bool ok = true;

    for (int chunk = 0; chunk < 5; ++chunk) {
        const int32_t alone[2] = {0, begin[chunk + 1] - begin[chunk]};
        const tsr_holding holding = {1, alone, &rank[begin[chunk]]};
        const tsr_sparse_volume v = tsr_sparse_count(seats, 4, &holding);
        ok = ok && v.copies == expected[chunk][0] && v.relays == expected[chunk][1] &&
             v.crossings == expected[chunk][2] && v.off_plane == 0;
    }
    const tsr_holding all = {5, begin, rank};
    const tsr_sparse_volume v = tsr_sparse_count(seats, 4, &all);
    ok = ok && v.copies == 6 && v.relays == 1 && v.crossings == 3;
    const tsr_seat apart[4] = {{0, 0, 0}, {0, 1, 1}, {1, 0, 2}, {1, 1, 2}};
    ok = ok && tsr_sparse_count(apart, 4, &all).off_plane == 3 &&
         tsr_sparse_count(apart, 4, &all).relays == 0;
    assert_all_ranks(tsr_test_comm(), ok);
}

/* ---- the order of sums ---------------------------------------------------------------------- */

enum { ORDERED = 333 };

/* Values whose sums depend on the order. */
static float rough(int rank, int at)
{
    return (float)((tsr_rng_uniform((uint64_t)rank + 7, (uint64_t)at) - 0.5) *
                   (at % 3 == 0 ? 1e4 : 1.0));
}

/* Number `at` of count ranks from first on (mod ranks), in a chain or a binary tree: the own value,
 * then the children's, the last first. */
static float sum_below(int first, int count, int ranks, int fan_out, int number, int at)
{
    float sum = rough((first + number) % ranks, at);

    for (int child = fan_out; child >= 1; --child) {
        const int below = number * fan_out + child;
        if (below < count) {
            sum += sum_below(first, count, ranks, fan_out, below, at);
        }
    }
    return sum;
}

/* One chunk of all ranks, owned by the last. */
static bool sum_all(tsr_comm *comm, int64_t min_piece_bytes, float *values)
{
    const tsr_sparse_options options = {
        .max_chunks = 1, .max_parts = 1, .min_piece_bytes = min_piece_bytes};
    const int ranks = tsr_comm_size(comm);
    const int64_t bytes = ORDERED * (int64_t)sizeof(float);
    const int32_t begin[2] = {0, ranks};
    int32_t rank[TSR_TEST_MAX_RANKS] = {ranks - 1};
    void *memory = values;
    tsr_sparse *sparse = NULL;

    for (int i = 1; i < ranks; ++i) {
        rank[i] = i - 1;
    }
    for (int i = 0; i < ORDERED; ++i) {
        values[i] = rough(tsr_comm_rank(comm), i);
    }
    const tsr_holding holding = {1, begin, rank};
    tsr_sparse_call call = {
        .holding = &holding, .parts = 1, .part_bytes = &bytes, .memory = &memory};
    const bool ok = ok_or_say(tsr_sparse_create(comm, NULL, &options, &sparse)) &&
                    ok_or_say(tsr_sparse_reduce_scatter(sparse, &call));
    tsr_sparse_destroy(&sparse);
    return ok;
}

static void sums_are_in_the_order_of_the_tree(void **state)
{
    (void)state;
    tsr_comm *world = tsr_test_comm();
    const int ranks = tsr_comm_size(world), owner = ranks - 1;
    bool ok = true;

    for (int fan_out = 1; fan_out <= 2; ++fan_out) {
        float values[ORDERED];
        ok = ok && sum_all(world, fan_out == 1 ? 16 : 1 << 20, values);
        for (int i = 0; i < ORDERED && tsr_comm_rank(world) == owner; ++i) {
            ok = ok && values[i] == sum_below(owner, ranks, ranks, fan_out, 0, i);
        }
    }
    assert_all_ranks(world, ok);
}

/* Two nodes, places in planes: own value, own node's chain, then the other node's, whose first rank
 * is at the owner's place. */
static void own_node_is_added_first(void **state)
{
    (void)state;
    tsr_comm *world = tsr_test_comm(), *comm = NULL;
    const int ranks = tsr_comm_size(world), half = ranks / 2, owner = ranks - 1;
    static rig r;
    float values[ORDERED];

    if (ranks % 2 != 0) {
        skip();
    }
    rig_make(&r, world, 1, RIG_TWO_NODES, RIG_RANDOM);
    bool ok = rig_split(world, &r, &comm) && sum_all(comm, 16, values);
    for (int i = 0; i < ORDERED && r.rank == owner; ++i) {
        float node[2] = {0}; /* the chains from the last place on: place half - 1, 0, 1, ... */
        for (int turn = half - 1; turn >= 1; --turn) {
            const int local = (half - 1 + turn) % half;
            node[0] = turn == half - 1 ? rough(local, i) : rough(local, i) + node[0];
            node[1] = turn == half - 1 ? rough(half + local, i) : rough(half + local, i) + node[1];
        }
        const float far = half > 1 ? rough(half - 1, i) + node[0] : rough(half - 1, i);
        const float own = half > 1 ? rough(owner, i) + node[1] : rough(owner, i);
        ok = ok && values[i] == own + far;
    }
    tsr_comm_destroy(&comm);
    assert_all_ranks(world, ok);
}

/* Late ranks change nothing. */
static void repeated_runs_are_equal_to_the_bit(void **state)
{
    (void)state;
    tsr_comm *world = tsr_test_comm(), *comm = NULL;
    static rig r;
    float first[ORDERED], again[ORDERED];

    rig_make(&r, world, 1, RIG_PAIRS, RIG_RANDOM);
    bool ok = rig_split(world, &r, &comm) && sum_all(comm, 64, first);
    for (uint64_t round = 0; round < 3 && ok; ++round) {
        const tsr_comm_fault late = {.rank = -1, .seed = round, .max_delay_s = 2e-3};
        tsr_comm *slow = NULL;
        ok = tsr_comm_create_faulty(comm, &late, &slow) == TSR_OK && sum_all(slow, 64, again) &&
             (r.rank != r.ranks - 1 || memcmp(first, again, sizeof first) == 0);
        tsr_comm_destroy(&slow);
    }
    tsr_comm_destroy(&comm);
    assert_all_ranks(world, ok);
}

/* ---- beside the caller ---------------------------------------------------------------------- */

static void several_calls_are_under_way(void **state)
{
    (void)state;
    enum { UNDER_WAY = 6 };
    tsr_comm *world = tsr_test_comm(), *comm = NULL;
    static rig rigs[UNDER_WAY];
    static tsr_sparse_call calls[UNDER_WAY];
    tsr_worker *worker = NULL;
    tsr_sparse *sparse = NULL;
    double sum = 1;

    rig_make(&rigs[0], world, 1, RIG_PAIRS, RIG_RANDOM);
    bool ok = rig_split(world, &rigs[0], &comm) && ok_or_say(tsr_worker_create(&worker)) &&
              ok_or_say(tsr_sparse_create(comm, worker, &options_of_round[0], &sparse));
    for (int i = 0; i < UNDER_WAY && ok; ++i) {
        rig_make(&rigs[i], world, 500 + (uint64_t)i, RIG_PAIRS, RIG_RANDOM);
        rig_fill(&rigs[i], i % 2 == 0);
        calls[i] = rig_call(&rigs[i]);
        ok = ok_or_say(i % 2 == 0 ? tsr_sparse_start_all_gather(sparse, &calls[i])
                                  : tsr_sparse_start_reduce_scatter(sparse, &calls[i]));
    }
    /* meanwhile on another communicator, by this thread */
    ok = ok && ok_or_say(tsr_comm_all_reduce_f64(world, &sum, 1, TSR_REDUCE_SUM)) &&
         sum == rigs[0].ranks;
    ok = ok && tsr_sparse_start_all_gather(sparse, &calls[0]) == TSR_ERR_STATE &&
         strstr(tsr_error_message(), "a sparse call is under way") != NULL;
    for (int i = UNDER_WAY - 1; i >= 0; --i) {
        ok = ok_or_say(tsr_sparse_wait(&calls[i])) && rig_is_right(&rigs[i], i % 2 != 0) && ok;
        ok = tsr_sparse_wait(&calls[i]) == TSR_OK && ok;
    }
    tsr_sparse_destroy(&sparse);
    tsr_worker_destroy(&worker);
    tsr_comm_destroy(&comm);
    assert_all_ranks(world, ok);
}

/* One rank alone: its peers do not enter, their wait for it is another test's matter. */
static void failures_come_out_of_wait(void **state)
{
    (void)state;
    tsr_comm *world = tsr_test_comm(), *faulty = NULL;
    const int last = tsr_comm_size(world) - 1;
    const tsr_comm_fault fault = {.rank = last, .call = 1, .code = TSR_ERR_COMM};
    static rig r;
    static tsr_sparse_call calls[2];
    tsr_worker *worker = NULL;
    tsr_sparse *sparse = NULL;

    rig_make(&r, world, 3, RIG_ONE_NODE, RIG_ALL_HOLD_ALL);
    rig_fill(&r, true);
    bool ok = ok_or_say(tsr_comm_create_faulty(world, &fault, &faulty)) &&
              ok_or_say(tsr_worker_create(&worker)) &&
              ok_or_say(tsr_sparse_create(faulty, worker, &options_of_round[0], &sparse));
    if (ok && r.rank == last && last > 0) {
        for (int i = 0; i < 2; ++i) {
            calls[i] = rig_call(&r);
            ok = ok_or_say(tsr_sparse_start_all_gather(sparse, &calls[i])) && ok;
        }
        ok = ok && tsr_sparse_wait(&calls[0]) == TSR_ERR_COMM &&
             strstr(tsr_error_message(), "call 1 fails on rank") != NULL;
        ok = ok && tsr_sparse_wait(&calls[1]) == TSR_ERR_COMM &&
             strstr(tsr_error_message(), "has failed before") != NULL;
    }
    tsr_sparse_destroy(&sparse);
    tsr_worker_destroy(&worker);
    tsr_comm_destroy(&faulty);
    assert_all_ranks(world, ok);
}

/* ---- what is refused ------------------------------------------------------------------------ */

static bool says(tsr_status st, tsr_status expected, const char *text)
{
    const bool ok = st == expected && strstr(tsr_error_message(), text) != NULL;

    if (!ok) {
        (void)fprintf(stderr, "%s: %s; must be \"%s\"\n", tsr_status_name(st), tsr_error_message(),
                      text);
    }
    return ok;
}

static bool refuses_holding(int chunks, const int32_t *begin, const int32_t *rank, const char *text)
{
    const tsr_holding holding = {chunks, begin, rank};

    return says(tsr_holding_check(&holding, 4), TSR_ERR_ARG, text);
}

static void bad_holdings_are_named(void **state)
{
    (void)state;
    bool ok = refuses_holding(-1, (const int32_t[]){0}, NULL, "chunks = -1");

    ok = refuses_holding(1, (const int32_t[]){1, 2}, (const int32_t[]){0, 0}, "begin[0] = 1") && ok;
    ok = refuses_holding(2, (const int32_t[]){0, 1, 1}, (const int32_t[]){0},
                         "chunk 1 has holders 1 to 1") &&
         ok;
    ok = refuses_holding(1, (const int32_t[]){0, 5}, (const int32_t[]){0, 1, 2, 3, 3},
                         "must be one to 4") &&
         ok;
    ok = refuses_holding(1, (const int32_t[]){0, 2}, (const int32_t[]){0, 4},
                         "holder 1 of chunk 0 is rank 4") &&
         ok;
    ok = refuses_holding(1, (const int32_t[]){0, 1}, (const int32_t[]){-1}, "is rank -1") && ok;
    ok = refuses_holding(1, (const int32_t[]){0, 3}, (const int32_t[]){2, 1, 2},
                         "rank 2 owns chunk 0 and holds it once more") &&
         ok;
    ok = refuses_holding(1, (const int32_t[]){0, 3}, (const int32_t[]){2, 1, 1},
                         "holders 1 and 1 of chunk 0 do not ascend") &&
         ok;
    assert_all_ranks(tsr_test_comm(), ok);
}

static bool refuses_options(tsr_sparse_options options, const char *text)
{
    tsr_sparse *sparse = NULL;

    return says(tsr_sparse_create(tsr_test_comm(), NULL, &options, &sparse), TSR_ERR_ARG, text) &&
           sparse == NULL;
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    tsr_device *device = NULL;
    tsr_sparse *sparse = NULL;
    tsr_comm *world = tsr_test_comm(), *node = NULL, *rail = NULL, *planes = NULL;

    bool ok = refuses_options((tsr_sparse_options){.max_parts = 1}, "max_chunks = 0");
    ok = refuses_options((tsr_sparse_options){.max_chunks = 1}, "max_parts = 0") && ok;
    ok = refuses_options((tsr_sparse_options){2, 1, NULL, 639, 0}, "must be >= 640 for 2") && ok;
    ok = refuses_options((tsr_sparse_options){2, 1, NULL, 0, -1}, "min_piece_bytes = -1") && ok;
    ok = ok && ok_or_say(tsr_device_open("cpu", 1, &device));
    const tsr_sparse_options on_device = {.max_chunks = 1, .max_parts = 1, .device = device};
    ok = ok && says(tsr_sparse_create(world, NULL, &on_device, &sparse), TSR_ERR_UNSUPPORTED,
                    "takes no device memory");
    tsr_device_close(&device);
    ok = ok && ok_or_say(tsr_comm_split(world, 0, 0, &node)) &&
         ok_or_say(tsr_comm_split(world, tsr_comm_rank(world), 0, &rail)) &&
         ok_or_say(tsr_comm_create_planes(world, node, rail, &planes));
    const tsr_sparse_options plain = {.max_chunks = 1, .max_parts = 1};
    ok = ok && says(tsr_sparse_create(planes, NULL, &plain, &sparse), TSR_ERR_UNSUPPORTED,
                    "exchanges no segments");
    tsr_comm_destroy(&planes);
    tsr_comm_destroy(&rail);
    tsr_comm_destroy(&node);
    assert_all_ranks(world, ok);
}

static void bad_calls_are_refused_before_a_message(void **state)
{
    (void)state;
    const tsr_sparse_options options = {.max_chunks = 1, .max_parts = 2};
    const int32_t begin[3] = {0, 1, 2}, owner[2] = {0, 0};
    const int64_t bytes[3] = {8, 4, 4}, negative[1] = {-4}, half[1] = {6};
    tsr_comm *world = tsr_test_comm();
    float values[4] = {0};
    void *memory[4] = {values, values, values, values}, *nothing[4] = {NULL};
    const tsr_holding one = {1, begin, owner}, two = {2, begin, owner};
    tsr_sparse *sparse = NULL;

    bool ok = ok_or_say(tsr_sparse_create(world, NULL, &options, &sparse));
    tsr_sparse_call call = {.holding = &two, .parts = 1, .part_bytes = bytes, .memory = memory};
    ok = ok && says(tsr_sparse_all_gather(sparse, &call), TSR_ERR_ARG, "2 chunks of 1 parts");
    call.holding = &one;
    call.parts = 3;
    ok = ok && says(tsr_sparse_all_gather(sparse, &call), TSR_ERR_ARG, "1 chunks of 3 parts");
    call.parts = 1;
    call.part_bytes = negative;
    ok = ok && says(tsr_sparse_all_gather(sparse, &call), TSR_ERR_ARG, "part 0 has -4 bytes");
    call.part_bytes = half;
    ok = ok && says(tsr_sparse_reduce_scatter(sparse, &call), TSR_ERR_ARG, "whole floats");
    call.stream = (tsr_stream *)(void *)values;
    ok = ok && says(tsr_sparse_all_gather(sparse, &call), TSR_ERR_ARG, "chunks are host memory");
    call.stream = NULL;
    ok = ok && ok_or_say(tsr_sparse_all_gather(sparse, &call));
    ok = ok && says(tsr_sparse_start_all_gather(sparse, &call), TSR_ERR_STATE, "without a worker");
    call.memory = nothing;
    ok = ok &&
         (tsr_comm_rank(world) == 0 ? says(tsr_sparse_all_gather(sparse, &call), TSR_ERR_ARG,
                                           "no memory for part 0 of chunk 0, which rank 0 holds")
                                    : ok_or_say(tsr_sparse_all_gather(sparse, &call)));
    ok = ok && tsr_sparse_wait(&call) == TSR_OK;
    tsr_sparse_destroy(&sparse);
    assert_all_ranks(world, ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_holders_on_any_seats),
        cmocka_unit_test(volumes_by_hand),
        cmocka_unit_test(sums_are_in_the_order_of_the_tree),
        cmocka_unit_test(own_node_is_added_first),
        cmocka_unit_test(repeated_runs_are_equal_to_the_bit),
        cmocka_unit_test(several_calls_are_under_way),
        cmocka_unit_test(failures_come_out_of_wait),
        cmocka_unit_test(bad_holdings_are_named),
        cmocka_unit_test(bad_options_are_refused),
        cmocka_unit_test(bad_calls_are_refused_before_a_message),
    };

    return tsr_mpi_test_main(argc, argv, "sparse", tests, sizeof tests / sizeof *tests);
}
