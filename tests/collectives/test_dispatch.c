/* Dispatch and combine over every number of ranks, on real and on pretended nodes: every lane gets
 * its token's row and weight, sums come home, numbers too, and bytes are as counted. */
#include "tests/support/mpi_test.h"

#include "collectives/dispatch.h"
#include "collectives/mpi_bridge.h"

#include <stdlib.h>
#include <string.h>

enum { TOKENS = 37, WIDTH = 24, TOP_K = 3, PLACES = 4, MOST_UNITS = 8 * TOKENS };

/* How the ranks are believed to sit: so many a node (0: as they do), and whether in stages. */
typedef struct scene {
    int a_node;
    bool has_stages;
    tsr_dtype dtype;
} scene;

typedef struct fixture {
    scene how;
    tsr_comm *flat, *node, *rail;
    tsr_device *device;
    tsr_stream *stream;
    tsr_dispatch *dispatch;
    tsr_dispatch_plan *plan;
    int32_t lane[TOKENS * TOP_K];
    float weight[TOKENS * TOP_K];
    float tokens[TOKENS * WIDTH], out[TOKENS * WIDTH];
    float units[MOST_UNITS * WIDTH], rows[(MOST_UNITS * TOP_K + PLACES * TSR_ROW_ALIGN) * WIDTH];
} fixture;

static fixture f;

static tsr_status open_fixture(scene how)
{
    tsr_comm *world = tsr_test_comm();
    const int rank = tsr_comm_rank(world), size = tsr_comm_size(world);
    tsr_seat seats[TSR_TEST_MAX_RANKS];

    f = (fixture){.how = how};
    TSR_TRY(tsr_comm_split(world, 0, rank, &f.flat));
    if (how.a_node > 0) {
        for (int r = 0; r < size; ++r) {
            seats[r] = (tsr_seat){.node = r / how.a_node, .plane = r % how.a_node};
        }
        tsr_comm_set_seats(f.flat, seats);
    }
    if (how.has_stages) {
        const tsr_seat *seat = &tsr_comm_seats(f.flat)[rank];
        TSR_TRY(tsr_comm_split(f.flat, seat->node, seat->local, &f.node));
        TSR_TRY(tsr_comm_split(f.flat, seat->local, seat->node, &f.rail));
    }
    TSR_TRY(tsr_device_open("cpu", 1, &f.device));
    TSR_TRY(tsr_stream_create(f.device, &f.stream));
    const tsr_dispatch_options options = {.device = f.device,
                                          .all = f.flat,
                                          .flat = f.flat,
                                          .node = f.node,
                                          .rail = f.rail,
                                          .flat_rows = f.flat,
                                          .node_rows = f.node,
                                          .rail_rows = f.rail,
                                          .width = WIDTH,
                                          .top_k = TOP_K,
                                          .dtype = how.dtype};
    TSR_TRY(tsr_dispatch_create(&options, &f.dispatch));
    return tsr_dispatch_plan_create(f.dispatch, &f.plan);
}

static void close_fixture(void)
{
    tsr_dispatch_plan_destroy(&f.plan);
    tsr_dispatch_destroy(&f.dispatch);
    tsr_stream_destroy(&f.stream);
    tsr_device_close(&f.device);
    tsr_comm_destroy(&f.rail);
    tsr_comm_destroy(&f.node);
    tsr_comm_destroy(&f.flat);
}

/* Small whole numbers: exact in bf16, and so are sums of a few. */
static float cell(int rank, int64_t token, int64_t column)
{
    return (float)((rank * 5 + token * 3 + column) % 16);
}

/* kind 0: spread, with lanes of -1; 1: all to place 0 of the last rank; 2: odd ranks have none. */
static void choose_lanes(int kind, int64_t tokens)
{
    const int size = tsr_comm_size(f.flat), rank = tsr_comm_rank(f.flat);

    for (int64_t i = 0; i < tokens * TOP_K; ++i) {
        const uint64_t draw =
            (uint64_t)(1e9 * tsr_rng_uniform((uint64_t)kind, (uint64_t)(i + 10000 * rank)));
        const int to = kind == 1 ? size - 1 : (int)(draw % (uint64_t)size);

        f.lane[i] = tsr_lane(to, kind == 1 ? 0 : (int)(draw / 64 % PLACES));
        f.weight[i] = (float)(1 + i % 4);
        if (kind == 0 && draw / 4096 % 7 == 0) {
            f.lane[i] = -1;
        }
        if (kind == 2 && to % 2 == 1) {
            f.lane[i] = tsr_lane(to - 1, (int)(i % PLACES));
        }
    }
    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t c = 0; c < WIDTH; ++c) {
            f.tokens[t * WIDTH + c] = cell(rank, t, c);
        }
    }
}

/* Every row that came: it is some token of some rank, and is there as often as it was sent. The
 * experts of the test multiply by weight and place + 1. */
