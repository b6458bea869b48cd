/* A device: memory, streams, events and a table of operators. Chosen by name, never silently.
 *
 * Everything above this table is written as if the device were far away: memory is moved by
 * tsr_device_copy(), operators are queued on a stream, results are read after a wait. The `cpu`
 * device runs each call before it returns. Names: `cpu` (the best vector unit found),
 * `cpu:generic`, `cpu:avx2`, `cpu:avx512`, `cpu:avx512bf16` (multiplies bf16), `cpu:amx`
 * (multiplies in tiles), and `cpu:plain`, the readable twin of every operator, used as oracle. */
#ifndef TSR_RUNTIME_DEVICE_H
#define TSR_RUNTIME_DEVICE_H

#include "runtime/dtype.h"
#include "runtime/memory.h"
#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tsr_device tsr_device;
typedef struct tsr_stream tsr_stream;
typedef struct tsr_event tsr_event;

typedef enum tsr_copy_kind {
    TSR_COPY_HOST_TO_DEVICE,
    TSR_COPY_DEVICE_TO_HOST,
    TSR_COPY_ON_DEVICE
} tsr_copy_kind;

/**
 * Open a device by name; threads is the number of host threads its operators may use (>= 1).
 *
 * Owns:   the caller, until tsr_device_close(); close it after all its memory and streams.
 * Errors: TSR_ERR_ARG for an unknown name, TSR_ERR_UNSUPPORTED for one this machine or build lacks.
 */
TSR_NODISCARD tsr_status tsr_device_open(const char *name, int threads, tsr_device **out);
void tsr_device_close(tsr_device **device_p);

/** Folders to look for CUDA's libraries in before the usual ones: colon-separated patterns of
 *  glob().
 *  Errors: TSR_ERR_ARG if longer than 4095 characters. */
TSR_NODISCARD tsr_status tsr_cuda_module_search(const char *folders);

/** Paths of the modules and CUDA libraries that this process has opened, one a line, into
 *  text[size]; empty if none. */
void tsr_cuda_module_files(char *text, size_t size);

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

/** Name as opened, such as "cpu:avx512" (the alias "cpu" is resolved). Borrowed from the device. */
const char *tsr_device_name(const tsr_device *device);
int tsr_device_threads(const tsr_device *device);

/** One line about the hardware, such as the processor's name. Borrowed from the device. */
const char *tsr_device_description(const tsr_device *device);

/** Is bf16 multiplied by the hardware here, so that it is worth using? */
bool tsr_device_has_fast_bf16(const tsr_device *device);

/** May the host read and write this device's memory as its own once the stream has been waited for?
 *  Then no staging copy is needed. */
bool tsr_device_is_host(const tsr_device *device);

/** Zero-filled device memory, 64-byte aligned, counted under tag. Free with tsr_device_free(). */
TSR_NODISCARD tsr_status tsr_device_alloc(tsr_device *device, tsr_mem_tag tag, size_t bytes,
                                          void **out);
void tsr_device_free(tsr_device *device, void *block);

/** Largest sum of such blocks so far, in bytes; 0 where they are host memory, which the resident
 *  set counts. What CUDA and its libraries take for themselves is not in it. */
size_t tsr_device_peak_bytes(const tsr_device *device);

/** Bytes that operators have taken for themselves by now, as workspace: what they were let prepare
 *  for, and what calls needed beyond that. */
size_t tsr_device_scratch_bytes(const tsr_device *device);

/** Host memory that copies from and to this device run fastest with (pinned where that matters). */
TSR_NODISCARD tsr_status tsr_device_alloc_staging(tsr_device *device, tsr_mem_tag tag, size_t bytes,
                                                  void **out);
void tsr_device_free_staging(tsr_device *device, void *block);

TSR_NODISCARD tsr_status tsr_stream_create(tsr_device *device, tsr_stream **out);
void tsr_stream_destroy(tsr_stream **stream_p);

/** Wait until all that was queued on stream is done; reports what failed in it. */
TSR_NODISCARD tsr_status tsr_stream_wait(tsr_stream *stream);

/** The library's own stream below (a cudaStream_t), for a communicator that queues work on it; NULL
 *  where there is none. Borrowed from stream. */
void *tsr_stream_handle(const tsr_stream *stream);

/** For a communicator that queues work on stream, which may hang for want of a peer: from now on
 *  tsr_stream_wait() calls waiter, which ends in time; NULL: no more. */
typedef tsr_status tsr_stream_waiter(tsr_stream *stream);
void tsr_stream_set_waiter(tsr_stream *stream, tsr_stream_waiter *waiter);

TSR_NODISCARD tsr_status tsr_event_create(tsr_device *device, tsr_event **out);
void tsr_event_destroy(tsr_event **event_p);
TSR_NODISCARD tsr_status tsr_event_record(tsr_event *event, tsr_stream *stream);
/** Work queued on stream from now on starts after event. What the event's stream had for a waiter
 *  becomes this one's: it may hang likewise. */
TSR_NODISCARD tsr_status tsr_stream_wait_event(tsr_stream *stream, tsr_event *event);
/** Block the host until event has happened. */
TSR_NODISCARD tsr_status tsr_event_wait(tsr_event *event);

/** Queue a copy; the memory belongs to it until the stream has been waited for. */
TSR_NODISCARD tsr_status tsr_device_copy(tsr_device *device, void *to, const void *from,
                                         size_t bytes, tsr_copy_kind kind, tsr_stream *stream);

/** Queue a fill with zero bytes. */
TSR_NODISCARD tsr_status tsr_device_zero(tsr_device *device, void *block, size_t bytes,
                                         tsr_stream *stream);

#ifdef __cplusplus
}
#endif

#endif
