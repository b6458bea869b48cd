/* Lets the operator tests of the emulated GPU run on a real one: programs linked with this and with
 * --wrap=tsr_device_open open the GPU where the tests say "cuda:emulated", unless TESSERA_CUDA says
 * so too. No order can be chosen then: what should be equal in three orders must be in three runs.
 *
 * The fakes' names are hidden, or they would take the place of those in the emulated module. */
#include "tests/emulation/fake_cudart.h"
#include "tests/support/unit_test.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HIDDEN __attribute__((visibility("hidden")))

/* The linker's names for what --wrap replaces and for its replacement. */
/* NOLINTBEGIN(readability-identifier-naming): as above */
tsr_status __real_tsr_device_open(const char *name, int threads, tsr_device **out);
tsr_status __wrap_tsr_device_open(const char *name, int threads, tsr_device **out);
/* NOLINTEND(readability-identifier-naming) */

static bool is_emulated(void)
{
    const char *text = getenv("TESSERA_CUDA");

    return text != NULL && strcmp(text, "emulated") == 0;
}

tsr_status __wrap_tsr_device_open(const char *name, int threads, tsr_device **out)
{
    const bool is_gpu = strcmp(name, "cuda:emulated") == 0 && !is_emulated();

    return __real_tsr_device_open(is_gpu ? "cuda:0" : name, threads, out);
}

HIDDEN void fake_set_order(fake_order order, uint64_t seed)
{
    (void)order;
    (void)seed;
}

HIDDEN void fake_clear_fault(void)
{
    fail_msg("a GPU's fault cannot be cleared: tests that provoke one must be left out");
}

/* Before main(): a machine without a GPU is told at once; a fault would end all later tests. */
__attribute__((constructor)) static void start(void)
{
    if (!is_emulated() && access("/dev/nvidiactl", F_OK) != 0 && access("/dev/dxg", F_OK) != 0) {
        (void)fprintf(stderr, "no GPU here\n");
        exit(77);
    }
    cmocka_set_skip_filter("an_unknown_expert_stops_the_kernel");
}
