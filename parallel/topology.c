#include "parallel/topology.h"

#include <string.h>

#define AT(field) offsetof(tsr_topology_config, field)

static const tsr_option keys[] = {
    {"topology", "planes", TSR_OPTION_INT, "0", 0, 64, NULL, NULL,
     "networks between nodes, each with its own interface; 0: one an interface in use; 1: one",
     AT(planes)},
    {"topology", "nics", TSR_OPTION_TEXT, "", 0, 0, NULL, NULL,
     "network interfaces, comma separated; ranks of a node take them in turn (the nearest by "
     "hwloc)",
     AT(nics)},
};

tsr_option_table tsr_topology_options(tsr_topology_config *config)
{
    return (tsr_option_table){keys, (int)(sizeof keys / sizeof keys[0]), config};
}

/* ---- interfaces ------------------------------------------------------------------------------ */

/* Entry `index` of a comma separated list, without spaces around it; NULL past its end. */
static const char *entry_of(const char *list, int index, size_t *length_out)
{
    while (index-- > 0) {
        list += strcspn(list, ",");
        if (*list == '\0') {
            return NULL;
        }
        ++list;
    }
    list += strspn(list, " \t");
    size_t length = strcspn(list, ",");
    while (length > 0 && (list[length - 1] == ' ' || list[length - 1] == '\t')) {
        --length;
    }
    *length_out = length;
    return list;
}

static bool are_equal(const char *list, int a, int b)
{
    size_t m = 0, n = 0;
    const char *x = entry_of(list, a, &m), *y = entry_of(list, b, &n);

    return m == n && memcmp(x, y, n) == 0;
}

/* Where entry `index` stands among those that differ: the number of different ones before it. */
static int number_of(const char *list, int index)
{
    int first = 0, number = 0;

    while (!are_equal(list, first, index)) {
        ++first;
    }
    for (int i = 0; i < first; ++i) {
        int before = 0;

        while (!are_equal(list, before, i)) {
            ++before;
        }
        number += before == i;
    }
    return number;
}

tsr_status tsr_topology_choose(const tsr_topology_config *config, int local_rank, tsr_nic *nic_out)
{
    const char *list = config->nics;
    size_t length = 0;
    int entries = 0, nics = 0;

    while (list[0] != '\0' && entry_of(list, entries, &length) != NULL) {
        TSR_CHECK(length > 0 && length < TSR_NIC_MAX, TSR_ERR_ARG,
                  "topology.nics = %s: entry %d has %zu characters, must be from 1 to %d", list,
                  entries + 1, length, TSR_NIC_MAX - 1);
        const int number = number_of(list, entries++);
        nics = number >= nics ? number + 1 : nics;
    }
    TSR_CHECK(
        nics == 0 || config->planes <= nics, TSR_ERR_ARG,
        "topology.planes = %lld, but topology.nics = %s names %d interface%s: at most so many",
        (long long)config->planes, list, nics, nics == 1 ? "" : "s");
    *nic_out = (tsr_nic){0};
    if (nics > 0) {
        const int at = local_rank % entries;

        const char *name = entry_of(list, at, &length);

        memcpy(nic_out->name, name, length);
        nic_out->planes = (int32_t)(config->planes > 0 ? config->planes : nics);
        nic_out->plane = (int32_t)number_of(list, at) % nic_out->planes;
    }
    return TSR_OK;
}

int tsr_topology_nearest(const int *closeness, int count, int turn)
{
    int best = closeness[0], ties = 1, at = 0;

    for (int i = 1; i < count; ++i) {
        ties = closeness[i] > best ? 1 : ties + (closeness[i] == best);
        best = closeness[i] > best ? closeness[i] : best;
    }
    for (int left = turn % ties; closeness[at] != best || left > 0; ++at) {
        left -= closeness[at] == best;
    }
    return at;
}
