/* This rank's file. HDF5 lays it out once, in memory, with holes where the data will be; each save
 * then writes that image and the data front to back by itself. So the file is digested on the way,
 * a full disk is an error of write(), and the writing thread never touches HDF5. */
#include "checkpoints/hdf5_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- layout --------------------------------------------------------------------------------- */

static tsr_status add_dataset(const tsr_h5_file *file, hid_t group, const char *name,
                              tsr_ckpt_piece *piece)
{
    const hsize_t shape[2] = {(hsize_t)piece->rows, (hsize_t)piece->width};
    const hid_t space = H5Screate_simple(2, shape, NULL), create = H5Pcreate(H5P_DATASET_CREATE);
    tsr_status st = TSR_OK;

    (void)H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY); /* the place is known at once */
    (void)H5Pset_fill_time(create, H5D_FILL_TIME_NEVER);
    (void)H5Pset_obj_track_times(create, false); /* equal states make equal files */
    const hid_t set =
        H5Dcreate2(group, name, H5T_IEEE_F32LE, space, H5P_DEFAULT, create, H5P_DEFAULT);
    const haddr_t offset = set >= 0 ? H5Dget_offset(set) : HADDR_UNDEF;
    if (offset == HADDR_UNDEF) {
        st = tsr_h5_fail(TSR_ERR_INTERNAL, file->path, "place a dataset");
    }
    piece->offset = offset;
    if (st == TSR_OK) {
        st = tsr_h5_put_number(file, set, "row_begin", H5T_NATIVE_INT64, &piece->row_begin);
    }
    (void)H5Dclose(set);
    (void)H5Pclose(create);
    (void)H5Sclose(space);
    return st;
}

static tsr_status add_kind(const tsr_h5_file *file, int kind, const tsr_param_table *table,
                           const tsr_ckpt_slice *slices, int slice_count, int rank,
                           tsr_ckpt_shard *shard)
{
    hid_t group = -1;
    char name[TSR_CKPT_NAME_MAX + 32];
    tsr_status st;

    TSR_TRY(tsr_h5_put_group(file, tsr_ckpt_kind_names[kind], &group));
    st = TSR_OK;
    for (int i = 0; i < slice_count && st == TSR_OK; ++i) {
        const tsr_ckpt_slice *slice = &slices[i];
        if (slice->rank != rank) {
            continue;
        }
        tsr_ckpt_piece *piece = &shard->pieces[shard->count++];
        *piece = (tsr_ckpt_piece){.index = slice->index,
                                  .kind = kind,
                                  .param = slice->param,
                                  .row_begin = slice->row_begin,
                                  .rows = slice->row_end - slice->row_begin,
                                  .width = table->params[slice->param].width};
        tsr_ckpt_dataset_name(table->params[slice->param].name, slices, i, name);
        st = add_dataset(file, group, name, piece);
    }
    (void)H5Gclose(group);
    return st;
}

static int by_offset(const void *left, const void *right)
{
    const tsr_ckpt_piece *a = left, *b = right;

    return (a->offset > b->offset) - (a->offset < b->offset);
}

static uint64_t piece_end(const tsr_ckpt_piece *piece)
{
    return piece->offset + (uint64_t)piece->rows * (uint64_t)piece->width * sizeof(float);
}

static tsr_status lay_out(const tsr_param_table *table, const tsr_ckpt_slice *slices,
                          int slice_count, int rank, tsr_ckpt_shard *shard)
{
    tsr_h5_file file;
    char name[32];
    int fd = -1;
    tsr_status st = TSR_OK;

    tsr_ckpt_shard_name(rank, name);
    TSR_TRY(tsr_h5_create(name, 0, &file, &fd));
    shard->image = fd + 1;
    for (int kind = 0; kind < TSR_CKPT_KINDS && st == TSR_OK; ++kind) {
        st = add_kind(&file, kind, table, slices, slice_count, rank, shard);
    }
    const tsr_status closed = tsr_h5_close(&file);
    return st != TSR_OK ? st : closed;
}

/* Size of the file, and the proof that the pieces neither overlap nor stick out. */
static tsr_status measure(tsr_ckpt_shard *shard)
{
    struct stat info;
    uint64_t end = 0;

    TSR_CHECK(fstat(shard->image - 1, &info) == 0, TSR_ERR_IO, "memory file: %s", strerror(errno));
    qsort(shard->pieces, (size_t)shard->count, sizeof *shard->pieces, by_offset);
    for (int i = 0; i < shard->count; ++i) {
        TSR_CHECK(shard->pieces[i].offset >= end, TSR_ERR_INTERNAL,
                  "dataset %d of a shard overlaps the one before", i);
        end = piece_end(&shard->pieces[i]);
    }
    TSR_CHECK(end <= (uint64_t)info.st_size, TSR_ERR_INTERNAL,
              "datasets of a shard end at %llu of %llu bytes", (unsigned long long)end,
              (unsigned long long)info.st_size);
    shard->bytes = (uint64_t)info.st_size;
    return TSR_OK;
}

