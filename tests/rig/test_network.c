/* The choice of an interface before MPI starts: from the run file, the environment, or hwloc, here
 * on a machine made up in its XML. */
#include "tests/support/unit_test.h"

#include "launch/network.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char xml_path[] = "test_network.xml", run_path[] = "test_network.ini";

/* ---- a machine ------------------------------------------------------------------------------- */

static int next_index = 100;

static void open_bridge(FILE *to, int bus)
{
    (void)fprintf(to,
                  "<object type=\"Bridge\" gp_index=\"%d\" bridge_type=\"1-1\" depth=\"1\" "
                  "bridge_pci=\"0000:[%02x-%02x]\" pci_busid=\"0000:00:%02x.0\" "
                  "pci_type=\"0604 [8086:2030] [0000:0000] 00\" pci_link_speed=\"0\">\n",
                  next_index++, bus, bus + 15, bus / 16);
}

static void add_gpu(FILE *to, int bus)
{
    (void)fprintf(to,
                  "<object type=\"PCIDev\" gp_index=\"%d\" pci_busid=\"0000:%02x:00.0\" "
                  "pci_type=\"0302 [10de:2330] [10de:16c1] a1\" pci_link_speed=\"0\"/>\n",
                  next_index++, bus);
}

static void add_nic(FILE *to, int bus, int number, bool is_active)
{
    (void)fprintf(to,
                  "<object type=\"PCIDev\" gp_index=\"%d\" pci_busid=\"0000:%02x:00.0\" "
                  "pci_type=\"0207 [15b3:1021] [15b3:0041] 00\" pci_link_speed=\"0\">\n"
                  "<object type=\"OSDev\" gp_index=\"%d\" name=\"mlx5_%d\" osdev_type=\"3\">\n"
                  "<info name=\"Port1State\" value=\"%d\"/></object></object>\n",
                  next_index, bus, next_index + 1, number, is_active ? 4 : 1);
    next_index += 2;
}

static void open_object(FILE *to, const char *type, int index, int mask)
{
    (void)fprintf(
        to,
        "<object type=\"%s\" os_index=\"%d\" cpuset=\"0x%08x\" complete_cpuset=\"0x%08x\" "
        "nodeset=\"0x1\" complete_nodeset=\"0x1\" gp_index=\"%d\"",
        type, index, mask, mask, next_index++);
}

static void open_package(FILE *to, int index)
{
    open_object(to, "Package", index, 1 << index);
    (void)fprintf(to, ">\n");
    open_object(to, "Core", index, 1 << index);
    (void)fprintf(to, ">\n");
    open_object(to, "PU", index, 1 << index);
    (void)fprintf(to, "/></object>\n");
    (void)fprintf(to,
                  "<object type=\"Bridge\" gp_index=\"%d\" bridge_type=\"0-1\" depth=\"0\" "
                  "bridge_pci=\"0000:[%02x-%02x]\">\n",
                  next_index++, 0x80 * index, 0x80 * index + 0x7f);
}

/* Package 0: one GPU with mlx5_0; two with mlx5_1 and mlx5_2. Package 1: one with mlx5_5 and
 * mlx5_4, which is not connected; mlx5_6, far from all. */
static void write_machine(int gpus, int nics)
{
    FILE *to = fopen(xml_path, "w");

    assert_non_null(to);
    (void)fprintf(to, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
                      "<!DOCTYPE topology SYSTEM \"hwloc2.dtd\">\n<topology version=\"2.0\">\n"
                      "<object type=\"Machine\" os_index=\"0\" cpuset=\"0x3\" "
                      "complete_cpuset=\"0x3\" allowed_cpuset=\"0x3\" nodeset=\"0x1\" "
                      "complete_nodeset=\"0x1\" allowed_nodeset=\"0x1\" gp_index=\"1\">\n");
    open_object(to, "NUMANode", 0, 3);
    (void)fprintf(to, " local_memory=\"1073741824\"/>\n");
    open_package(to, 0);
    open_bridge(to, 0x10);
    if (gpus > 0) {
        add_gpu(to, 0x11);
    }
    add_nic(to, 0x12, 0, true);
    (void)fprintf(to, "</object>\n");
    if (nics > 1) {
        open_bridge(to, 0x20);
        if (gpus > 1) {
            add_gpu(to, 0x21);
            add_gpu(to, 0x22);
        }
        add_nic(to, 0x23, 1, true);
        add_nic(to, 0x24, 2, true);
        (void)fprintf(to, "</object>\n");
    }
    (void)fprintf(to, "</object></object>\n");
    open_package(to, 1);
    open_bridge(to, 0x90);
    if (gpus > 3) {
        add_gpu(to, 0x91);
    }
    add_nic(to, 0x92, 4, false);
    if (nics > 1) {
        add_nic(to, 0x93, 5, true);
        (void)fprintf(to, "</object>\n");
        open_bridge(to, 0xa0);
        add_nic(to, 0xa1, 6, true);
    }
    (void)fprintf(to, "</object></object></object></object></topology>\n");
    assert_int_equal(fclose(to), 0);
}

