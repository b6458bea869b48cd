/* Opening of the devices that live in modules of their own; for runtime and for the communicator
 * that lives in one. The program needs no CUDA file to start. */
#ifndef TSR_RUNTIME_CUDA_MODULE_H
#define TSR_RUNTIME_CUDA_MODULE_H

#include "runtime/device_impl.h"

/** Open "cuda", "cuda:N" or "cuda:emulated". Contract as tsr_device_open(). */
TSR_NODISCARD tsr_status tsr_cuda_module_open(const char *name, int threads, tsr_device **out);

/**
 * Open a module file beside the program, in ../lib/tessera, or in the folder above (a build
 * folder).
 *
 * Owns:   handle stays open as long as the process.
 * Errors: TSR_ERR_UNSUPPORTED, naming `option` where the file is missing, and the library where one
 *         that it needs is.
 */
TSR_NODISCARD tsr_status tsr_cuda_module_load(const char *device, const char *file,
                                              const char *option, void **handle_out);

#endif