tsr_status tsr_ckpt_shard_create(const tsr_param_table *table, const tsr_ckpt_slice *slices,
                                 int slice_count, int rank, tsr_ckpt_shard *out)
{
    int64_t widest = TSR_CKPT_CHUNK / (int64_t)sizeof(float), mine = 0;
    void *block = NULL;
    tsr_status st;

    *out = (tsr_ckpt_shard){0};
    for (int i = 0; i < slice_count; ++i) {
        if (slices[i].rank == rank) {
            const int64_t width = table->params[slices[i].param].width;
            widest = width > widest ? width : widest;
            ++mine;
        }
    }
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, mine * TSR_CKPT_KINDS,
                                     sizeof(tsr_ckpt_piece), &block),
                 err_shard);
    out->pieces = block;
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_CHECKPOINT, widest, sizeof(float), &block), err_shard);
    out->chunk = block;
    out->chunk_floats = widest;
    tsr_h5_lock();
    st = lay_out(table, slices, slice_count, rank, out);
    tsr_h5_unlock();
    TSR_TRY_GOTO(st, err_shard);
    TSR_TRY_GOTO(measure(out), err_shard);
    return TSR_OK;

err_shard:
    tsr_ckpt_shard_destroy(out);
    return st;
}

void tsr_ckpt_shard_destroy(tsr_ckpt_shard *shard)
{
    if (shard->image > 0) {
        (void)close(shard->image - 1);
    }
    tsr_mem_free(shard->chunk);
    tsr_mem_free(shard->pieces);
    *shard = (tsr_ckpt_shard){0};
}

/* ---- writing -------------------------------------------------------------------------------- */

static tsr_status write_image(tsr_ckpt_shard *shard, tsr_ckpt_out *out, uint64_t from, uint64_t to)
{
    while (from < to) {
        const uint64_t left = to - from, most = TSR_CKPT_CHUNK;
        const ssize_t got =
            pread(shard->image - 1, shard->chunk, left < most ? left : most, (off_t)from);
        TSR_CHECK(got > 0, TSR_ERR_INTERNAL, "memory file ends at %llu", (unsigned long long)from);
        TSR_TRY(tsr_ckpt_out_write(out, shard->chunk, (size_t)got));
        from += (uint64_t)got;
    }
    return TSR_OK;
}

/* Rows as f32: the state's own memory, or the chunk they were widened into. */
static const float *rows_as_f32(const tsr_ckpt_piece *piece, const tsr_state_slice *slice,
                                int64_t row, int64_t rows, float *chunk)
{
    const int64_t first = row * piece->width, count = rows * piece->width;
    const void *moments = piece->kind == 1 ? slice->m : slice->v;

    if (piece->kind == 0) {
        return slice->master + first;
    }
    if (slice->moment_dtype == TSR_F32) {
        return (const float *)moments + first;
    }
    for (int64_t i = 0; i < count; ++i) {
        chunk[i] = tsr_bf16_to_f32(((const tsr_bf16 *)moments)[first + i]);
    }
    return chunk;
}

static tsr_status write_piece(tsr_ckpt_shard *shard, const tsr_ckpt_piece *piece,
                              const tsr_state_slice *slice, tsr_ckpt_out *out, uint64_t *digest)
{
    const int64_t step = shard->chunk_floats / piece->width;

    for (int64_t row = 0; row < piece->rows; row += step) {
        const int64_t rows = piece->rows - row < step ? piece->rows - row : step;
        const float *data = rows_as_f32(piece, slice, row, rows, shard->chunk);
        *digest += tsr_ckpt_rows_digest(data, piece->row_begin + row, rows, piece->width);
        TSR_TRY(tsr_ckpt_out_write(out, data, (size_t)(rows * piece->width) * sizeof *data));
    }
    return TSR_OK;
}

static tsr_status write_all(tsr_ckpt_shard *shard, tsr_ckpt_out *out, const tsr_state_slice *slices,
                            uint64_t *digests)
{
    uint64_t at = 0;

    for (int i = 0; i < shard->count; ++i) {
        const tsr_ckpt_piece *piece = &shard->pieces[i];
        TSR_TRY(write_image(shard, out, at, piece->offset));
        TSR_TRY(write_piece(shard, piece, &slices[piece->index], out,
                            &digests[piece->param * TSR_CKPT_KINDS + piece->kind]));
        at = piece_end(piece);
        tsr_ckpt_point();
    }
    return write_image(shard, out, at, shard->bytes);
}

tsr_status tsr_ckpt_shard_write(tsr_ckpt_shard *shard, const char *folder, int rank,
                                const tsr_state_slice *slices, uint64_t *digests,
                                uint64_t *file_digest_out)
{
    tsr_ckpt_out *out = NULL;
    char name[32];

    tsr_ckpt_shard_name(rank, name);
    TSR_TRY(tsr_ckpt_out_open(folder, name, shard->bytes, &out));
    tsr_status st = write_all(shard, out, slices, digests);
    tsr_ckpt_point();
    if (st == TSR_OK) {
        st = tsr_ckpt_out_publish(out, file_digest_out);
    }
    tsr_ckpt_out_close(&out);
    return st;
}
