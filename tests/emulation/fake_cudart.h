/* What the fakes share: the emulated GPU's memory and its queues. Behind them stand the true
 * prototypes of the toolkit's headers, implemented in fake_cudart.c and its siblings.
 *
 * Device memory cannot be touched by the host: its pages are open only while queued work runs, and
 * queued work runs only when somebody waits for it, in an order that tests choose. */
#ifndef TSR_FAKE_CUDART_H
#define TSR_FAKE_CUDART_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Work of a library on a stream: run(arg) is called when the stream gets there, with device memory
 *  open; arg (bytes of it) is copied now. Returns what a launch would. run may return
 *  cudaErrorNotReady: it waits for another process, and is called again. */
cudaError_t fake_enqueue(cudaStream_t stream, cudaError_t (*run)(const void *arg), const void *arg,
                         size_t bytes);

/** Is [at, at + bytes) inside one live block of device memory? */
bool fake_is_device(const void *at, size_t bytes);

/** Is this address in the range that device memory is taken from, used or not? */
bool fake_is_arena(const void *at);

/** Is [at, at + bytes) pinned host memory? */
bool fake_is_pinned(const void *at, size_t bytes);

/** Make code the last error, as each failing call of the runtime does; returns it. */
cudaError_t fake_error(cudaError_t code);

/** Forget a fault, which would end a GPU's context for good: for tests that provoke one. */
void fake_clear_fault(void);

/* In which order fibres, blocks and independent streams run. Tests run everything in all three. */
typedef enum fake_order { FAKE_FORWARD, FAKE_REVERSE, FAKE_RANDOM } fake_order;

/** Choose the order from now on; seed counts for FAKE_RANDOM only. */
void fake_set_order(fake_order order, uint64_t seed);
fake_order fake_get_order(void);
/** A number below `below` from the order's own generator. */
uint32_t fake_random(uint32_t below);

#ifdef __cplusplus
}
#endif

#endif
