#include "launch/devices.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Tests run the CUDA backend on an emulated GPU: TESSERA_CUDA=emulated. */
static bool is_emulated(void)
{
    const char *text = getenv("TESSERA_CUDA");

    return text != NULL && strcmp(text, "emulated") == 0;
}

/* Without the driver's node there is no GPU: the CUDA libraries need not be opened to learn it. */
static bool has_gpu(void)
{
    return access("/dev/nvidiactl", F_OK) == 0 || access("/dev/dxg", F_OK) == 0;
}

tsr_status devices_open(device_choice choice, const world *w, int threads, tsr_device **out)
{
    char name[32] = "cpu";
    const char *home = getenv("CUDA_HOME");

    if (choice == DEVICE_CUDA || (choice == DEVICE_AUTO && has_gpu())) {
        if (is_emulated()) {
            (void)snprintf(name, sizeof name, "cuda:emulated");
        } else {
            (void)snprintf(name, sizeof name, "cuda:%d", tsr_comm_local_rank(w->comm));
        }
        if (home != NULL) {
            char folder[TSR_TEXT_MAX];

            (void)snprintf(folder, sizeof folder, "%.1000s/lib64", home);
            TSR_TRY(tsr_cuda_module_search(folder));
        }
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
