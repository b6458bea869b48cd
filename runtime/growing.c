#include "runtime/growing.h"

size_t tsr_growing_room(size_t bytes)
{
    return bytes + bytes / TSR_GROWING_SPARE + 256;
}

tsr_status tsr_growing_device(tsr_device *device, tsr_mem_tag tag, size_t bytes, tsr_growing *block)
{
    if (block->memory != NULL && bytes <= block->room) {
        return TSR_OK;
    }
    tsr_growing_free_device(device, block);
    TSR_TRY(tsr_device_alloc(device, tag, tsr_growing_room(bytes), &block->memory));
    block->room = tsr_growing_room(bytes);
    return TSR_OK;
}

tsr_status tsr_growing_staging(tsr_device *device, tsr_mem_tag tag, size_t bytes,
                               tsr_growing *block)
{
    if (block->memory != NULL && bytes <= block->room) {
        return TSR_OK;
    }
    tsr_growing_free_staging(device, block);
    TSR_TRY(tsr_device_alloc_staging(device, tag, tsr_growing_room(bytes), &block->memory));
    block->room = tsr_growing_room(bytes);
    return TSR_OK;
}

tsr_status tsr_growing_fit(tsr_device *device, tsr_mem_tag tag, size_t bytes, tsr_growing *block)
{
    if (block->memory != NULL && block->room == tsr_growing_room(bytes)) {
        return TSR_OK;
    }
    tsr_growing_free_device(device, block);
    return tsr_growing_device(device, tag, bytes, block);
}

void tsr_growing_free_device(tsr_device *device, tsr_growing *block)
{
    tsr_device_free(device, block->memory);
    *block = (tsr_growing){0};
}

void tsr_growing_free_staging(tsr_device *device, tsr_growing *block)
{
    tsr_device_free_staging(device, block->memory);
    *block = (tsr_growing){0};
}
