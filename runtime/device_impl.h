/* The table behind runtime/device.h and runtime/ops.h; for runtime and its backends only.
 *
 * The front ends (device.c, ops.c) validate, time and skip empty work; a backend gets valid
 * arguments. Every entry is required but those marked optional. */
#ifndef TSR_RUNTIME_DEVICE_IMPL_H
#define TSR_RUNTIME_DEVICE_IMPL_H

#include "runtime/ops.h"

typedef struct tsr_device_ops {
    void (*close)(tsr_device *device);
    tsr_status (*alloc)(tsr_device *, tsr_mem_tag, size_t bytes, void **out);
    void (*free)(tsr_device *, void *block);
    tsr_status (*alloc_staging)(tsr_device *, tsr_mem_tag, size_t bytes, void **out);
    void (*free_staging)(tsr_device *, void *block);
    tsr_status (*stream_create)(tsr_device *, tsr_stream **out);
    void (*stream_destroy)(tsr_stream *);
    tsr_status (*stream_wait)(tsr_stream *);
    void *(*stream_handle)(const tsr_stream *); /* optional: no library's stream is below */
    tsr_status (*event_create)(tsr_device *, tsr_event **out);
    void (*event_destroy)(tsr_event *);
    tsr_status (*event_record)(tsr_event *, tsr_stream *);
    tsr_status (*stream_wait_event)(tsr_stream *, tsr_event *);
    tsr_status (*event_wait)(tsr_event *);
    tsr_status (*copy)(tsr_device *, void *to, const void *from, size_t bytes, tsr_copy_kind,
                       tsr_stream *);
    tsr_status (*zero)(tsr_device *, void *block, size_t bytes, tsr_stream *);
    size_t (*scratch_bytes)(const tsr_device *); /* optional: operators take none */

    tsr_status (*gemm)(tsr_device *, const tsr_gemm_args *, tsr_stream *);
    tsr_status (*gemm_reserve)(tsr_device *, const tsr_gemm_args *); /* optional: nothing to do */
    tsr_status (*grouped_gemm)(tsr_device *, const tsr_grouped_gemm_args *, tsr_stream *);
    tsr_status (*grouped_gemm_reserve)(tsr_device *, const tsr_grouped_gemm_args *); /* optional */
    tsr_status (*rmsnorm_forward)(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
    tsr_status (*rmsnorm_backward_input)(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
    tsr_status (*rmsnorm_backward_weight)(tsr_device *, const tsr_rmsnorm_args *, tsr_stream *);
    tsr_status (*rope)(tsr_device *, const tsr_rope_args *, tsr_stream *);
    tsr_status (*swiglu_forward)(tsr_device *, const tsr_swiglu_args *, tsr_stream *);
    tsr_status (*swiglu_backward)(tsr_device *, const tsr_swiglu_args *, tsr_stream *);
    tsr_status (*attention_forward)(tsr_device *, const tsr_attention_args *, tsr_stream *);
    tsr_status (*attention_backward)(tsr_device *, const tsr_attention_args *, tsr_stream *);
    tsr_status (*attention_reserve)(tsr_device *, const tsr_attention_args *); /* optional */
    tsr_status (*route_forward)(tsr_device *, const tsr_route_args *, tsr_stream *);
    tsr_status (*route_backward)(tsr_device *, const tsr_route_args *, tsr_stream *);
    tsr_status (*sort_by_expert)(tsr_device *, const tsr_sort_args *, tsr_stream *);
    tsr_status (*permute)(tsr_device *, const tsr_permute_args *, tsr_stream *);
    tsr_status (*unpermute)(tsr_device *, const tsr_unpermute_args *, tsr_stream *);
    tsr_status (*gather_f32)(tsr_device *, const float *rows, const int32_t *row_of, int64_t count,
                             float *out, tsr_stream *);
    tsr_status (*embedding_forward)(tsr_device *, const tsr_embedding_args *, tsr_stream *);
    tsr_status (*embedding_backward)(tsr_device *, const tsr_embedding_args *, tsr_stream *);
    tsr_status (*cross_entropy)(tsr_device *, const tsr_cross_entropy_args *, tsr_stream *);
    tsr_status (*convert)(tsr_device *, const void *from, tsr_dtype from_dtype, void *to,
                          tsr_dtype to_dtype, int64_t count, tsr_stream *);
    tsr_status (*add_f32)(tsr_device *, const float *x, float *y, int64_t count, tsr_stream *);
    tsr_status (*sum)(tsr_device *, const float *x, int64_t count, double *out, tsr_stream *);
    tsr_status (*sum_squares)(tsr_device *, const float *x, int64_t count, double *out,
                              tsr_stream *);
    tsr_status (*adamw)(tsr_device *, const tsr_adamw_args *, tsr_stream *);
} tsr_device_ops;

/** Refuse a table that lacks a required entry, by the entry's name (TSR_ERR_INTERNAL). */
TSR_NODISCARD tsr_status tsr_device_check_table(const tsr_device_ops *ops, const char *name);

struct tsr_device { /* base of every backend's device */
    const tsr_device_ops *ops;
    int threads;
    bool has_fast_bf16;
    bool is_host;      /* its memory is the host's own */
    size_t peak_bytes; /* most of its memory in use at once; 0 if is_host */
    char name[32];
    char description[128];
};

struct tsr_stream { /* base */
    tsr_device *device;
    tsr_stream_waiter *waiter; /* of a communicator; NULL: the device's */
};

struct tsr_event { /* base */
    tsr_device *device;
    tsr_stream_waiter *waiter; /* of the stream that it was recorded on */
};

#endif