static void expect(int local, int64_t planes, const char *name, int plane, int all_planes,
                   const char *gpu)
{
    tsr_nic nic;
    char at[48];

    network_nearest(local, planes, &nic, at);
    assert_string_equal(nic.name, name);
    assert_int_equal(nic.plane, plane);
    assert_int_equal(nic.planes, all_planes);
    assert_string_equal(at, gpu);
}

static void gpus_have_their_nearest(void **state)
{
    (void)state;
    write_machine(4, 5);
    expect(0, 0, "mlx5_0", 0, 4, "0000:11:00.0");
    expect(1, 0, "mlx5_1", 1, 4, "0000:21:00.0");
    expect(2, 0, "mlx5_2", 2, 4, "0000:22:00.0"); /* as near as mlx5_1, which is taken */
    expect(3, 0, "mlx5_5", 3, 4, "0000:91:00.0"); /* not mlx5_4, which is as near but down */
    expect(4, 0, "mlx5_0", 0, 4, "0000:11:00.0");
    expect(3, 2, "mlx5_5", 1, 2, "0000:91:00.0");
    expect(2, 1, "mlx5_2", 0, 1, "0000:22:00.0");
    assert_int_equal(setenv("CUDA_VISIBLE_DEVICES", "3,0", 1), 0);
    expect(0, 0, "mlx5_5", 0, 2, "0000:91:00.0");
    expect(1, 0, "mlx5_0", 1, 2, "0000:11:00.0");
    assert_int_equal(setenv("CUDA_VISIBLE_DEVICES", "", 1), 0); /* none: by cores */
    expect(4, 0, "mlx5_6", 4, 5, "");
    assert_int_equal(unsetenv("CUDA_VISIBLE_DEVICES"), 0);
}

static void without_gpus_ranks_take_turns(void **state)
{
    (void)state;
    write_machine(0, 5);
    expect(0, 0, "mlx5_0", 0, 5, "");
    expect(1, 0, "mlx5_1", 1, 5, "");
    expect(3, 0, "mlx5_5", 3, 5, "");
    expect(5, 0, "mlx5_0", 0, 5, "");
}

static void one_interface_is_no_choice(void **state)
{
    (void)state;
    write_machine(1, 1);
    expect(0, 0, "", 0, 0, "0000:11:00.0");
}

/* ---- the environment ------------------------------------------------------------------------- */

static const char *const variables[] = {"OMPI_MCA_btl_tcp_if_include",
                                        "OMPI_MCA_btl_tcp_if_exclude",
                                        "UCX_NET_DEVICES",
                                        "NCCL_SOCKET_IFNAME",
                                        "NCCL_IB_HCA",
                                        "TESSERA_NICS",
                                        "OMPI_COMM_WORLD_LOCAL_RANK",
                                        "SLURM_LOCALID",
                                        "HWLOC_XMLFILE"};

static int clear_environment(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; ++i) {
        assert_int_equal(unsetenv(variables[i]), 0);
    }
    return 0;
}

static int use_machine(void **state)
{
    (void)clear_environment(state);
    return setenv("HWLOC_XMLFILE", xml_path, 1);
}

static network with(const char *nics)
{
    network n = {0};

    (void)snprintf(n.config.nics, sizeof n.config.nics, "%s", nics);
    return n;
}

static void interfaces_are_written(void **state)
{
    network n = with("lo");

    (void)state;
    assert_ok(network_choose(&n));
    assert_string_equal(n.source, "topology.nics");
    assert_string_equal(getenv("OMPI_MCA_btl_tcp_if_include"), "lo");
    assert_string_equal(getenv("UCX_NET_DEVICES"), "lo");
    assert_string_equal(getenv("NCCL_SOCKET_IFNAME"), "=lo");
    assert_null(getenv("NCCL_IB_HCA"));
    assert_string_equal(n.set, "OMPI_MCA_btl_tcp_if_include=lo UCX_NET_DEVICES=lo "
                               "NCCL_SOCKET_IFNAME==lo");
    assert_string_equal(n.kept, "");
}

static void what_the_user_set_stays(void **state)
{
    network n = with("lo");

    (void)state;
    assert_int_equal(setenv("UCX_NET_DEVICES", "mine:1", 1), 0);
    assert_int_equal(setenv("OMPI_MCA_btl_tcp_if_exclude", "eth9", 1), 0);
    assert_ok(network_choose(&n));
    assert_string_equal(getenv("UCX_NET_DEVICES"), "mine:1");
    assert_null(getenv("OMPI_MCA_btl_tcp_if_include")); /* Open MPI takes one of the two */
    assert_string_equal(n.kept, "UCX_NET_DEVICES=mine:1");
    assert_string_equal(n.set, "NCCL_SOCKET_IFNAME==lo");
}

