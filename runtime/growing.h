/* Device and staging memory whose size is known only when tokens have chosen their experts: it
 * grows when it is too small, and settles after a few steps. */
#ifndef TSR_RUNTIME_GROWING_H
#define TSR_RUNTIME_GROWING_H

#include "runtime/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Zeroed is empty. */
typedef struct tsr_growing {
    void *memory;
    size_t room; /* bytes */
} tsr_growing;

/** A block is taken larger than was asked for by one part in so many, so that slowly rising loads
 *  do not grow it each time. */
enum { TSR_GROWING_SPARE = 4 };

/** Bytes that are taken for `bytes`. */
size_t tsr_growing_room(size_t bytes);

/** Make room for `bytes` in device memory, or in the staging memory of a device. What the block
 *  held is lost when it grows; nothing that is queued may need it. Errors: those of the allocation;
 *  the block is empty then. */
TSR_NODISCARD tsr_status tsr_growing_device(tsr_device *device, tsr_mem_tag tag, size_t bytes,
                                            tsr_growing *block);
TSR_NODISCARD tsr_status tsr_growing_staging(tsr_device *device, tsr_mem_tag tag, size_t bytes,
                                             tsr_growing *block);
/** Make device memory what `bytes` alone would have taken, larger or smaller; else as above. */
TSR_NODISCARD tsr_status tsr_growing_fit(tsr_device *device, tsr_mem_tag tag, size_t bytes,
                                         tsr_growing *block);
void tsr_growing_free_device(tsr_device *device, tsr_growing *block);
void tsr_growing_free_staging(tsr_device *device, tsr_growing *block);

#ifdef __cplusplus
}
#endif

#endif
