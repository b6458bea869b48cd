/* Writing the manifest: the commit record. HDF5 builds it in memory; 512 bytes in front of the HDF5
 * part carry the digest of the rest, so that a damaged manifest is never given to the library. */
#define XXH_INLINE_ALL
#include "checkpoints/hdf5_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

void tsr_ckpt_manifest_free(tsr_ckpt_manifest *manifest)
{
    tsr_mem_free(manifest->config_text);
    tsr_mem_free(manifest->router_bias);
    for (int i = 0; i < manifest->array_count; ++i) {
        tsr_mem_free(manifest->arrays[i].values);
    }
    tsr_mem_free(manifest->arrays);
    tsr_mem_free(manifest->tensors);
    tsr_mem_free(manifest->shards);
    *manifest = (tsr_ckpt_manifest){0};
}

void tsr_ckpt_user_block(uint64_t digest, char out[TSR_CKPT_USER_BLOCK])
{
    memset(out, 0, TSR_CKPT_USER_BLOCK);
    (void)snprintf(out, TSR_CKPT_USER_BLOCK, "tessera manifest %d xxh3 %016" PRIx64 "\n",
                   TSR_CKPT_FORMAT, digest);
}

/* Record of /shards; the layout in the file is packed by HDF5's own offsets. */
hid_t tsr_ckpt_shard_record_type(void)
{
    const hid_t type = H5Tcreate(H5T_COMPOUND, sizeof(tsr_ckpt_shard_record));
    const hid_t file = H5Tcopy(H5T_C_S1), digest = H5Tcopy(H5T_C_S1);

    (void)H5Tset_size(file, sizeof((tsr_ckpt_shard_record *)0)->file);
    (void)H5Tset_size(digest, sizeof((tsr_ckpt_shard_record *)0)->digest);
    (void)H5Tset_strpad(digest, H5T_STR_NULLPAD);
    (void)H5Tinsert(type, "file", offsetof(tsr_ckpt_shard_record, file), file);
    (void)H5Tinsert(type, "bytes", offsetof(tsr_ckpt_shard_record, bytes), H5T_NATIVE_UINT64);
    (void)H5Tinsert(type, "digest", offsetof(tsr_ckpt_shard_record, digest), digest);
    (void)H5Tclose(digest);
    (void)H5Tclose(file);
    return type;
}

static tsr_status put_shards(const tsr_h5_file *file, const tsr_ckpt_manifest *manifest)
{
    const hsize_t shape[1] = {(hsize_t)manifest->shard_count};
    void *block = NULL;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, manifest->shard_count,
                                sizeof(tsr_ckpt_shard_record), &block));
    tsr_ckpt_shard_record *records = block;
    for (int i = 0; i < manifest->shard_count; ++i) {
        char digits[17];
        tsr_ckpt_shard_name(i, records[i].file);
        records[i].bytes = manifest->shards[i].bytes;
        (void)snprintf(digits, sizeof digits, "%016" PRIx64, manifest->shards[i].digest);
        memcpy(records[i].digest, digits, sizeof records[i].digest);
    }
    const hid_t type = tsr_ckpt_shard_record_type();
    const tsr_status st = tsr_h5_put_array(file, file->id, "shards", type, 1, shape, records);
    (void)H5Tclose(type);
    tsr_mem_free(records);
    return st;
}

static tsr_status put_state(const tsr_h5_file *file, const tsr_ckpt_manifest *manifest)
{
    const hsize_t shape[2] = {(hsize_t)manifest->layers, (hsize_t)manifest->experts};
    hid_t group = -1;
    tsr_status st;

    TSR_TRY(tsr_h5_put_group(file, "state", &group));
    st = tsr_h5_put_array(file, group, "data_position", H5T_NATIVE_INT64, 0, NULL,
                          &manifest->data_position);
    if (st == TSR_OK) {
        st = tsr_h5_put_array(file, group, "seed", H5T_NATIVE_UINT64, 0, NULL, &manifest->seed);
    }
    if (st == TSR_OK && manifest->router_bias != NULL) {
        st = tsr_h5_put_array(file, group, "router_bias", H5T_IEEE_F32LE, 2, shape,
                              manifest->router_bias);
    }
    for (int i = 0; i < manifest->array_count && st == TSR_OK; ++i) {
        const tsr_ckpt_array *array = &manifest->arrays[i];
        const hsize_t length[1] = {(hsize_t)array->count};
        st = tsr_h5_put_array(file, group, array->name, H5T_IEEE_F64LE, 1, length, array->values);
    }
    (void)H5Gclose(group);
    return st;
}

