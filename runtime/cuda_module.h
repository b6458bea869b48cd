/* Opening of the devices that live in modules of their own; for runtime and for the communicator
 * that lives in one. The program needs no CUDA file to start. */
#ifndef TSR_RUNTIME_CUDA_MODULE_H
#define TSR_RUNTIME_CUDA_MODULE_H

#include "runtime/device_impl.h"

/** Open "cuda", "cuda:N" or "cuda:emulated". Contract as tsr_device_open(). */
TSR_NODISCARD tsr_status tsr_cuda_module_open(const char *name, int threads, tsr_device **out);

#endif
