/* Inside of checkpoints: what its files share. No HDF5 type appears here; see hdf5_impl.h.
 *
 * A save: layout (who owns which rows) -> shard (this rank's file) -> manifest (rank 0) -> publish.
 * A load: manifest (checked, parsed) -> shards (sizes, digests) -> rows -> tensor digests. */
#ifndef TSR_CHECKPOINTS_IMPL_H
#define TSR_CHECKPOINTS_IMPL_H

#include "checkpoints/checkpoints.h"

enum {
    TSR_CKPT_FORMAT = 1,       /* root attribute format */
    TSR_CKPT_KINDS = 3,        /* master, adam_m, adam_v */
    TSR_CKPT_NAME_MAX = 96,    /* as tsr_param.name */
    TSR_CKPT_USER_BLOCK = 512, /* bytes before the manifest's HDF5 part: its own digest */
    TSR_CKPT_CHUNK =
        1 << 20 /* bytes converted, digested and written at a time: fits the L2 cache */
};
#define TSR_CKPT_MANIFEST "manifest.h5"

/** Names of the groups: "master", "adam_m", "adam_v". */
extern const char *const tsr_ckpt_kind_names[TSR_CKPT_KINDS];

/* ---- what a manifest says ------------------------------------------------------------------- */

typedef struct tsr_ckpt_tensor {
    char name[TSR_CKPT_NAME_MAX];
    int dims;
    int64_t shape[3];
    int64_t rows, width; /* the tensor as a matrix */
    uint64_t digest[TSR_CKPT_KINDS];
} tsr_ckpt_tensor;

typedef struct tsr_ckpt_file {
    uint64_t bytes, digest; /* XXH3-64 of the whole file */
} tsr_ckpt_file;

typedef struct tsr_ckpt_array {
    char name[TSR_STATE_NAME_MAX];
    int64_t count;
    double *values;
} tsr_ckpt_array;

/** Zeroed is empty. Owns: config_text, router_bias, arrays and their values, tensors, shards. */
typedef struct tsr_ckpt_manifest {
    int64_t step, tokens, data_position;
    uint64_t seed, digest;
    char version[64];
    char *config_text;
    float *router_bias; /* [layers, experts]; NULL if there is none */
    int64_t layers, experts;
    tsr_ckpt_array *arrays; /* for writing; read by tsr_ckpt_manifest_read_arrays() */
    int array_count;
    tsr_ckpt_tensor *tensors; /* NULL when they were not asked for */
    int tensor_count;
    tsr_ckpt_file *shards;
    int shard_count;
} tsr_ckpt_manifest;

void tsr_ckpt_manifest_free(tsr_ckpt_manifest *manifest);

/** Rows of one tensor in one shard. */
typedef struct tsr_ckpt_slice {
    int32_t rank, index; /* owner, and place among its slices */
    int32_t param, unused;
    int64_t row_begin, row_end;
} tsr_ckpt_slice;

/**
 * Write folder/manifest.h5 durably: temporary name, sync, rename, sync of the folder.
 * slices: of all ranks, ordered as by tsr_ckpt_gather_slices().
 * Errors: TSR_ERR_IO with path and reason; TSR_ERR_NOMEM.
 */
TSR_NODISCARD tsr_status tsr_ckpt_manifest_write(const char *folder,
                                                 const tsr_ckpt_manifest *manifest,
                                                 const tsr_ckpt_slice *slices, int slice_count);

/**
 * Check the manifest's own digest, then read it; tensors only if asked for.
 * Errors: TSR_ERR_IO if it cannot be read; TSR_ERR_FORMAT naming the file and what is wrong.
 */
TSR_NODISCARD tsr_status tsr_ckpt_manifest_read(const char *folder, bool with_tensors,
                                                tsr_ckpt_manifest *out);

/**
 * Fill those arrays that are there with the same length. Call after tsr_ckpt_manifest_read().
 * Errors: TSR_ERR_FORMAT for one that is there, but not as a list of f64.
 */
TSR_NODISCARD tsr_status tsr_ckpt_manifest_read_arrays(const char *folder, tsr_state_array *arrays,
                                                       int count);

/** Text before the HDF5 part of a manifest: format and digest of that part, then zeros. */
void tsr_ckpt_user_block(uint64_t digest, char out[TSR_CKPT_USER_BLOCK]);

