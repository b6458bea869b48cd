/* The one wrapper around HDF5: its lock, its errors as statuses, and the few calls that are used.
 *
 * The library is not safe for threads: whoever calls it holds tsr_h5_lock(). The functions of
 * checkpoints_impl.h that need it take the lock themselves. */
#ifndef TSR_HDF5_IMPL_H
#define TSR_HDF5_IMPL_H

#include "checkpoints/checkpoints_impl.h"

#include <hdf5.h>

typedef struct tsr_h5_file {
    hid_t id;
    char path[TSR_TEXT_MAX]; /* for messages */
} tsr_h5_file;

/** Also turns HDF5's own error printing off. */
void tsr_h5_lock(void);
void tsr_h5_unlock(void);

/** Fail with path, what was tried, and HDF5's innermost reason. Call before any other HDF5 call. */
tsr_status tsr_h5_fail(tsr_status code, const char *path, const char *what);

/** New file in memory: a descriptor the caller closes after tsr_h5_close(). */
TSR_NODISCARD tsr_status tsr_h5_create(const char *name, size_t user_block, tsr_h5_file *out,
                                       int *descriptor_out);
TSR_NODISCARD tsr_status tsr_h5_open(const char *path, tsr_h5_file *out);
TSR_NODISCARD tsr_status tsr_h5_close(tsr_h5_file *file);

/** Writing: objects get one value, a text of any length, a digest as 16 hex digits. */
TSR_NODISCARD tsr_status tsr_h5_put_number(const tsr_h5_file *file, hid_t object, const char *name,
                                           hid_t type, const void *value);
TSR_NODISCARD tsr_status tsr_h5_put_text(const tsr_h5_file *file, hid_t object, const char *name,
                                         const char *text);
TSR_NODISCARD tsr_status tsr_h5_put_hex(const tsr_h5_file *file, hid_t object, const char *name,
                                        uint64_t value);
TSR_NODISCARD tsr_status tsr_h5_put_group(const tsr_h5_file *file, const char *name,
                                          hid_t *group_out);
/** dims = 0: a scalar. */
TSR_NODISCARD tsr_status tsr_h5_put_array(const tsr_h5_file *file, hid_t group, const char *name,
                                          hid_t type, int dims, const hsize_t *shape,
                                          const void *data);

/** One row of /shards. */
typedef struct tsr_ckpt_shard_record {
    char file[32];
    uint64_t bytes;
    char digest[16]; /* hex, without an end */
} tsr_ckpt_shard_record;
/** Its type in memory and in the file; close with H5Tclose(). */
hid_t tsr_ckpt_shard_record_type(void);

/** Reading: existence, class and size are checked before anything is taken. */
TSR_NODISCARD tsr_status tsr_h5_get_i64(const tsr_h5_file *file, hid_t object, const char *name,
                                        int64_t *out);
TSR_NODISCARD tsr_status tsr_h5_get_text(const tsr_h5_file *file, hid_t object, const char *name,
                                         char **out);
TSR_NODISCARD tsr_status tsr_h5_get_hex(const tsr_h5_file *file, hid_t object, const char *name,
                                        uint64_t *out);
/** Open an object that must exist; close with H5Oclose(). */
TSR_NODISCARD tsr_status tsr_h5_get_object(const tsr_h5_file *file, const char *path,
                                           H5I_type_t kind, hid_t *out);
/** Shape of a dataset of at most 3 dimensions. */
TSR_NODISCARD tsr_status tsr_h5_get_shape(const tsr_h5_file *file, hid_t dataset, const char *name,
                                          int *dims_out, int64_t shape_out[3]);

/** Fill shape and digests of the tensor whose name is set, the same for all kinds. */
TSR_NODISCARD tsr_status tsr_h5_get_tensor(const tsr_h5_file *file, tsr_ckpt_tensor *tensor);

#endif
