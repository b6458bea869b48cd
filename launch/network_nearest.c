/* Which InfiniBand or RoCE device is near which GPU or core, by hwloc. */
#include "launch/network.h"

#include <hwloc.h>
#include <stdlib.h>
#include <string.h>

enum { DEVICES_MAX = 64, PCI_DISPLAY = 0x03, PCI_NVIDIA = 0x10de };

typedef struct device_list {
    hwloc_obj_t of[DEVICES_MAX];
    int count;
} device_list;

/* Ancestors that two objects have in common. */
static int closeness(hwloc_obj_t a, hwloc_obj_t b)
{
    int common = 0;

    for (hwloc_obj_t up = a; up != NULL; up = up->parent) {
        for (hwloc_obj_t other = b; other != NULL; other = other->parent) {
            common += up == other;
        }
    }
    return common;
}

static int compare_pci(const void *a, const void *b)
{
    const struct hwloc_pcidev_attr_s *x = &(*(const hwloc_obj_t *)a)->attr->pcidev;
    const struct hwloc_pcidev_attr_s *y = &(*(const hwloc_obj_t *)b)->attr->pcidev;
    const int domain = (int)x->domain - (int)y->domain, bus = x->bus - y->bus;

    return domain != 0 ? domain : bus != 0 ? bus : x->dev - y->dev;
}

/* NVIDIA's, as CUDA numbers them (those of one kind by bus), restricted to CUDA_VISIBLE_DEVICES. */
static void find_gpus(hwloc_topology_t topology, device_list *gpus)
{
    device_list all = {0};
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    char *end = NULL;

    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_pcidev(topology, o)) != NULL;) {
        if (o->attr->pcidev.class_id >> 8 == PCI_DISPLAY &&
            o->attr->pcidev.vendor_id == PCI_NVIDIA && all.count < DEVICES_MAX) {
            all.of[all.count++] = o;
        }
    }
    qsort(all.of, (size_t)all.count, sizeof all.of[0], compare_pci);
    *gpus = all;
    if (visible == NULL) {
        return;
    }
    gpus->count = 0;
    for (const char *at = visible; gpus->count < DEVICES_MAX; at = end + 1) {
        const long number = strtol(at, &end, 10);

        if (end == at || number < 0 || number >= all.count) {
            return; /* CUDA, too, sees none from the first bad one on */
        }
        gpus->of[gpus->count++] = all.of[number];
        if (*end != ',') {
            return;
        }
    }
}

/* Devices with a port in use, in hwloc's order. */
static void find_nics(hwloc_topology_t topology, device_list *nics)
{
    for (hwloc_obj_t o = NULL; (o = hwloc_get_next_osdev(topology, o)) != NULL;) {
        const char *state = hwloc_obj_get_info_by_name(o, "Port1State");

        if (o->attr->osdev.type == HWLOC_OBJ_OSDEV_OPENFABRICS && state != NULL &&
            strcmp(state, "4") == 0 && nics->count < DEVICES_MAX && strlen(o->name) < TSR_NIC_MAX) {
            nics->of[nics->count++] = o;
        }
    }
}

static int nearest_nic(const device_list *nics, hwloc_obj_t to, int turn)
{
    int row[DEVICES_MAX];

    for (int i = 0; i < nics->count; ++i) {
        row[i] = closeness(nics->of[i], to);
    }
    return tsr_topology_nearest(row, nics->count, turn);
}

/* The nearest device of each GPU; GPUs with the same ones near get them in turn. */
static void pair_gpus(const device_list *gpus, const device_list *nics, int nic_of[DEVICES_MAX])
{
    for (int g = 0; g < gpus->count; ++g) {
        int turn = 0;

        for (int before = 0; before < g; ++before) {
            turn += nearest_nic(nics, gpus->of[before], 0) == nearest_nic(nics, gpus->of[g], 0);
        }
        nic_of[g] = nearest_nic(nics, gpus->of[g], turn);
    }
}

/* The device of GPU `mine`, numbered among those that GPUs have, in the order of GPUs. */
static int number_among(const int *nic_of, int gpus, int mine, int *numbers_out)
{
    int number = 0;

    *numbers_out = 0;
    for (int g = 0; g < gpus; ++g) {
        bool is_first = true;

        for (int before = 0; before < g; ++before) {
            is_first = is_first && nic_of[before] != nic_of[g];
        }
        if (is_first && nic_of[g] == nic_of[mine]) {
            number = *numbers_out;
        }
        *numbers_out += is_first;
    }
    return number;
}

static void choose(hwloc_topology_t topology, int local_rank, tsr_nic *nic_out, char gpu_out[48])
{
    device_list gpus = {0}, nics = {0};
    int at = 0, number = 0, numbers = 0, nic_of[DEVICES_MAX];

    find_gpus(topology, &gpus);
    find_nics(topology, &nics);
    if (gpus.count > 0) {
        const struct hwloc_pcidev_attr_s *pci = &gpus.of[local_rank % gpus.count]->attr->pcidev;

        (void)snprintf(gpu_out, 48, "%04x:%02x:%02x.%x", pci->domain, pci->bus, pci->dev,
                       pci->func);
    }
    if (nics.count < 2) {
        return;
    }
    if (gpus.count > 0) {
        const int mine = local_rank % gpus.count;

        pair_gpus(&gpus, &nics, nic_of);
        at = nic_of[mine];
        number = number_among(nic_of, gpus.count, mine, &numbers);
    } else {
        hwloc_bitmap_t cores = hwloc_bitmap_alloc();
        hwloc_obj_t near = hwloc_get_root_obj(topology);

        if (hwloc_get_cpubind(topology, cores, HWLOC_CPUBIND_PROCESS) == 0) {
            near = hwloc_get_obj_covering_cpuset(topology, cores);
        }
        hwloc_bitmap_free(cores);
        at = nearest_nic(&nics, near != NULL ? near : hwloc_get_root_obj(topology), local_rank);
        number = at;
        numbers = nics.count;
    }
    (void)snprintf(nic_out->name, sizeof nic_out->name, "%.31s", nics.of[at]->name);
    nic_out->planes = numbers;
    nic_out->plane = number;
}

void network_nearest(int local_rank, int64_t planes, tsr_nic *nic_out, char gpu_out[48])
{
    hwloc_topology_t topology;

    *nic_out = (tsr_nic){0};
    gpu_out[0] = '\0';
    if (hwloc_topology_init(&topology) != 0) {
        return;
    }
    if (hwloc_topology_set_io_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_IMPORTANT) == 0 &&
        hwloc_topology_load(topology) == 0) {
        choose(topology, local_rank, nic_out, gpu_out);
    }
    hwloc_topology_destroy(topology);
    if (planes > 0 && nic_out->planes > planes) {
        nic_out->planes = (int32_t)planes;
        nic_out->plane %= nic_out->planes;
    }
}
