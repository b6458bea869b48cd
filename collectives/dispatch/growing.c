/* Memory of dispatch: sizes are known only when tokens have chosen their experts, and settle after
 * a few steps. */
#include "collectives/dispatch/dispatch_impl.h"

/* a quarter more than was asked for, so that slowly rising loads do not grow it each time */
static size_t with_spare(size_t bytes)
{
    return bytes + bytes / 4 + 256;
}

tsr_status growing_on_device(tsr_device *device, growing *block, size_t bytes)
{
    if (bytes <= block->room && block->memory != NULL) {
        return TSR_OK;
    }
    tsr_device_free(device, block->memory);
    *block = (growing){0};
    TSR_TRY(tsr_device_alloc(device, TSR_MEM_ACTIVATIONS, with_spare(bytes), &block->memory));
    block->room = with_spare(bytes);
    return TSR_OK;
}

tsr_status growing_on_host(tsr_device *device, growing *block, size_t bytes)
{
    if (bytes <= block->room && block->memory != NULL) {
        return TSR_OK;
    }
    tsr_device_free_staging(device, block->memory);
    *block = (growing){0};
    TSR_TRY(tsr_device_alloc_staging(device, TSR_MEM_COMM, with_spare(bytes), &block->memory));
    block->room = with_spare(bytes);
    return TSR_OK;
}

void growing_free_device(tsr_device *device, growing *block)
{
    tsr_device_free(device, block->memory);
    *block = (growing){0};
}

void growing_free_host(tsr_device *device, growing *block)
{
    tsr_device_free_staging(device, block->memory);
    *block = (growing){0};
}

tsr_status mirror_reserve(tsr_device *device, mirror *m, size_t bytes)
{
    TSR_TRY(growing_on_host(device, &m->host, bytes));
    return tsr_device_is_host(device) ? TSR_OK : growing_on_device(device, &m->device, bytes);
}

void mirror_free(tsr_device *device, mirror *m)
{
    growing_free_host(device, &m->host);
    growing_free_device(device, &m->device);
}

tsr_status mirror_send(tsr_device *device, const mirror *m, size_t bytes, tsr_stream *stream)
{
    if (tsr_device_is_host(device)) {
        return TSR_OK;
    }
    return tsr_device_copy(device, m->device.memory, m->host.memory, bytes, TSR_COPY_HOST_TO_DEVICE,
                           stream);
}
