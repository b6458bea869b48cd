/* What the files of the fake CUDA runtime share with each other. */
#ifndef TSR_FAKE_IMPL_H
#define TSR_FAKE_IMPL_H

#include "tests/emulation/fake_cudart.h"

#ifdef __cplusplus
extern "C" {
#endif

/** One lock over everything; may be taken again by its holder. */
void fake_lock(void);
void fake_unlock(void);

/** The fault that ended the context, or cudaSuccess. Every call fails with it from then on. */
cudaError_t fake_fault(void);
/** End the context. Says why on stderr, unless text is NULL; returns code. */
cudaError_t fake_set_fault(cudaError_t code, const char *text);

/** Open all device memory to this process, or fence it again; calls nest. Closing also looks at the
 *  bytes around each block, and faults if something was written there. */
void fake_memory_open(void);
void fake_memory_close(void);

/** run(arg) with memory faults caught; those and what run returns end the context. */
cudaError_t fake_guarded(cudaError_t (*run)(const void *), const void *arg);

/** Run all that is queued anywhere. */
cudaError_t fake_drain_all(void);

#ifdef __cplusplus
}
#endif

#endif
