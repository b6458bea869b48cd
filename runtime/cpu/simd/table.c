#include "runtime/cpu/cpu_impl.h"
#include "runtime/cpu/simd/simd.h"

const tsr_device_ops *TSR_SIMD(table)(void)
{
    static const tsr_device_ops table = {
        .close = tsr_cpu_close,
        .alloc = tsr_cpu_alloc,
        .free = tsr_cpu_free,
        .alloc_staging = tsr_cpu_alloc,
        .free_staging = tsr_cpu_free,
        .stream_create = tsr_cpu_stream_create,
        .stream_destroy = tsr_cpu_stream_destroy,
        .stream_wait = tsr_cpu_stream_wait,
        .event_create = tsr_cpu_event_create,
        .event_destroy = tsr_cpu_event_destroy,
        .event_record = tsr_cpu_event_record,
        .stream_wait_event = tsr_cpu_stream_wait_event,
        .event_wait = tsr_cpu_event_wait,
        .copy = tsr_cpu_copy,
        .zero = tsr_cpu_zero,
    };

    return &table;
}