static tsr_status serve(void)
{
    const tsr_dispatch_view v = tsr_dispatch_plan_view(f.plan);
    const tsr_dtype dtype = f.how.dtype;
    const tsr_permute_args permute = {.tokens = f.units,
                                      .rows = f.rows,
                                      .token_of = v.token_of,
                                      .offsets = v.offsets,
                                      .experts = PLACES,
                                      .width = WIDTH,
                                      .dtype = dtype};
    const tsr_unpermute_args unpermute = {.rows = f.rows,
                                          .row_of = v.row_of,
                                          .out = f.units,
                                          .tokens = v.units,
                                          .width = WIDTH,
                                          .top_k = TOP_K,
                                          .dtype = dtype};
    static float wide[sizeof f.rows / sizeof(float)];

    TSR_CHECK(v.units <= MOST_UNITS, TSR_ERR_RANGE, "%lld units", (long long)v.units);
    TSR_TRY(tsr_op_permute(f.device, &permute, f.stream));
    TSR_TRY(tsr_op_convert(f.device, f.rows, dtype, wide, TSR_F32, v.rows * WIDTH, f.stream));
    for (int p = 0; p < PLACES; ++p) {
        TSR_CHECK(v.offsets[p] % TSR_ROW_ALIGN == 0, TSR_ERR_RANGE, "place %d is not aligned", p);
        for (int64_t r = v.offsets[p]; r < v.offsets[p + 1]; ++r) {
            TSR_CHECK((v.token_of[r] >= 0) == (v.row_weight[r] > 0.0f), TSR_ERR_RANGE,
                      "row %lld of unit %d has weight %g", (long long)r, v.token_of[r],
                      v.row_weight[r]);
            for (int c = 0; c < WIDTH; ++c) {
                wide[r * WIDTH + c] *= v.row_weight[r] * (float)(p + 1);
            }
        }
    }
    TSR_TRY(tsr_op_convert(f.device, wide, TSR_F32, f.rows, dtype, v.rows * WIDTH, f.stream));
    if (dtype == TSR_F32) {
        return tsr_op_unpermute(f.device, &unpermute, f.stream);
    }
    tsr_unpermute_args to_wide = unpermute;
    to_wide.out = wide;
    TSR_TRY(tsr_op_unpermute(f.device, &to_wide, f.stream));
    return tsr_op_convert(f.device, wide, TSR_F32, f.units, dtype, v.units * WIDTH, f.stream);
}

static tsr_status round_trip(int64_t tokens)
{
    TSR_TRY(tsr_dispatch_make(f.dispatch, f.plan, f.lane, f.weight, tokens, PLACES, f.stream));
    TSR_TRY(tsr_dispatch_rows(f.dispatch, f.plan, f.tokens, true, f.units, f.stream));
    TSR_TRY(serve());
    return tsr_dispatch_combine(f.dispatch, f.plan, f.units, f.tokens, f.out, f.stream);
}

/* base + sum over lanes of weight * (place + 1) * row: whole numbers up to 16 * 4 * 4 * 3, of which
 * bf16 rounds those above 256 to 8 bits on each of two hops and for each row and sum: 2^-8 each. */
static bool sums_are_right(int64_t tokens)
{
    const double tolerance = f.how.dtype == TSR_F32 ? 0.0 : 4.0 / 256.0;

    for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t c = 0; c < WIDTH; ++c) {
            const double row = f.tokens[t * WIDTH + c];
            double sum = 0.0;

            for (int k = 0; k < TOP_K; ++k) {
                const int32_t lane = f.lane[t * TOP_K + k];
                sum += lane < 0
                           ? 0.0
                           : row * f.weight[t * TOP_K + k] * (double)(lane % TSR_LANE_PLACES + 1);
            }
            const double error = f.out[t * WIDTH + c] - row - sum;
            if (error > tolerance * sum || -error > tolerance * sum) {
                return false;
            }
        }
    }
    return true;
}

/* A lane's number is made of its place and weight where it is computed. */
static bool numbers_come_home(int64_t tokens)
{
    static float values[MOST_UNITS * TOP_K], out[TOKENS * TOP_K];
    const tsr_dispatch_view v = tsr_dispatch_plan_view(f.plan);

    for (int64_t i = 0; i < v.units * TOP_K; ++i) {
        const int64_t row = v.row_of[i];
        int place = 0;

        while (row >= 0 && v.offsets[place + 1] <= row) {
            ++place;
        }
        values[i] =
            row < 0 ? -1e9f : (float)(100 * tsr_comm_rank(f.flat) + 10 * place) + v.row_weight[row];
    }
    if (tsr_dispatch_return(f.dispatch, f.plan, values, out) != TSR_OK) {
        return false;
    }
    for (int64_t i = 0; i < tokens * TOP_K; ++i) {
        const int32_t lane = f.lane[i];
        const float want =
            lane < 0 ? 0.0f
                     : (float)(100 * (lane / TSR_LANE_PLACES) + 10 * (lane % TSR_LANE_PLACES)) +
                           f.weight[i];
        if (out[i] != want) {
            return false;
        }
    }
    return true;
}