static void environment_names_interfaces_first(void **state)
{
    network n = with("absent0");

    (void)state;
    assert_int_equal(setenv("TESSERA_NICS", "absent1,lo", 1), 0);
    assert_int_equal(setenv("SLURM_LOCALID", "3", 1), 0);
    assert_ok(network_choose(&n));
    assert_string_equal(n.source, "TESSERA_NICS");
    assert_string_equal(n.nic.name, "lo");
    assert_int_equal(n.nic.plane, 1);
    assert_ok(network_check(&n, &(tsr_topology_config){.planes = 7})); /* it does not count */
    assert_int_equal(setenv("OMPI_COMM_WORLD_LOCAL_RANK", "2", 1), 0);
    assert_int_equal(network_choose(&n), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "TESSERA_NICS names interface absent1"));
}

static void absent_interfaces_are_refused(void **state)
{
    network n = with("absent0");

    (void)state;
    assert_int_equal(network_choose(&n), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "topology.nics names interface absent0"));
    assert_non_null(strstr(tsr_error_message(), " lo"));
    assert_string_equal(n.nic.name, "");
    assert_null(getenv("UCX_NET_DEVICES"));
    n = with("lo,,");
    assert_int_equal(network_choose(&n), TSR_ERR_ARG);
    char *many = malloc(2 * TSR_TEXT_MAX);
    assert_non_null(many);
    memset(many, 'x', 2 * TSR_TEXT_MAX);
    many[2 * TSR_TEXT_MAX - 1] = '\0';
    assert_int_equal(setenv("TESSERA_NICS", many, 1), 0);
    free(many);
    assert_int_equal(network_choose(&n), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "TESSERA_NICS has 2047 characters"));
}

static void nothing_named_is_nothing_set(void **state)
{
    network n = {0};

    (void)state;
    n.config.planes = 1;
    assert_ok(network_choose(&n));
    assert_string_equal(n.source, "");
    assert_string_equal(n.set, "");
    assert_null(getenv("UCX_NET_DEVICES"));
}

static void near_ones_are_written(void **state)
{
    network n = {0};

    (void)state;
    write_machine(4, 5);
    assert_int_equal(setenv("OMPI_COMM_WORLD_LOCAL_RANK", "1", 1), 0);
    assert_ok(network_choose(&n));
    assert_string_equal(n.source, "hwloc");
    assert_string_equal(n.nic.name, "mlx5_1");
    assert_string_equal(getenv("UCX_NET_DEVICES"), "mlx5_1:1");
    assert_string_equal(getenv("NCCL_IB_HCA"), "=mlx5_1:1");
    assert_null(getenv("OMPI_MCA_btl_tcp_if_include"));
    assert_null(getenv("NCCL_SOCKET_IFNAME"));
}

/* ---- the run file ---------------------------------------------------------------------------- */

static void run_file_is_read_early(void **state)
{
    cli_values values = {.positional = {"step", run_path}, .positional_count = 2};
    network n = {0};
    tsr_topology_config later;

    (void)state;
    FILE *to = fopen(run_path, "w");
    assert_non_null(to);
    assert_true(fputs("[model]\nunknown = 1\n[topology]\nnics = p0, p1\nplanes = 2\n", to) != EOF);
    assert_int_equal(fclose(to), 0);
    network_read(&values, &n);
    assert_string_equal(n.config.nics, "p0, p1");
    assert_int_equal(n.config.planes, 2);
    later = n.config;
    assert_ok(network_check(&n, &later));
    later.planes = 1;
    assert_int_equal(network_check(&n, &later), TSR_ERR_ARG);
    assert_non_null(strstr(tsr_error_message(), "mpirun -x TESSERA_NICS"));
    values.set[values.set_count++] = "topology.nics=q0";
    values.set[values.set_count++] = "train.steps=3";
    network_read(&values, &n);
    assert_string_equal(n.config.nics, "q0");
    values.positional[1] = "/"; /* no file */
    network_read(&values, &n);
    assert_string_equal(n.config.nics, "q0");
    assert_int_equal(n.config.planes, 0);
    (void)unlink(run_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(gpus_have_their_nearest, use_machine),
        cmocka_unit_test_setup(without_gpus_ranks_take_turns, use_machine),
        cmocka_unit_test_setup(one_interface_is_no_choice, use_machine),
        cmocka_unit_test_setup(near_ones_are_written, use_machine),
        cmocka_unit_test_setup(interfaces_are_written, clear_environment),
        cmocka_unit_test_setup(what_the_user_set_stays, clear_environment),
        cmocka_unit_test_setup(environment_names_interfaces_first, clear_environment),
        cmocka_unit_test_setup(absent_interfaces_are_refused, clear_environment),
        cmocka_unit_test_setup(nothing_named_is_nothing_set, clear_environment),
        cmocka_unit_test_setup(run_file_is_read_early, clear_environment),
    };
    const int code = tsr_unit_test_main("network", tests, sizeof tests / sizeof tests[0]);

    (void)unlink(xml_path);
    return code;
}