/** Compare size, and if asked for the digest, of shards first, first + stride, ... */
TSR_NODISCARD tsr_status tsr_ckpt_check_shards(const char *folder,
                                               const tsr_ckpt_manifest *manifest, int first,
                                               int stride, bool with_digest);

/* ---- reading rows --------------------------------------------------------------------------- */

/** An open manifest whose shards have been checked. */
typedef struct tsr_ckpt_reader tsr_ckpt_reader;

TSR_NODISCARD tsr_status tsr_ckpt_reader_open(const char *folder, tsr_ckpt_reader **out);
void tsr_ckpt_reader_close(tsr_ckpt_reader **reader_p);

/** Name, shape and digests of one tensor. Errors: TSR_ERR_FORMAT if absent or not as it must be. */
TSR_NODISCARD tsr_status tsr_ckpt_reader_tensor(tsr_ckpt_reader *reader, const char *name,
                                                tsr_ckpt_tensor *out);

/** Rows [row_begin, row_end) of one tensor into out. */
TSR_NODISCARD tsr_status tsr_ckpt_reader_rows(tsr_ckpt_reader *reader,
                                              const tsr_ckpt_tensor *tensor, int kind,
                                              int64_t row_begin, int64_t row_end, float *out);

/* ---- layout: who owns which rows ------------------------------------------------------------ */

/** Part of a row range that is a box of the logical tensor. */
typedef struct tsr_ckpt_box {
    int64_t start[3], count[3];
    int64_t row_begin, rows;
} tsr_ckpt_box;

/** Cut rows into at most 3 boxes: rest of an expert, whole experts, start of an expert. */
int tsr_ckpt_boxes(const tsr_ckpt_tensor *tensor, int64_t row_begin, int64_t row_end,
                   tsr_ckpt_box boxes_out[3]);

/** Rows and width from dims and shape, which are checked for sign and overflow. */
TSR_NODISCARD tsr_status tsr_ckpt_tensor_matrix(tsr_ckpt_tensor *tensor);

/** Description of a parameter without digests. Errors: TSR_ERR_ARG if rows, width and shape differ.
 */
TSR_NODISCARD tsr_status tsr_ckpt_tensor_of(const tsr_param *param, tsr_ckpt_tensor *out);

/** Errors: TSR_ERR_ARG naming the slice or parameter that is out of bounds or has no memory. */
TSR_NODISCARD tsr_status tsr_ckpt_check_view(const tsr_state_view *view);

/**
 * Slices of all ranks that are not empty, by parameter and row, checked to hold each row once.
 * Collective. Owns: the caller gets an own block. Errors: TSR_ERR_ARG on all ranks naming the gap.
 */
TSR_NODISCARD tsr_status tsr_ckpt_gather_slices(tsr_comm *comm, const tsr_state_view *view,
                                                tsr_ckpt_slice **slices_out, int *count_out);

/** Name of slice i's datasets in its shard: the tensor's, with "@row" for a rank's further pieces.
 */
void tsr_ckpt_dataset_name(const char *tensor, const tsr_ckpt_slice *slices, int i,
                           char out[TSR_CKPT_NAME_MAX + 32]);

/* ---- shard ---------------------------------------------------------------------------------- */

typedef struct tsr_ckpt_piece {
    int index, kind, param; /* index: in the rank's slices */
    int64_t row_begin, rows, width;
    uint64_t offset; /* of its first byte in the file */
} tsr_ckpt_piece;

/** This rank's file with everything but the data: the same for every save. Zeroed is empty. */
typedef struct tsr_ckpt_shard {
    int image; /* memory file with HDF5's own bytes and holes for the data, plus 1; 0: none */
    uint64_t bytes;
    tsr_ckpt_piece *pieces; /* by offset */
    int count;
    float *chunk;
    int64_t chunk_floats;
} tsr_ckpt_shard;

TSR_NODISCARD tsr_status tsr_ckpt_shard_create(const tsr_param_table *table,
                                               const tsr_ckpt_slice *slices, int slice_count,
                                               int rank, tsr_ckpt_shard *out);
void tsr_ckpt_shard_destroy(tsr_ckpt_shard *shard);

/**
 * Write folder/shard-RANK.h5 durably and add to digests[params, kinds] what it holds.
 * Calls no HDF5, so a thread may do it at any time.
 * Errors: TSR_ERR_IO with path, reason, and sizes if the disk is full.
 */
