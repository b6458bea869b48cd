#include "tests/support/unit_test.h"

#include "parallel/parallel.h"

#include <stdlib.h>
#include <string.h>

static tsr_topology_config config_of(const char *nics, int64_t planes)
{
    tsr_topology_config config = {.planes = planes};

    (void)snprintf(config.nics, sizeof config.nics, "%s", nics);
    return config;
}

static void expect(const char *nics, int64_t planes, int local, const char *name, int plane,
                   int all_planes)
{
    const tsr_topology_config config = config_of(nics, planes);
    tsr_nic nic;

    assert_ok(tsr_topology_choose(&config, local, &nic));
    assert_string_equal(nic.name, name);
    assert_int_equal(nic.plane, plane);
    assert_int_equal(nic.planes, all_planes);
}

static void interfaces_are_taken_in_turn(void **state)
{
    (void)state;
    expect("", 0, 3, "", 0, 0);
    expect("", 8, 3, "", 0, 0); /* nothing to number: hwloc may know more */
    expect("p0,p1", 0, 0, "p0", 0, 2);
    expect("p0,p1", 0, 1, "p1", 1, 2);
    expect("p0,p1", 0, 5, "p1", 1, 2);
    expect(" p0 ,\tp1", 2, 3, "p1", 1, 2);
    expect("p0", 0, 7, "p0", 0, 1);
    /* two ranks an interface: planes are interfaces, not entries */
    expect("p1,p1,p0,p0", 0, 1, "p1", 0, 2);
    expect("p1,p1,p0,p0", 0, 2, "p0", 1, 2);
    expect("a,b,a,c,b", 0, 3, "c", 2, 3);
    expect("a,b,a,c,b", 0, 4, "b", 1, 3);
    /* several interfaces to one network */
    expect("p0,p1", 1, 1, "p1", 0, 1);
    expect("m0,m1,m2,m3", 2, 3, "m3", 1, 2);
    expect("mm,m", 0, 1, "m", 1, 2); /* one name begins as another */
}

static void refuses(const char *nics, int64_t planes, const char *text)
{
    const tsr_topology_config config = config_of(nics, planes);
    tsr_nic nic = {.plane = 77};

    assert_int_equal(tsr_topology_choose(&config, 0, &nic), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), text));
    assert_int_equal(nic.plane, 77);
}

static void bad_lists_are_refused(void **state)
{
    (void)state;
    refuses("p0,,p1", 0, "entry 2 has 0 characters");
    refuses(",", 0, "entry 1 has 0");
    refuses("p0,", 0, "entry 2 has 0");
    refuses("p0,  ", 0, "entry 2 has 0");
    refuses("p0,an_interface_of_thirty_two_chars", 0, "entry 2 has 32 characters");
    refuses("p0,p1,p0", 3, "topology.planes = 3, but topology.nics = p0,p1,p0 names 2 interfaces");
    refuses("p0", 2, "names 1 interface:");
}

static void options_have_limits(void **state)
{
    static tsr_config_errors errors;
    tsr_topology_config config;
    const tsr_option_table table = tsr_topology_options(&config);

    (void)state;
    tsr_config_read("[topology]\nplanes = 2\nnics = p0, p1\n", "x.ini", NULL, 0, &table, 1,
                    &errors);
    assert_int_equal(errors.count, 0);
    assert_int_equal(config.planes, 2);
    assert_string_equal(config.nics, "p0, p1");
    tsr_config_read("[topology]\nplanes = -1\n", "x.ini", NULL, 0, &table, 1, &errors);
    assert_int_equal(errors.count, 1);
}

static void nearest_ones_take_turns(void **state)
{
    const int closeness[] = {3, 5, 1, 5, 5};

    (void)state;
    assert_int_equal(tsr_topology_nearest(closeness, 5, 0), 1);
    assert_int_equal(tsr_topology_nearest(closeness, 5, 1), 3);
    assert_int_equal(tsr_topology_nearest(closeness, 5, 2), 4);
    assert_int_equal(tsr_topology_nearest(closeness, 5, 3), 1);
    assert_int_equal(tsr_topology_nearest(closeness, 1, 9), 0);
}

/* ---- pictures -------------------------------------------------------------------------------- */

/* nodes x 2 ranks on planes 0 and 1, numbered across the nodes: rank = local * nodes + node. */
static tsr_topology_view make(tsr_topology_rank *ranks, int nodes)
{
    for (int r = 0; r < 2 * nodes; ++r) {
        ranks[r] = (tsr_topology_rank){
            .seat = {r % nodes, r / nodes, r / nodes}, .dp_rank = r % nodes, .ep_rank = r / nodes};
        (void)snprintf(ranks[r].host, sizeof ranks[r].host, "host%d", r % nodes);
        (void)snprintf(ranks[r].nic, sizeof ranks[r].nic, "p%d", r / nodes);
    }
    return (tsr_topology_view){ranks, 2 * nodes, nodes, 2};
}

static void picture_names_all(void **state)
{
    static const char *const lines[] = {
        "topology  4 ranks on 2 nodes, 2 planes\n",
        "node 1    host1\n  local 0   rank 1     plane 0   nic p0 ",
        "  local 1   rank 3     plane 1   nic p1 ",
        "plane 0   ranks 0 1\nplane 1   ranks 2 3\n",
        "mesh      dp 2 x ep 2\n  expert  groups 0 2 | 1 3\n  replica groups 0 1 | 2 3\n",
    };
    tsr_topology_rank ranks[4];
    const tsr_topology_view view = make(ranks, 2);
    char *text = NULL, problem[256] = "x";
    size_t size = 0;

    (void)state;
    FILE *to = open_memstream(&text, &size);
    assert_non_null(to);
    tsr_topology_draw(to, &view);
    assert_int_equal(fclose(to), 0);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; ++i) {
        if (strstr(text, lines[i]) == NULL) {
            fail_msg("\"%s\" is not in\n%s", lines[i], text);
        }
    }
    assert_null(strstr(text, "problem"));
    assert_false(tsr_topology_problem(&view, problem));
    assert_string_equal(problem, "");
    free(text);
}

static void irregular_ones_are_named(void **state)
{
    tsr_topology_rank ranks[6];
    tsr_topology_view view = make(ranks, 3);
    char problem[256];

    (void)state;
    view.count = 5; /* node 2 lacks its second rank */
    assert_true(tsr_topology_problem(&view, problem));
    assert_non_null(strstr(problem, "node 0 has a rank at local place 1 and node 2 has none"));
    view = make(ranks, 3);
    ranks[4].seat.plane = 0;
    assert_true(tsr_topology_problem(&view, problem));
    assert_non_null(strstr(problem, "local place 1 is on plane 1 (p1) on node 0 and on plane 0 "
                                    "(p1) on node 1"));
    view = make(ranks, 1); /* one node is always regular */
    assert_false(tsr_topology_problem(&view, problem));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(interfaces_are_taken_in_turn),
        cmocka_unit_test(bad_lists_are_refused),
        cmocka_unit_test(options_have_limits),
        cmocka_unit_test(nearest_ones_take_turns),
        cmocka_unit_test(picture_names_all),
        cmocka_unit_test(irregular_ones_are_named),
    };

    return tsr_unit_test_main("topology", tests, sizeof tests / sizeof tests[0]);
}
