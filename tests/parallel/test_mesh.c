#include "tests/support/mpi_test.h"
#include "tests/support/scarce_memory.h"

#include "collectives/mpi_bridge.h"
#include "parallel/parallel.h"

#include <string.h>

static bool refused(tsr_parallel_config config, tsr_status code, const char *text)
{
    tsr_mesh mesh = {0};

    return tsr_mesh_create(&config, tsr_test_comm(), &mesh) == code &&
           strstr(tsr_error_message(), text) != NULL && mesh.world.flat == NULL;
}

static bool ok_or_say(tsr_status st)
{
    if (st != TSR_OK) {
        (void)fprintf(stderr, "%s\n", tsr_error_message());
    }
    return st == TSR_OK;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static bool has_sizes(tsr_parallel_config config, int dp, int ep)
{
    tsr_mesh mesh = {0};
    const bool ok = ok_or_say(tsr_mesh_create(&config, tsr_test_comm(), &mesh)) && mesh.pp == 1 &&
                    mesh.dp == dp && mesh.ep == ep && mesh.pp_rank == 0;

    tsr_mesh_destroy(&mesh);
    return ok;
}

static void zeros_are_filled_in(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    const int ranks = tsr_comm_size(comm);

    (void)state;
    assert_all_ranks(comm, has_sizes((tsr_parallel_config){0}, ranks, 1));
    assert_all_ranks(comm, has_sizes((tsr_parallel_config){.ep = ranks}, 1, ranks));
    assert_all_ranks(comm, has_sizes((tsr_parallel_config){.dp = ranks}, ranks, 1));
    assert_all_ranks(comm, has_sizes((tsr_parallel_config){.dp = 1}, 1, ranks));
    assert_all_ranks(comm,
                     has_sizes((tsr_parallel_config){.pp = 1, .dp = 1, .ep = ranks}, 1, ranks));
}

static void wrong_sizes_name_the_valid_ones(void **state)
{
    static const char *const divisors[] = {"1", "1, 2", "1, 3", "1, 2, 4", "1, 5", "1, 2, 3, 6"};
    tsr_comm *comm = tsr_test_comm();
    const int ranks = tsr_comm_size(comm);
    char valid[64], product[64];

    (void)state;
    (void)snprintf(valid, sizeof valid, "the %d ranks, valid are %s", ranks, divisors[ranks - 1]);
    (void)snprintf(product, sizeof product, "set dp = %d or dp = 0", ranks);
    assert_all_ranks(
        comm,
        refused((tsr_parallel_config){.dp = ranks + 1, .ep = 1}, TSR_ERR_ARG, valid) &&
            refused((tsr_parallel_config){.ep = 7}, TSR_ERR_ARG, valid) &&
            (ranks == 1 || refused((tsr_parallel_config){.dp = 1, .ep = 1}, TSR_ERR_ARG, product)));
}

static void what_is_not_built_is_refused_by_name(void **state)
{
    tsr_comm *comm = tsr_test_comm();

    (void)state;
    assert_all_ranks(comm, refused((tsr_parallel_config){.pp = 2}, TSR_ERR_UNSUPPORTED,
                                   "parallel.pp = 2: pipelines are not built yet"));
}

/* Copies of experts travel on a communicator of their own, where there are any. */
static bool has_copies(int placement, int ep, bool wanted)
{
    const tsr_parallel_config config = {.placement = placement, .ep = ep};
    tsr_mesh mesh = {0};
    const bool ok = ok_or_say(tsr_mesh_create(&config, tsr_test_comm(), &mesh)) &&
                    (mesh.copies != NULL) == wanted &&
                    (!wanted || tsr_comm_size(mesh.copies) == ep) && mesh.copies_device == NULL;

    tsr_mesh_destroy(&mesh);
    return ok;
}

static void copies_have_a_communicator_of_their_own(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    const int ranks = tsr_comm_size(comm);
    bool ok = has_copies(TSR_PLACEMENT_EP, ranks, false);

    (void)state;
    ok = has_copies(TSR_PLACEMENT_QUOTA, ranks, ranks > 1) && ok;
    ok = has_copies(TSR_PLACEMENT_QUOTA, 1, false) && ok;
    assert_all_ranks(comm, ok);
}

/* ---- groups ---------------------------------------------------------------------------------- */

/* What a rank says of itself in its groups. */
typedef struct card {
    int32_t position, dp_rank, ep_rank, node, local;
} card;

static card card_of(const tsr_mesh *mesh)
{
    const tsr_comm *world = mesh->world.flat;
    const tsr_seat *seat = &tsr_comm_seats(world)[tsr_comm_rank(world)];

    return (card){.position = mesh->dp_rank * mesh->ep + mesh->ep_rank,
                  .dp_rank = mesh->dp_rank,
                  .ep_rank = mesh->ep_rank,
                  .node = seat->node,
                  .local = seat->local};
}

/* Over comm: all cards, and is everybody there, in the same order on both kinds of routes? */
static bool gather(const tsr_group *group, const card *mine, card all[TSR_TEST_MAX_RANKS])
{
    double there = 1.0;

    return tsr_comm_rank(group->host.all) == tsr_comm_rank(group->flat) &&
           ok_or_say(tsr_comm_all_reduce_f64(group->host.all, &there, 1, TSR_REDUCE_SUM)) &&
           there == tsr_comm_size(group->flat) &&
           ok_or_say(tsr_comm_all_gather(group->host.all, mine, sizeof *mine, all)) &&
           group->device.all == group->host.all;
}

/* node: my node in order of local; rail: my place on every node. each: the group's ranks on each of
 * its nodes, 0 where it must not have rails. */
static bool check_rails(const tsr_group *group, const card *mine, int each)
{
    card all[TSR_TEST_MAX_RANKS];
    bool ok = true;

    if (each == 0) {
        return group->host.rail == NULL && group->host.node == NULL &&
               group->host.all == group->flat;
    }
    if (group->host.rail == NULL || group->host.node == NULL) {
        return false;
    }
    const int nodes = tsr_comm_size(group->flat) / each;
    ok = tsr_comm_size(group->host.node) == each && tsr_comm_size(group->host.rail) == nodes &&
         ok_or_say(tsr_comm_all_gather(group->host.node, mine, sizeof *mine, all));
    for (int i = 0; ok && i < each; ++i) {
        ok = all[i].node == mine->node && (i == 0 || all[i].local > all[i - 1].local);
    }
    ok = ok && ok_or_say(tsr_comm_all_gather(group->host.rail, mine, sizeof *mine, all));
    for (int i = 0; ok && i < nodes; ++i) {
        ok = (i == 0 || all[i].node > all[i - 1].node) && all[i].local == mine->local;
    }
    return ok;
}

/* Ranks of a group of consecutive positions on each of its nodes if these are several with several
 * ranks each, as many on each; else 0. The world has `each` ranks a node. */
static int rails_of(int first, int size, int each)
{
    const int ends_evenly = first % each == 0 && size % each == 0;

    return size > each && each > 1 && ends_evenly ? each : 0;
}

static bool check_mesh(tsr_comm *world, int dp, int ep, int each)
{
    const tsr_parallel_config config = {.dp = dp, .ep = ep};
    const int ranks = tsr_comm_size(world);
    card all[TSR_TEST_MAX_RANKS];
    tsr_mesh mesh = {0};

    if (!ok_or_say(tsr_mesh_create(&config, world, &mesh))) {
        return false;
    }
    const card mine = card_of(&mesh);
    bool ok = gather(&mesh.world, &mine, all);
    ok = gather(&mesh.dense, &mine, all) && ok;
    for (int i = 0; i < ranks; ++i) { /* by node, then by place */
        ok = ok && all[i].position == i &&
             (i == 0 || all[i].node > all[i - 1].node ||
              (all[i].node == all[i - 1].node && all[i].local > all[i - 1].local));
    }
    ok = gather(&mesh.expert, &mine, all) && tsr_comm_size(mesh.expert.flat) == ep && ok;
    for (int i = 0; i < ep; ++i) {
        ok = ok && all[i].ep_rank == i && all[i].dp_rank == mesh.dp_rank;
    }
    ok = gather(&mesh.replica, &mine, all) && tsr_comm_size(mesh.replica.flat) == dp && ok;
    for (int i = 0; i < dp; ++i) {
        ok = ok && all[i].dp_rank == i && all[i].ep_rank == mesh.ep_rank;
    }
    ok = check_rails(&mesh.world, &mine, rails_of(0, ranks, each)) && ok;
    ok = check_rails(&mesh.dense, &mine, rails_of(0, ranks, each)) && ok;
    ok = check_rails(&mesh.expert, &mine, rails_of(mesh.dp_rank * ep, ep, each)) && ok;
    tsr_mesh_destroy(&mesh);
    return ok && mesh.world.flat == NULL;
}

static bool check_all_meshes(tsr_comm *world, int each)
{
    const int ranks = tsr_comm_size(world);
    bool ok = true;

    for (int ep = 1; ep <= ranks; ++ep) {
        if (ranks % ep == 0) {
            ok = check_mesh(world, ranks / ep, ep, each) && ok;
        }
    }
    return ok;
}

static void one_node_has_no_rails(void **state)
{
    tsr_comm *comm = tsr_test_comm();

    (void)state;
    assert_all_ranks(comm, check_all_meshes(comm, tsr_comm_size(comm)));
}

/* Does check hold where rank r of the world sits at seats[r]? */
static bool on_seats(const tsr_seat *seats, bool (*check)(tsr_comm *world, int each), int each)
{
    tsr_comm *comm = tsr_test_comm(), *world = NULL;
    const bool ok = ok_or_say(tsr_comm_split(comm, 0, tsr_comm_rank(comm), &world));

    if (ok) {
        tsr_comm_set_seats(world, seats);
    }
    const bool holds = ok && check(world, each);
    tsr_comm_destroy(&world);
    return holds;
}

/* `each` ranks a node, in blocks or dealt in turn; the plane is the place on the node. */
static void groups_fill_nodes_first(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    const int ranks = tsr_comm_size(comm);
    bool ok = true;

    (void)state;
    for (int each = 1; each < ranks; ++each) {
        tsr_seat blocks[TSR_TEST_MAX_RANKS] = {0}, turns[TSR_TEST_MAX_RANKS] = {0};
        const int nodes = ranks / each;

        for (int r = 0; r < ranks; ++r) {
            blocks[r] = (tsr_seat){.node = r / each, .plane = r % each};
            turns[r] = (tsr_seat){.node = r % nodes, .plane = r / nodes};
        }
        if (ranks % each == 0) {
            ok = on_seats(blocks, check_all_meshes, each) && ok;
            ok = on_seats(turns, check_all_meshes, each) && ok;
        }
    }
    assert_all_ranks(comm, ok);
}

/* No mesh of the world has rails, and all work. */
static bool check_flat_meshes(tsr_comm *world, int each)
{
    const int ranks = tsr_comm_size(world);
    bool ok = true;

    for (int ep = 1; ep <= ranks; ep += ranks > 1 ? ranks - 1 : 1) { /* one group, or all alone */
        ok = check_mesh(world, ranks / ep, ep, each) && ok;
    }
    return ok;
}

static void uneven_nodes_stay_flat(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    const int ranks = tsr_comm_size(comm);
    tsr_seat uneven[TSR_TEST_MAX_RANKS] = {0}, crossed[TSR_TEST_MAX_RANKS] = {0};
    bool ok = true;

    (void)state;
    for (int r = 0; r < ranks; ++r) { /* the last one alone; or planes the other way round there */
        uneven[r] = (tsr_seat){.node = r == ranks - 1 ? 1 : 0, .plane = 0};
        crossed[r] = (tsr_seat){.node = 2 * r / ranks, .plane = (r % 2 + 2 * r / ranks) % 2};
    }
    if (ranks > 2) {
        ok = on_seats(uneven, check_flat_meshes, 1);
    }
    if (ranks == 4) {
        ok = on_seats(crossed, check_flat_meshes, 1) && ok;
    }
    assert_all_ranks(comm, ok);
}

/* One rank's memory ends at ever later blocks, until it is enough: all ranks get the same mesh, or
 * the cause. Every 5th block does: so each communicator is met, each at another of its own. */
static bool fails_together(tsr_comm *world, int each)
{
    const tsr_parallel_config config = {.ep = each, .placement = TSR_PLACEMENT_QUOTA};
    const int rank = tsr_comm_rank(world), culprit = tsr_comm_size(world) - 1;
    tsr_status st = TSR_ERR_NOMEM;
    int64_t block = 1;

    for (; st != TSR_OK; block += 5) {
        tsr_mesh mesh = {0};

        tsr_test_refuse_block(rank == culprit ? block : 0);
        st = tsr_mesh_create(&config, world, &mesh);
        tsr_test_refuse_block(0);
        const bool ok = (st == TSR_OK || strstr(tsr_error_message(), "cannot allocate") != NULL) &&
                        (st == TSR_OK || st == (rank == culprit ? TSR_ERR_NOMEM : TSR_ERR_PEER));
        if (!ok_or_say(tsr_comm_agree(tsr_test_comm(), ok ? TSR_OK : TSR_FAIL(st, "not so")))) {
            return false;
        }
        tsr_mesh_destroy(&mesh);
    }
    return block > 20;
}

static void without_memory_on_one_rank_there_is_no_mesh(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    const int ranks = tsr_comm_size(comm), each = ranks % 2 == 0 ? 2 : 1;
    tsr_seat seats[TSR_TEST_MAX_RANKS] = {0};

    (void)state;
    for (int r = 0; r < ranks; ++r) {
        seats[r] = (tsr_seat){.node = r / each, .plane = r % each};
    }
    const bool ok = on_seats(seats, fails_together, each); /* several groups of each kind */
    assert_all_ranks(comm, on_seats(seats, fails_together, ranks) && ok);
}

static void options_are_read(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    tsr_parallel_config config = {0};
    tsr_config_errors errors = {0};
    const tsr_option_table table = tsr_parallel_options(&config);

    (void)state;
    tsr_config_read("[parallel]\ndp = 3\nplacement = eplb\ndispatch = flat\n", "x.ini", NULL, 0,
                    &table, 1, &errors);
    assert_all_ranks(comm, errors.count == 0 && config.pp == 1 && config.dp == 3 &&
                               config.ep == 1 && config.placement == 3 &&
                               config.dispatch == TSR_DISPATCH_FLAT);
}

static void shares_are_in_order_and_balanced(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    bool ok = true;

    (void)state;
    for (int64_t global = 0; global <= 13; ++global) {
        for (int parts = 1; parts <= 5; ++parts) {
            int64_t next = 0;

            for (int part = 0; part < parts; ++part) {
                int64_t begin = -1, end = -1;

                tsr_batch_share(global, parts, part, &begin, &end);
                ok = ok && begin == next && end - begin == global / parts + (part < global % parts);
                next = end;
            }
            ok = ok && next == global;
        }
    }
    assert_all_ranks(comm, ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zeros_are_filled_in),
        cmocka_unit_test(wrong_sizes_name_the_valid_ones),
        cmocka_unit_test(what_is_not_built_is_refused_by_name),
        cmocka_unit_test(copies_have_a_communicator_of_their_own),
        cmocka_unit_test(one_node_has_no_rails),
        cmocka_unit_test(groups_fill_nodes_first),
        cmocka_unit_test(uneven_nodes_stay_flat),
        cmocka_unit_test(without_memory_on_one_rank_there_is_no_mesh),
        cmocka_unit_test(options_are_read),
        cmocka_unit_test(shares_are_in_order_and_balanced),
    };

    return tsr_mpi_test_main(argc, argv, "parallel.mesh", tests, sizeof tests / sizeof tests[0]);
}