TSR_NODISCARD tsr_status tsr_ckpt_shard_write(tsr_ckpt_shard *shard, const char *folder, int rank,
                                              const tsr_state_slice *slices, uint64_t *digests,
                                              uint64_t *file_digest_out);

/* ---- digests -------------------------------------------------------------------------------- */

/** Sum modulo 2^64 of XXH3-64(row as f32 little endian, seed = index of the row in the tensor). */
uint64_t tsr_ckpt_rows_digest(const float *rows, int64_t row_begin, int64_t count, int64_t width);

/** Of names, tensor digests and state values; the order of the tensors does not matter. */
uint64_t tsr_ckpt_state_digest(const tsr_ckpt_manifest *manifest);

/* ---- files ---------------------------------------------------------------------------------- */

/** One more step of writing: here tsr_ckpt_kill_at() strikes. */
void tsr_ckpt_point(void);

/** out = folder/name. Errors: TSR_ERR_RANGE if longer than TSR_TEXT_MAX. */
TSR_NODISCARD tsr_status tsr_ckpt_join(const char *folder, const char *name,
                                       char out[TSR_TEXT_MAX]);
void tsr_ckpt_shard_name(int rank, char out[32]);
bool tsr_ckpt_exists(const char *folder, const char *name);

TSR_NODISCARD tsr_status tsr_ckpt_make_folder(const char *path);
TSR_NODISCARD tsr_status tsr_ckpt_check_writable(const char *path);
TSR_NODISCARD tsr_status tsr_ckpt_sync_folder(const char *path);
TSR_NODISCARD tsr_status tsr_ckpt_rename(const char *from, const char *to);

/** Remove a checkpoint's folder, manifest first; files of other names are left and are an error. */
TSR_NODISCARD tsr_status tsr_ckpt_remove(const char *folder);

/** Errors: TSR_ERR_IO if the file system of path has fewer bytes free than needed. */
TSR_NODISCARD tsr_status tsr_ckpt_check_space(const char *path, uint64_t bytes);

/** A file written front to back under a temporary name, digested on the way. */
typedef struct tsr_ckpt_out tsr_ckpt_out;
TSR_NODISCARD tsr_status tsr_ckpt_out_open(const char *folder, const char *name, uint64_t bytes,
                                           tsr_ckpt_out **out);
TSR_NODISCARD tsr_status tsr_ckpt_out_write(tsr_ckpt_out *out, const void *data, size_t bytes);
/** Sync, rename to the final name, sync the folder. */
TSR_NODISCARD tsr_status tsr_ckpt_out_publish(tsr_ckpt_out *out, uint64_t *digest_out);
/** Free; removes the temporary file if it was not published. */
void tsr_ckpt_out_close(tsr_ckpt_out **out_p);

/** Size of a file and XXH3-64 of its bytes from `skip` on; head gets the first `skip` bytes. */
TSR_NODISCARD tsr_status tsr_ckpt_hash_file(const char *path, void *head, size_t skip,
                                            uint64_t *bytes_out, uint64_t *digest_out);

/* ---- publishing, listing -------------------------------------------------------------------- */

/** Where a save of one step goes: a step saved before keeps its folder until the new is complete.
 */
typedef struct tsr_ckpt_target {
    char root[TSR_TEXT_MAX];  /* run_dir/checkpoints */
    char final[TSR_TEXT_MAX]; /* root/step-N */
    char work[TSR_TEXT_MAX];  /* final, or final.new if that holds a manifest */
    int64_t step;
    bool is_replacing;
} tsr_ckpt_target;

TSR_NODISCARD tsr_status tsr_ckpt_target_set(const char *root, int64_t step, bool is_replacing,
                                             tsr_ckpt_target *out);
/** Make the work folder, clearing what a crash left. Rank 0. */
TSR_NODISCARD tsr_status tsr_ckpt_target_prepare(const char *root, int64_t step, uint64_t bytes,
                                                 tsr_ckpt_target *out);
/** After the manifest: move to the final name, `latest`, and drop what exceeds keep. Rank 0. */
TSR_NODISCARD tsr_status tsr_ckpt_target_publish(const tsr_ckpt_target *target, int64_t keep);

/** Checkpoint folders below root, oldest first. */
TSR_NODISCARD tsr_status tsr_ckpt_list_root(const char *root, tsr_ckpt_entry **entries_out,
                                            int *count_out);

#endif
