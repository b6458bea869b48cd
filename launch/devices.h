/* Which device a rank computes on. */
#ifndef TSR_LAUNCH_DEVICES_H
#define TSR_LAUNCH_DEVICES_H

#include "launch/world.h"

typedef enum device_choice {
    DEVICE_AUTO = 0, /* a GPU if the machine has one, else the CPU */
    DEVICE_CPU,
    DEVICE_CUDA /* GPU number = place of the rank on its node */
} device_choice;

/** Open this rank's device; TESSERA_CPU and TESSERA_CUDA say which. Errors: those of
 *  tsr_device_open(). */
TSR_NODISCARD tsr_status devices_open(device_choice choice, const world *w, int threads,
                                      tsr_device **out);

/** "auto", "cpu" or "cuda"; NULL is auto. Errors: TSR_ERR_ARG. */
TSR_NODISCARD tsr_status devices_parse(const char *text, device_choice *choice_out);

#endif
