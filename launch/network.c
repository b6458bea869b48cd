#include "launch/network.h"

#include <dirent.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RUN_FILE_MAX = 1 << 20, PATH_ROOM = 128 };

/* ---- what the run file says ------------------------------------------------------------------ */

static void read_section(network *n, const char *text, const char *name, const cli_values *values)
{
    static tsr_config_errors ignored; /* large; of sections unknown here, too */
    const tsr_option_table table = tsr_topology_options(&n->config);

    ignored.count = 0;
    tsr_config_read(text, name, values->set, values->set_count, &table, 1, &ignored);
}

void network_read(const cli_values *values, network *n)
{
    char *text = NULL;
    FILE *file = NULL;
    struct stat about;

    read_section(n, "", "", values);
    for (int i = 0; i < values->positional_count && file == NULL; ++i) {
        const char *word = values->positional[i];

        if (stat(word, &about) != 0 || !S_ISREG(about.st_mode) || about.st_size >= RUN_FILE_MAX ||
            (file = fopen(word, "rb")) == NULL) {
            continue;
        }
        if (tsr_mem_alloc(TSR_MEM_OTHER, RUN_FILE_MAX, (void **)&text) == TSR_OK) {
            text[fread(text, 1, RUN_FILE_MAX - 1, file)] = '\0';
            read_section(n, text, word, values);
        }
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    tsr_mem_free(text);
}

tsr_status network_check(const network *n, const tsr_topology_config *config)
{
    const bool is_given = n->source != NULL && strcmp(n->source, "TESSERA_NICS") == 0;

    TSR_CHECK(is_given ||
                  (config->planes == n->config.planes && strcmp(config->nics, n->config.nics) == 0),
              TSR_ERR_ARG,
              "topology.nics = %s was not known here before MPI started: put the run file where "
              "every node sees it, or set TESSERA_NICS for every rank (mpirun -x TESSERA_NICS)",
              config->nics);
    return TSR_OK;
}

/* ---- names of interfaces --------------------------------------------------------------------- */

static bool is_fabric(const char *name)
{
    char path[PATH_ROOM];

    (void)snprintf(path, sizeof path, "/sys/class/infiniband/%s", name);
    return access(path, F_OK) == 0;
}

/* The InfiniBand device behind a network interface: the same card, by its other driver. */
static bool find_fabric(const char *interface, char name_out[static TSR_NIC_MAX])
{
    char path[PATH_ROOM];

    (void)snprintf(path, sizeof path, "/sys/class/net/%s/device/infiniband", interface);
    DIR *folder = opendir(path);
    const struct dirent *entry = NULL;

    while (folder != NULL && (entry = readdir(folder)) != NULL && entry->d_name[0] == '.') {
    }
    if (entry != NULL) {
        (void)snprintf(name_out, TSR_NIC_MAX, "%.31s", entry->d_name);
    }
    if (folder != NULL) {
        (void)closedir(folder);
    }
    return entry != NULL;
}

static tsr_status check_exists(const network *n)
{
    struct if_nameindex *have = NULL;
    char names[256] = "";
    size_t used = 0;

    if (n->nic.name[0] == '\0' || if_nametoindex(n->nic.name) > 0 || is_fabric(n->nic.name)) {
        return TSR_OK;
    }
    have = if_nameindex();
    for (const struct if_nameindex *i = have; i != NULL && i->if_index > 0; ++i) {
        if (used + strlen(i->if_name) + 2 < sizeof names) {
            used += (size_t)snprintf(names + used, sizeof names - used, " %s", i->if_name);
        }
    }
    if (have != NULL) {
        if_freenameindex(have);
    }
    return TSR_FAIL(TSR_ERR_ARG, "%s names interface %s, which this host lacks; it has%s",
                    n->source, n->nic.name, names);
}

/* ---- the environment ------------------------------------------------------------------------- */

static void note(char list[512], const char *name, const char *value)
{
    const size_t used = strlen(list);

    (void)snprintf(list + used, 512 - used, "%s%s=%s", used > 0 ? " " : "", name, value);
}

static void write_variable(network *n, const char *name, const char *value)
{
    const char *given = getenv(name);

    if (given == NULL) {
        (void)setenv(name, value, 1);
    }
    note(given == NULL ? n->set : n->kept, name, given == NULL ? value : given);
}

static void write_environment(network *n)
{
    const char *name = n->nic.name;
    char fabric[TSR_NIC_MAX] = "", text[2 * TSR_NIC_MAX + 8];
    const bool is_interface = if_nametoindex(name) > 0; /* else a device of InfiniBand */
    const bool has_fabric = is_interface ? find_fabric(name, fabric) : true;

    if (!is_interface) {
        (void)snprintf(fabric, sizeof fabric, "%s", name);
    }
    if (is_interface && getenv("OMPI_MCA_btl_tcp_if_exclude") == NULL) { /* not both */
        write_variable(n, "OMPI_MCA_btl_tcp_if_include", name);
    }
    if (has_fabric) {
        (void)snprintf(text, sizeof text, "%s:1%s%s", fabric, is_interface ? "," : "",
                       is_interface ? name : "");
        write_variable(n, "UCX_NET_DEVICES", text);
        (void)snprintf(text, sizeof text, "=%s:1", fabric);
        write_variable(n, "NCCL_IB_HCA", text);
    } else {
        write_variable(n, "UCX_NET_DEVICES", name);
    }
    if (is_interface) {
        (void)snprintf(text, sizeof text, "=%s", name);
        write_variable(n, "NCCL_SOCKET_IFNAME", text);
    }
}

int network_local_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                                        "PMIX_LOCAL_RANK", "SLURM_LOCALID"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
        const char *text = getenv(names[i]);

        if (text != NULL) {
            const int rank = atoi(text);

            return rank > 0 ? rank : 0;
        }
    }
    return 0;
}

tsr_status network_choose(network *n)
{
    const char *given = getenv("TESSERA_NICS");
    tsr_topology_config config = n->config;
    char gpu[48];

    n->source = "topology.nics";
    if (given != NULL && given[0] != '\0') {
        n->source = "TESSERA_NICS";
        TSR_CHECK(strlen(given) < sizeof config.nics, TSR_ERR_ARG,
                  "TESSERA_NICS has %zu characters, at most %zu", strlen(given),
                  sizeof config.nics - 1);
        memcpy(config.nics, given, strlen(given) + 1);
    }
    TSR_TRY(tsr_topology_choose(&config, network_local_rank(), &n->nic));
    /* reading PCI takes tens of milliseconds: not where no device can be there */
    const bool may_have = access("/sys/class/infiniband", F_OK) == 0 || getenv("HWLOC_XMLFILE");
    if (n->nic.name[0] == '\0' && config.planes != 1 && may_have) {
        network_nearest(network_local_rank(), config.planes, &n->nic, gpu);
        n->source = "hwloc";
    }
    const tsr_status st = strcmp(n->source, "hwloc") == 0 ? TSR_OK : check_exists(n);
    if (st == TSR_OK && n->nic.name[0] != '\0') {
        write_environment(n);
    }
    if (st != TSR_OK || n->nic.name[0] == '\0') {
        n->nic = (tsr_nic){0};
        n->source = "";
    }
    return st;
}
