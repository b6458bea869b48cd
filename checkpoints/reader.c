/* Rows of logical tensors, through the manifest's virtual datasets. A missing source would read as
 * zeros without an error: shards are checked before, and what was read is digested after. */
#include "checkpoints/hdf5_impl.h"

#include <inttypes.h>
#include <string.h>

struct tsr_ckpt_reader {
    tsr_h5_file file;
    hid_t set; /* the dataset read last stays open, and with it HDF5's view of the shards */
    int kind;
    char name[TSR_CKPT_NAME_MAX];
};

tsr_status tsr_ckpt_reader_open(const char *folder, tsr_ckpt_reader **out)
{
    char path[TSR_TEXT_MAX];
    void *block = NULL;

    TSR_TRY(tsr_ckpt_join(folder, TSR_CKPT_MANIFEST, path));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_CHECKPOINT, sizeof(tsr_ckpt_reader), &block));
    tsr_ckpt_reader *reader = block;
    reader->set = -1;
    tsr_h5_lock();
    const tsr_status st = tsr_h5_open(path, &reader->file);
    tsr_h5_unlock();
    if (st != TSR_OK) {
        tsr_mem_free(reader);
        return st;
    }
    *out = reader;
    return TSR_OK;
}

void tsr_ckpt_reader_close(tsr_ckpt_reader **reader_p)
{
    tsr_ckpt_reader *reader = *reader_p;

    *reader_p = NULL;
    if (reader != NULL) {
        tsr_h5_lock();
        (void)H5Dclose(reader->set);
        (void)H5Fclose(reader->file.id);
        tsr_h5_unlock();
        tsr_mem_free(reader);
    }
}

tsr_status tsr_ckpt_reader_tensor(tsr_ckpt_reader *reader, const char *name, tsr_ckpt_tensor *out)
{
    tsr_ckpt_tensor tensor = {.dims = 0};

    TSR_CHECK(strlen(name) < sizeof tensor.name, TSR_ERR_ARG, "name of %zu bytes", strlen(name));
    (void)snprintf(tensor.name, sizeof tensor.name, "%s", name);
    tsr_h5_lock();
    const tsr_status st = tsr_h5_get_tensor(&reader->file, &tensor);
    tsr_h5_unlock();
    TSR_TRY(st);
    *out = tensor;
    return TSR_OK;
}

static tsr_status select_set(tsr_ckpt_reader *reader, const char *name, int kind)
{
    char path[TSR_CKPT_NAME_MAX + 32];

    if (reader->set >= 0 && reader->kind == kind && strcmp(reader->name, name) == 0) {
        return TSR_OK;
    }
    (void)H5Dclose(reader->set);
    reader->set = -1;
    (void)snprintf(path, sizeof path, "%s/%s", tsr_ckpt_kind_names[kind], name);
    TSR_TRY(tsr_h5_get_object(&reader->file, path, H5I_DATASET, &reader->set));
    (void)snprintf(reader->name, sizeof reader->name, "%s", name);
    reader->kind = kind;
    return TSR_OK;
}

static bool read_box(hid_t set, hid_t space, const tsr_ckpt_box *box, int dims, float *out)
{
    hsize_t start[3], extent[3];

    for (int axis = 0; axis < 3; ++axis) {
        start[axis] = (hsize_t)box->start[axis];
        extent[axis] = (hsize_t)box->count[axis];
    }
    const hid_t memory = H5Screate_simple(dims, extent, NULL);
    const bool ok = H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, extent, NULL) >= 0 &&
                    H5Dread(set, H5T_NATIVE_FLOAT, memory, space, H5P_DEFAULT, out) >= 0;
    (void)H5Sclose(memory);
    return ok;
}

static tsr_status read_rows(tsr_ckpt_reader *reader, const tsr_ckpt_tensor *tensor, int kind,
                            int64_t row_begin, int64_t row_end, float *out)
{
    int64_t shape[3] = {0};
    tsr_ckpt_box boxes[3];
    int dims = 0;

    TSR_TRY(select_set(reader, tensor->name, kind));
    TSR_TRY(tsr_h5_get_shape(&reader->file, reader->set, tensor->name, &dims, shape));
    TSR_CHECK(dims == tensor->dims && memcmp(shape, tensor->shape, sizeof shape) == 0,
              TSR_ERR_FORMAT, "%s: %s changed its shape", reader->file.path, tensor->name);
    const hid_t space = H5Dget_space(reader->set);
    const int count = tsr_ckpt_boxes(tensor, row_begin, row_end, boxes);
    tsr_status st = TSR_OK;
    for (int i = 0; i < count && st == TSR_OK; ++i) {
        if (!read_box(reader->set, space, &boxes[i], dims, out)) {
            st = tsr_h5_fail(TSR_ERR_FORMAT, reader->file.path, "read rows");
        }
        out += boxes[i].rows * tensor->width;
    }
    (void)H5Sclose(space);
    return st;
}

tsr_status tsr_ckpt_reader_rows(tsr_ckpt_reader *reader, const tsr_ckpt_tensor *tensor, int kind,
                                int64_t row_begin, int64_t row_end, float *out)
{
    TSR_CHECK(row_begin >= 0 && row_begin <= row_end && row_end <= tensor->rows, TSR_ERR_ARG,
              "rows %" PRId64 " to %" PRId64 " of %s, which has %" PRId64, row_begin, row_end,
              tensor->name, tensor->rows);
    tsr_h5_lock();
    const tsr_status st = read_rows(reader, tensor, kind, row_begin, row_end, out);
    tsr_h5_unlock();
    return st;
}
