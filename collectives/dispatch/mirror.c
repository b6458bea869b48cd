/* Index lists: made on the host, used on the device. */
#include "collectives/dispatch/dispatch_impl.h"

tsr_status mirror_reserve(tsr_device *device, mirror *m, size_t bytes)
{
    TSR_TRY(host_room(device, &m->host, bytes));
    return tsr_device_is_host(device) ? TSR_OK : device_room(device, &m->device, bytes);
}

void mirror_free(tsr_device *device, mirror *m)
{
    tsr_growing_free_staging(device, &m->host);
    tsr_growing_free_device(device, &m->device);
}

tsr_status mirror_send(tsr_device *device, const mirror *m, size_t bytes, tsr_stream *stream)
{
    if (tsr_device_is_host(device)) {
        return TSR_OK;
    }
    return tsr_device_copy(device, m->device.memory, m->host.memory, bytes, TSR_COPY_HOST_TO_DEVICE,
                           stream);
}