static tsr_status put_attributes(const tsr_h5_file *file, const tsr_ckpt_manifest *manifest)
{
    const hid_t root = file->id;
    const int format = TSR_CKPT_FORMAT;

    TSR_TRY(tsr_h5_put_number(file, root, "format", H5T_NATIVE_INT, &format));
    TSR_TRY(tsr_h5_put_number(file, root, "step", H5T_NATIVE_INT64, &manifest->step));
    TSR_TRY(tsr_h5_put_number(file, root, "tokens", H5T_NATIVE_INT64, &manifest->tokens));
    TSR_TRY(tsr_h5_put_text(file, root, "config", manifest->config_text));
    TSR_TRY(tsr_h5_put_text(file, root, "version", manifest->version));
    return tsr_h5_put_hex(file, root, "digest", manifest->digest);
}

/* ---- virtual datasets ----------------------------------------------------------------------- */

/* Map the rows of one slice; source names are relative, so that the folder can be moved. */
static bool map_slice(hid_t create, hid_t space, const tsr_ckpt_tensor *tensor,
                      const tsr_ckpt_slice *slice, const char *source_set)
{
    const hsize_t source_shape[2] = {(hsize_t)(slice->row_end - slice->row_begin),
                                     (hsize_t)tensor->width};
    const hid_t source = H5Screate_simple(2, source_shape, NULL);
    tsr_ckpt_box boxes[3];
    char file[32];
    bool ok = source >= 0;

    tsr_ckpt_shard_name(slice->rank, file);
    const int count = tsr_ckpt_boxes(tensor, slice->row_begin, slice->row_end, boxes);
    for (int i = 0; i < count && ok; ++i) {
        const tsr_ckpt_box *box = &boxes[i];
        const hsize_t from[2] = {(hsize_t)(box->row_begin - slice->row_begin), 0};
        const hsize_t size[2] = {(hsize_t)box->rows, source_shape[1]};
        hsize_t start[3], extent[3];
        for (int axis = 0; axis < 3; ++axis) {
            start[axis] = (hsize_t)box->start[axis];
            extent[axis] = (hsize_t)box->count[axis];
        }
        ok = H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, extent, NULL) >= 0 &&
             H5Sselect_hyperslab(source, H5S_SELECT_SET, from, NULL, size, NULL) >= 0 &&
             H5Pset_virtual(create, space, file, source_set, source) >= 0;
    }
    (void)H5Sclose(source);
    return ok;
}

static tsr_status put_virtual(const tsr_h5_file *file, hid_t group, int kind,
                              const tsr_ckpt_manifest *manifest, int param,
                              const tsr_ckpt_slice *slices, int slice_count)
{
    const tsr_ckpt_tensor *tensor = &manifest->tensors[param];
    const hsize_t shape[3] = {(hsize_t)tensor->shape[0], (hsize_t)tensor->shape[1],
                              (hsize_t)tensor->shape[2]};
    const hid_t create = H5Pcreate(H5P_DATASET_CREATE);
    const hid_t space = H5Screate_simple(tensor->dims, shape, NULL);
    char source[TSR_CKPT_NAME_MAX + 64], name[TSR_CKPT_NAME_MAX + 32];
    bool ok = H5Pset_obj_track_times(create, false) >= 0;
    tsr_status st = TSR_OK;

    for (int i = 0; i < slice_count && ok; ++i) {
        if (slices[i].param == param) {
            tsr_ckpt_dataset_name(tensor->name, slices, i, name);
            (void)snprintf(source, sizeof source, "/%s/%s", tsr_ckpt_kind_names[kind], name);
            ok = map_slice(create, space, tensor, &slices[i], source);
        }
    }
    (void)H5Sselect_all(space);
    const hid_t set = !ok ? -1
                          : H5Dcreate2(group, tensor->name, H5T_IEEE_F32LE, space, H5P_DEFAULT,
                                       create, H5P_DEFAULT);
    if (set < 0) {
        st = tsr_h5_fail(TSR_ERR_INTERNAL, file->path, "map a tensor");
    } else {
        st = tsr_h5_put_hex(file, set, "digest", tensor->digest[kind]);
    }
    (void)H5Dclose(set);
    (void)H5Sclose(space);
    (void)H5Pclose(create);
    return st;
}

