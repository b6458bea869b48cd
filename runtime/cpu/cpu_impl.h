/* What the parts of the cpu device share: its struct, its tables, what all instruction sets use. */
#ifndef TSR_RUNTIME_CPU_IMPL_H
#define TSR_RUNTIME_CPU_IMPL_H

#include "runtime/cpu/simd/own_gemm.h"
#include "runtime/device_impl.h"

typedef struct tsr_gemm_cache tsr_gemm_cache; /* oneDNN engine, primitives, scratch: gemm_cache.h */

typedef struct tsr_cpu_device {
    tsr_device base;
    tsr_gemm_cache *gemms;
    const tsr_own_gemm *own_gemm[2]; /* by dtype; NULL: oneDNN is best on this instruction set */
    void *scratch; /* for kernels that need some: grown by the *_reserve calls only */
    size_t scratch_bytes;
} tsr_cpu_device;

/** Open the cpu device of this name: "cpu", or one instruction set; see runtime/device.h. */
TSR_NODISCARD tsr_status tsr_cpu_open(const char *name, int threads, tsr_device **out);

/** Grow the device's scratch to at least bytes (kept until close). Not on the step path. */
TSR_NODISCARD tsr_status tsr_cpu_scratch_reserve(tsr_device *device, size_t bytes);
size_t tsr_cpu_scratch_bytes(const tsr_device *device);

/* memory, streams and events: calls run at once, so streams and events have nothing to do */
void tsr_cpu_close(tsr_device *);
tsr_status tsr_cpu_alloc(tsr_device *, tsr_mem_tag, size_t bytes, void **out);
void tsr_cpu_free(tsr_device *, void *block);
tsr_status tsr_cpu_stream_create(tsr_device *, tsr_stream **out);
void tsr_cpu_stream_destroy(tsr_stream *);
tsr_status tsr_cpu_stream_wait(tsr_stream *);
tsr_status tsr_cpu_event_create(tsr_device *, tsr_event **out);
void tsr_cpu_event_destroy(tsr_event *);
tsr_status tsr_cpu_event_record(tsr_event *, tsr_stream *);
tsr_status tsr_cpu_stream_wait_event(tsr_stream *, tsr_event *);
tsr_status tsr_cpu_event_wait(tsr_event *);
tsr_status tsr_cpu_copy(tsr_device *, void *to, const void *from, size_t bytes, tsr_copy_kind,
                        tsr_stream *);
tsr_status tsr_cpu_zero(tsr_device *, void *block, size_t bytes, tsr_stream *);

/* the part of a table that is the same for all of them */
#define TSR_CPU_HOST_OPS                                                                           \
    .close = tsr_cpu_close, .alloc = tsr_cpu_alloc, .free = tsr_cpu_free,                          \
    .alloc_staging = tsr_cpu_alloc, .free_staging = tsr_cpu_free,                                  \
    .stream_create = tsr_cpu_stream_create, .stream_destroy = tsr_cpu_stream_destroy,              \
    .stream_wait = tsr_cpu_stream_wait, .event_create = tsr_cpu_event_create,                      \
    .event_destroy = tsr_cpu_event_destroy, .event_record = tsr_cpu_event_record,                  \
    .stream_wait_event = tsr_cpu_stream_wait_event, .event_wait = tsr_cpu_event_wait,              \
    .copy = tsr_cpu_copy, .zero = tsr_cpu_zero, .scratch_bytes = tsr_cpu_scratch_bytes,            \
    .sort_by_expert = tsr_cpu_sort_by_expert, .gather_f32 = tsr_cpu_gather_f32

/* matrix products, for every instruction set: by a kernel of our own, or else by oneDNN */
tsr_status tsr_cpu_gemm(tsr_device *, const tsr_gemm_args *, tsr_stream *);
tsr_status tsr_cpu_gemm_reserve(tsr_device *, const tsr_gemm_args *);
tsr_status tsr_cpu_grouped_gemm(tsr_device *, const tsr_grouped_gemm_args *, tsr_stream *);
tsr_status tsr_cpu_grouped_gemm_reserve(tsr_device *, const tsr_grouped_gemm_args *);

/* index work that no vector unit helps with: one version */
tsr_status tsr_cpu_sort_by_expert(tsr_device *, const tsr_sort_args *, tsr_stream *);
tsr_status tsr_cpu_gather_f32(tsr_device *, const float *rows, const int32_t *row_of, int64_t count,
                              float *out, tsr_stream *);

/* tables, one an instruction set, and the readable twin of them all */
const tsr_device_ops *tsr_generic_table(void);
const tsr_device_ops *tsr_avx2_table(void);
const tsr_device_ops *tsr_avx512_table(void);
const tsr_device_ops *tsr_avx512bf16_table(void);
const tsr_device_ops *tsr_amx_table(void);
const tsr_device_ops *tsr_plain_table(void);

#endif
