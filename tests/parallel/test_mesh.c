#include "tests/support/mpi_test.h"

#include "parallel/parallel.h"

#include <string.h>

static bool refused(tsr_parallel_config config, tsr_status code, const char *text)
{
    tsr_mesh mesh = {0};

    return tsr_mesh_create(&config, tsr_test_comm(), &mesh) == code &&
           strstr(tsr_error_message(), text) != NULL && mesh.world == NULL;
}

static void zeros_are_filled_in(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    const tsr_parallel_config config = {0};
    tsr_mesh mesh = {0};

    (void)state;
    const tsr_status st = tsr_mesh_create(&config, comm, &mesh);
    assert_all_ranks(
        comm, st == TSR_OK && mesh.pp == 1 && mesh.ep == 1 && mesh.dp == tsr_comm_size(comm) &&
                  mesh.dp_rank == tsr_comm_rank(comm) && mesh.pp_rank == 0 && mesh.ep_rank == 0 &&
                  mesh.dense_group == comm && mesh.expert_group == comm);
}

static void a_wrong_product_names_the_right_value(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    const int ranks = tsr_comm_size(comm);
    char text[64];

    (void)state;
    (void)snprintf(text, sizeof text, "set dp = %d", ranks);
    assert_all_ranks(
        comm, refused((tsr_parallel_config){.pp = 1, .dp = ranks + 1, .ep = 1}, TSR_ERR_ARG, text));
}

static void what_is_not_built_is_refused_by_name(void **state)
{
    tsr_comm *comm = tsr_test_comm();

    (void)state;
    assert_all_ranks(comm, refused((tsr_parallel_config){.pp = 2}, TSR_ERR_UNSUPPORTED,
                                   "parallel.pp = 2: pipelines are not built yet") &&
                               refused((tsr_parallel_config){.ep = 4}, TSR_ERR_UNSUPPORTED,
                                       "parallel.ep = 4: expert parallelism is not built yet") &&
                               refused((tsr_parallel_config){.placement = 4}, TSR_ERR_UNSUPPORTED,
                                       "parallel.placement = fssdp is not built yet"));
}

static void options_are_read(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    tsr_parallel_config config = {0};
    tsr_config_errors errors = {0};
    const tsr_option_table table = tsr_parallel_options(&config);

    (void)state;
    tsr_config_read("[parallel]\ndp = 3\nplacement = eplb\n", "x.ini", NULL, 0, &table, 1, &errors);
    assert_all_ranks(comm, errors.count == 0 && config.pp == 1 && config.dp == 3 &&
                               config.ep == 1 && config.placement == 3);
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
        cmocka_unit_test(a_wrong_product_names_the_right_value),
        cmocka_unit_test(what_is_not_built_is_refused_by_name),
        cmocka_unit_test(options_are_read),
        cmocka_unit_test(shares_are_in_order_and_balanced),
    };

    return tsr_mpi_test_main(argc, argv, "parallel.mesh", tests, sizeof tests / sizeof tests[0]);
}