static tsr_status put_kind(const tsr_h5_file *file, int kind, const tsr_ckpt_manifest *manifest,
                           const tsr_ckpt_slice *slices, int slice_count)
{
    hid_t group = -1;
    int at = 0;
    tsr_status st = TSR_OK;

    TSR_TRY(tsr_h5_put_group(file, tsr_ckpt_kind_names[kind], &group));
    for (int param = 0; param < manifest->tensor_count && st == TSR_OK; ++param) {
        int end = at; /* slices are ordered by parameter */
        while (end < slice_count && slices[end].param == param) {
            ++end;
        }
        st = put_virtual(file, group, kind, manifest, param, slices + at, end - at);
        at = end;
    }
    (void)H5Gclose(group);
    return st;
}

static tsr_status build(const char *path, const tsr_ckpt_manifest *manifest,
                        const tsr_ckpt_slice *slices, int slice_count, int *descriptor_out)
{
    tsr_h5_file file;
    int fd = -1;

    TSR_TRY(tsr_h5_create(path, TSR_CKPT_USER_BLOCK, &file, &fd));
    tsr_status st = put_attributes(&file, manifest);
    tsr_ckpt_point();
    st = st != TSR_OK ? st : put_state(&file, manifest);
    tsr_ckpt_point();
    st = st != TSR_OK ? st : put_shards(&file, manifest);
    for (int kind = 0; kind < TSR_CKPT_KINDS && st == TSR_OK; ++kind) {
        tsr_ckpt_point();
        st = put_kind(&file, kind, manifest, slices, slice_count);
    }
    const tsr_status closed = tsr_h5_close(&file);
    st = st != TSR_OK ? st : closed;
    if (st != TSR_OK) {
        (void)close(fd);
        return st;
    }
    *descriptor_out = fd;
    return TSR_OK;
}

/* ---- to the disk ---------------------------------------------------------------------------- */

static tsr_status fetch(int fd, char **image_out, size_t *bytes_out)
{
    struct stat info;
    void *block = NULL;

    TSR_CHECK(fstat(fd, &info) == 0 && info.st_size > TSR_CKPT_USER_BLOCK, TSR_ERR_INTERNAL,
              "the manifest in memory is empty");
    const size_t bytes = (size_t)info.st_size;
    TSR_TRY(tsr_mem_alloc(TSR_MEM_CHECKPOINT, bytes, &block));
    for (size_t at = 0; at < bytes;) {
        const ssize_t got = pread(fd, (char *)block + at, bytes - at, (off_t)at);
        if (got <= 0) {
            tsr_mem_free(block);
            return TSR_FAIL(TSR_ERR_IO, "memory file: %s", strerror(errno));
        }
        at += (size_t)got;
    }
    *image_out = block;
    *bytes_out = bytes;
    return TSR_OK;
}

static tsr_status store(const char *folder, const char *image, size_t bytes)
{
    tsr_ckpt_out *out = NULL;
    uint64_t digest = 0;

    TSR_TRY(tsr_ckpt_out_open(folder, TSR_CKPT_MANIFEST, bytes, &out));
    tsr_status st = tsr_ckpt_out_write(out, image, bytes);
    tsr_ckpt_point();
    if (st == TSR_OK) {
        st = tsr_ckpt_out_publish(out, &digest);
    }
    tsr_ckpt_out_close(&out);
    return st;
}

tsr_status tsr_ckpt_manifest_write(const char *folder, const tsr_ckpt_manifest *manifest,
                                   const tsr_ckpt_slice *slices, int slice_count)
{
    char path[TSR_TEXT_MAX];
    char *image = NULL;
    size_t bytes = 0;
    int fd = -1;

    TSR_TRY(tsr_ckpt_join(folder, TSR_CKPT_MANIFEST, path));
    tsr_h5_lock();
    tsr_status st = build(path, manifest, slices, slice_count, &fd);
    tsr_h5_unlock();
    TSR_TRY(st);
    st = fetch(fd, &image, &bytes);
    (void)close(fd);
    TSR_TRY(st);
    tsr_ckpt_user_block(XXH3_64bits(image + TSR_CKPT_USER_BLOCK, bytes - TSR_CKPT_USER_BLOCK),
                        image);
    st = store(folder, image, bytes);
    tsr_mem_free(image);
    return st;
}
