#include "runtime/device_impl.h"

#include "runtime/cpu/cpu_impl.h"
#include "runtime/cuda_module.h"

#include <string.h>

#define REQUIRED(entry)                                                                            \
    {                                                                                              \
#entry, offsetof(tsr_device_ops, entry)                                                    \
    }

/* A backend that lacks one of these is refused when it is opened, not when it is first called. */
static const struct required_entry {
    const char *name;
    size_t offset;
} required[] = {
    REQUIRED(close),
    REQUIRED(alloc),
    REQUIRED(free),
    REQUIRED(alloc_staging),
    REQUIRED(free_staging),
    REQUIRED(stream_create),
    REQUIRED(stream_destroy),
    REQUIRED(stream_wait),
    REQUIRED(event_create),
    REQUIRED(event_destroy),
    REQUIRED(event_record),
    REQUIRED(stream_wait_event),
    REQUIRED(event_wait),
    REQUIRED(copy),
    REQUIRED(zero),
    REQUIRED(gemm),
    REQUIRED(grouped_gemm),
    REQUIRED(rmsnorm_forward),
    REQUIRED(rmsnorm_backward_input),
    REQUIRED(rmsnorm_backward_weight),
    REQUIRED(rope),
    REQUIRED(swiglu_forward),
    REQUIRED(swiglu_backward),
    REQUIRED(attention_forward),
    REQUIRED(attention_backward),
    REQUIRED(route_forward),
    REQUIRED(route_backward),
    REQUIRED(sort_by_expert),
    REQUIRED(permute),
    REQUIRED(unpermute),
    REQUIRED(gather_f32),
    REQUIRED(embedding_forward),
    REQUIRED(embedding_backward),
    REQUIRED(cross_entropy),
    REQUIRED(convert),
    REQUIRED(add_f32),
    REQUIRED(sum),
    REQUIRED(sum_squares),
    REQUIRED(adamw),
};

tsr_status tsr_device_check_table(const tsr_device_ops *ops, const char *name)
{
    for (size_t i = 0; i < sizeof required / sizeof *required; ++i) {
        void (*entry)(void) = NULL;

        memcpy(&entry, (const char *)ops + required[i].offset, sizeof entry);
        TSR_CHECK(entry != NULL, TSR_ERR_INTERNAL, "device %s has no operator %s", name,
                  required[i].name);
    }
    return TSR_OK;
}

tsr_status tsr_device_open(const char *name, int threads, tsr_device **out)
{
    TSR_CHECK(name != NULL && out != NULL, TSR_ERR_ARG, "device name and out must not be NULL");
    *out = NULL;
    TSR_CHECK(threads >= 1, TSR_ERR_ARG, "threads = %d, must be >= 1", threads);
    if (strcmp(name, "cpu") == 0 || strncmp(name, "cpu:", 4) == 0) {
        return tsr_cpu_open(name, threads, out);
    }
    if (strcmp(name, "cuda") == 0 || strncmp(name, "cuda:", 5) == 0) {
        return tsr_cuda_module_open(name, threads, out);
    }
    return TSR_FAIL(TSR_ERR_ARG,
                    "device = %s, must be cpu, cpu:generic, cpu:avx2, cpu:avx512, cpu:avx512bf16, "
                    "cpu:amx, cpu:plain, cuda or cuda:N",
                    name);
}

void tsr_device_close(tsr_device **device_p)
{
    if (device_p == NULL || *device_p == NULL) {
        return;
    }
    (*device_p)->ops->close(*device_p);
    *device_p = NULL;
}

const char *tsr_device_name(const tsr_device *device)
{
    return device->name;
}

int tsr_device_threads(const tsr_device *device)
{
    return device->threads;
}

const char *tsr_device_description(const tsr_device *device)
{
    return device->description;
}

bool tsr_device_has_fast_bf16(const tsr_device *device)
{
    return device->has_fast_bf16;
}

size_t tsr_device_peak_bytes(const tsr_device *device)
{
    return device->peak_bytes;
}

size_t tsr_device_scratch_bytes(const tsr_device *device)
{
    return device->ops->scratch_bytes != NULL ? device->ops->scratch_bytes(device) : 0;
}

bool tsr_device_is_host(const tsr_device *device)
{
    return device->is_host;
}

tsr_status tsr_device_alloc(tsr_device *device, tsr_mem_tag tag, size_t bytes, void **out)
{
    return device->ops->alloc(device, tag, bytes, out);
}

void tsr_device_free(tsr_device *device, void *block)
{
    if (block != NULL) {
        device->ops->free(device, block);
    }
}

tsr_status tsr_device_alloc_staging(tsr_device *device, tsr_mem_tag tag, size_t bytes, void **out)
{
    return device->ops->alloc_staging(device, tag, bytes, out);
}

void tsr_device_free_staging(tsr_device *device, void *block)
{
    if (block != NULL) {
        device->ops->free_staging(device, block);
    }
}

tsr_status tsr_stream_create(tsr_device *device, tsr_stream **out)
{
    return device->ops->stream_create(device, out);
}

void tsr_stream_destroy(tsr_stream **stream_p)
{
    if (stream_p == NULL || *stream_p == NULL) {
        return;
    }
    (*stream_p)->device->ops->stream_destroy(*stream_p);
    *stream_p = NULL;
}

tsr_status tsr_stream_wait(tsr_stream *stream)
{
    return stream->waiter != NULL ? stream->waiter(stream)
                                  : stream->device->ops->stream_wait(stream);
}

void tsr_stream_set_waiter(tsr_stream *stream, tsr_stream_waiter *waiter)
{
    stream->waiter = waiter;
}

void *tsr_stream_handle(const tsr_stream *stream)
{
    const tsr_device_ops *ops = stream->device->ops;

    return ops->stream_handle != NULL ? ops->stream_handle(stream) : NULL;
}

tsr_status tsr_event_create(tsr_device *device, tsr_event **out)
{
    return device->ops->event_create(device, out);
}

void tsr_event_destroy(tsr_event **event_p)
{
    if (event_p == NULL || *event_p == NULL) {
        return;
    }
    (*event_p)->device->ops->event_destroy(*event_p);
    *event_p = NULL;
}

tsr_status tsr_event_record(tsr_event *event, tsr_stream *stream)
{
    event->waiter = stream->waiter;
    return event->device->ops->event_record(event, stream);
}

tsr_status tsr_stream_wait_event(tsr_stream *stream, tsr_event *event)
{
    if (event->waiter != NULL) {
        stream->waiter = event->waiter;
    }
    return stream->device->ops->stream_wait_event(stream, event);
}

tsr_status tsr_event_wait(tsr_event *event)
{
    return event->device->ops->event_wait(event);
}

tsr_status tsr_device_copy(tsr_device *device, void *to, const void *from, size_t bytes,
                           tsr_copy_kind kind, tsr_stream *stream)
{
    if (bytes == 0) {
        return TSR_OK;
    }
    TSR_CHECK(to != NULL && from != NULL, TSR_ERR_ARG, "copy of %zu bytes from or to NULL", bytes);
    return device->ops->copy(device, to, from, bytes, kind, stream);
}

tsr_status tsr_device_zero(tsr_device *device, void *block, size_t bytes, tsr_stream *stream)
{
    if (bytes == 0) {
        return TSR_OK;
    }
    TSR_CHECK(block != NULL, TSR_ERR_ARG, "zero of %zu bytes at NULL", bytes);
    return device->ops->zero(device, block, bytes, stream);
}