static void run_scene(scene how)
{
    static const int64_t counts[] = {TOKENS, 0, 1, TOKENS};
    const bool is_open = open_fixture(how) == TSR_OK;

    assert_all_ranks(tsr_test_comm(), is_open);
    for (int kind = 0; kind < 3; ++kind) {
        for (int i = 0; i < 4; ++i) {
            /* another number of tokens on each rank, none on some */
            const int64_t tokens = counts[(i + tsr_comm_rank(f.flat)) % 4];
            bool ok = true;

            choose_lanes(kind, tokens);
            ok =
                round_trip(tokens) == TSR_OK && sums_are_right(tokens) && numbers_come_home(tokens);
            assert_all_ranks(tsr_test_comm(), ok);
        }
    }
    close_fixture();
}

static void flat_rows_reach_every_lane(void **state)
{
    (void)state;
    run_scene((scene){.dtype = TSR_F32});
    run_scene((scene){.dtype = TSR_BF16});
}

static void two_stages_reach_every_lane(void **state)
{
    const int size = tsr_comm_size(tsr_test_comm());

    (void)state;
    for (int a_node = 1; a_node <= size; ++a_node) {
        if (size % a_node == 0) {
            run_scene((scene){a_node, true, TSR_F32});
            run_scene((scene){a_node, true, TSR_BF16});
        }
    }
}

/* Rows between nodes: one for each node that a token has a lane on, and none across planes. */
static void bytes_are_those_of_distinct_nodes(void **state)
{
    const int size = tsr_comm_size(tsr_test_comm());
    int64_t before[TSR_TRAFFICS][TSR_LINKS], after[TSR_TRAFFICS][TSR_LINKS], crossings = 0;

    (void)state;
    if (size % 2 != 0 || size < 4) {
        return;
    }
    assert_all_ranks(tsr_test_comm(), open_fixture((scene){2, true, TSR_F32}) == TSR_OK);
    choose_lanes(0, TOKENS);
    for (int64_t t = 0; t < TOKENS; ++t) {
        for (int node = 0; node < size / 2; ++node) {
            bool is_there = false;
            for (int k = 0; k < TOP_K; ++k) {
                const int32_t lane = f.lane[t * TOP_K + k];
                is_there = is_there || (lane >= 0 && lane / TSR_LANE_PLACES / 2 == node);
            }
            crossings += is_there && node != tsr_comm_rank(f.flat) / 2;
        }
    }
    tsr_traffic_read(before);
    const bool ok = round_trip(TOKENS) == TSR_OK;
    tsr_traffic_read(after);
    const int64_t row = WIDTH * (int64_t)sizeof(float), lanes = TOP_K * 8;
    const int64_t out = after[TSR_TRAFFIC_DISPATCH][TSR_LINK_IN_PLANE] -
                        before[TSR_TRAFFIC_DISPATCH][TSR_LINK_IN_PLANE];
    int64_t across = 0;
    for (int purpose = TSR_TRAFFIC_DISPATCH; purpose <= TSR_TRAFFIC_COMBINE; ++purpose) {
        across += after[purpose][TSR_LINK_CROSS_PLANE] - before[purpose][TSR_LINK_CROSS_PLANE];
    }
    close_fixture();
    assert_all_ranks(tsr_test_comm(), ok && across == 0 && out == crossings * (row + lanes));
}

static void bad_lanes_are_refused(void **state)
{
    tsr_dispatch *none = NULL;

    (void)state;
    assert_all_ranks(tsr_test_comm(), open_fixture((scene){.dtype = TSR_F32}) == TSR_OK);
    choose_lanes(1, 1);
    f.lane[1] = tsr_lane(tsr_comm_size(f.flat), 0);
    tsr_status st = tsr_dispatch_make(f.dispatch, f.plan, f.lane, f.weight, 1, PLACES, f.stream);
    const bool names_rank = st == TSR_ERR_ARG && strstr(tsr_error_message(), "lane") != NULL;
    const tsr_dispatch_options bad = {.device = f.device, .flat = f.flat, .width = 0, .top_k = 1};
    st = tsr_dispatch_create(&bad, &none);
    close_fixture();
    assert_all_ranks(tsr_test_comm(), names_rank && st == TSR_ERR_ARG && none == NULL);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flat_rows_reach_every_lane),
        cmocka_unit_test(two_stages_reach_every_lane),
        cmocka_unit_test(bytes_are_those_of_distinct_nodes),
        cmocka_unit_test(bad_lanes_are_refused),
    };

    return tsr_mpi_test_main(argc, argv, "dispatch", tests, sizeof tests / sizeof tests[0]);
}
