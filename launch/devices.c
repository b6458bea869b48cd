#include "launch/devices.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The best instruction set, or that of TESSERA_CPU: generic, avx2, avx512, avx512bf16, amx. */
static void name_cpu(char name[static 32])
{
    const char *chosen = getenv("TESSERA_CPU");

    if (chosen == NULL || chosen[0] == '\0') {
        (void)snprintf(name, 32, "cpu");
    } else {
        (void)snprintf(name, 32, "cpu:%.27s", chosen);
    }
}

/* Which GPU: each rank of a machine its own. TESSERA_CUDA=emulated runs tests where there is none,
 * TESSERA_CUDA=cuda:N puts all ranks on GPU N, which shows that several work where there is one. */
static void name_gpu(const world *w, char name[static 32])
{
    const char *chosen = getenv("TESSERA_CUDA");

    if (chosen == NULL || chosen[0] == '\0') {
        (void)snprintf(name, 32, "cuda:%d", tsr_comm_local_rank(w->comm));
    } else if (strcmp(chosen, "emulated") == 0) {
        (void)snprintf(name, 32, "cuda:emulated");
    } else {
        (void)snprintf(name, 32, "%.31s", chosen);
        tsr_log(TSR_LOG_WARN, "TESSERA_CUDA = %s: all ranks of this machine share it", name);
    }
}

/* Without the driver's node there is no GPU: the CUDA libraries need not be opened to learn it. */
static bool has_gpu(void)
{
    return access("/dev/nvidiactl", F_OK) == 0 || access("/dev/dxg", F_OK) == 0;
}

/* Where CUDA's libraries may be besides the usual places: an own toolkit, Python environments. */
static tsr_status search_environment(void)
{
    static const struct {
        const char *variable, *below;
    } places[] = {
        {"CUDA_HOME", "lib64"},
        {"VIRTUAL_ENV", "lib/python3*/site-packages/nvidia/*/lib"},
        {"CONDA_PREFIX", "lib/python3*/site-packages/nvidia/*/lib"},
        {"CONDA_PREFIX", "lib"},
        {"HOME", ".local/lib/python3*/site-packages/nvidia/*/lib"},
    };
    char folders[4 * TSR_TEXT_MAX] = "";
    size_t used = 0;

    for (size_t i = 0; i < sizeof places / sizeof *places; ++i) {
        const char *base = getenv(places[i].variable);
        const size_t length = base != NULL ? strlen(base) : 0;

        if (length > 0 && used + length + strlen(places[i].below) + 3 < sizeof folders) {
            used += (size_t)snprintf(folders + used, sizeof folders - used, "%s%s/%s",
                                     used > 0 ? ":" : "", base, places[i].below);
        }
    }
    return tsr_cuda_module_search(folders);
}

tsr_status devices_open(device_choice choice, const world *w, int threads, tsr_device **out)
{
    char name[32];

    if (choice == DEVICE_CUDA || (choice == DEVICE_AUTO && has_gpu())) {
        name_gpu(w, name);
        TSR_TRY(search_environment());
    } else {
        name_cpu(name);
    }
    return tsr_device_open(name, threads, out);
}

tsr_status devices_parse(const char *text, device_choice *choice_out)
{
    static const char *const names[] = {"auto", "cpu", "cuda"};

    *choice_out = DEVICE_AUTO;
    for (int i = 0; text != NULL && i < 3; ++i) {
        if (strcmp(text, names[i]) == 0) {
            *choice_out = (device_choice)i;
            return TSR_OK;
        }
    }
    TSR_CHECK(text == NULL, TSR_ERR_ARG, "--device %s: must be auto, cpu or cuda", text);
    return TSR_OK;
}
