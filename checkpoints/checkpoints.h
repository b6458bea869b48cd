/* checkpoints: HDF5 shards, manifest with virtual datasets, digests, resume on any layout.
 *
 * A folder with a valid manifest.h5 is a checkpoint, one without is not. The manifest is written
 * last: temporary name, fsync, rename, fsync of the folder. Nothing is believed before its digest
 * matched. Knows nothing of models beyond the parameter table, nor of training. */
#ifndef TSR_CHECKPOINTS_H
#define TSR_CHECKPOINTS_H

#include "collectives/collectives.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Values of section [checkpoint]. */
typedef struct tsr_checkpoint_config {
    int64_t every; /* steps; 0: only at the end and when stopped */
    int64_t keep;  /* newest complete ones kept; 0: all */
    bool async;    /* write behind the next steps from a staged copy */
} tsr_checkpoint_config;
tsr_option_table tsr_checkpoint_options(tsr_checkpoint_config *config);

/* ---- saving --------------------------------------------------------------------------------- */

typedef struct tsr_ckpt_writer tsr_ckpt_writer;

/**
 * Make a writer into run_dir/checkpoints (created). view tells the slices that will be saved: the
 * staging memory is taken now. A checkpoint folder without manifest that a crash left is removed
 * when its step is saved again; others are left alone.
 * Collective on comm (borrowed).
 * Errors: TSR_ERR_IO with path and reason (read-only, not a folder); TSR_ERR_NOMEM.
 */
TSR_NODISCARD tsr_status tsr_ckpt_writer_create(tsr_comm *comm, const char *run_dir,
                                                const tsr_checkpoint_config *config,
                                                const tsr_state_view *view, tsr_ckpt_writer **out);
/** Waits for the writing thread; an unfinished checkpoint stays unpublished. */
void tsr_ckpt_writer_destroy(tsr_ckpt_writer **writer_p);

/**
 * Stage a copy of the state and start writing it. With async the call returns after the copy, and
 * tsr_ckpt_progress() has to be called until it reports the end; else it returns when published.
 * If the previous save is not finished yet, that one is finished first: its failure is returned and
 * nothing is started, its result is what the next tsr_ckpt_progress() reports.
 * Collective. staged_s_out: seconds the steps were held up.
 * Errors: TSR_ERR_ARG if the slices are not those of the creation; TSR_ERR_IO with path, bytes
 *         needed and bytes free; TSR_ERR_PEER. The writer stays usable.
 */
TSR_NODISCARD tsr_status tsr_ckpt_save(tsr_ckpt_writer *writer, const tsr_state_view *view,
                                       double *staged_s_out);

typedef enum tsr_ckpt_phase {
    TSR_CKPT_IDLE = 0,
    TSR_CKPT_WRITING, /* this rank's shard is not durable yet */
    TSR_CKPT_WRITTEN, /* this rank's shard is durable; waiting for the others */
    TSR_CKPT_FAILED   /* this rank's writing failed */
} tsr_ckpt_phase;

/** Where this rank's save stands: local and cheap, to ride on data exchanged anyway. */
tsr_ckpt_phase tsr_ckpt_local_phase(tsr_ckpt_writer *writer);

/** What became of a save that has ended. */
typedef struct tsr_ckpt_result {
    bool ended; /* false: still going on, or nothing to do */
    int64_t step;
    char path[TSR_TEXT_MAX]; /* of the published folder */
    double seconds;          /* from tsr_ckpt_save() to published */
    uint64_t bytes;          /* of all shards */
    uint64_t digest;         /* of the state but its arrays; does not depend on the layout */
} tsr_ckpt_result;

/**
 * Take the save one step further, without waiting for a disk that is still busy.
 *
 * written and failed: how many ranks reported TSR_CKPT_WRITTEN and TSR_CKPT_FAILED, summed over
 * comm by the caller (so the same on all ranks). When all have written: digests are combined, rank
 * 0 writes the manifest, `latest` moves, old checkpoints beyond `keep` go.
 * Collective when written + failed = P; else local.
 * Errors: TSR_ERR_IO (full disk, ...) on the rank that failed, TSR_ERR_PEER on the others: the
 *         unfinished folder is removed, the previous checkpoint stays, later saves may be tried.
 */
TSR_NODISCARD tsr_status tsr_ckpt_progress(tsr_ckpt_writer *writer, int written, int failed,
                                           tsr_ckpt_result *result_out);

/** Wait until a save in flight has ended. Collective. result as above. */
TSR_NODISCARD tsr_status tsr_ckpt_finish(tsr_ckpt_writer *writer, tsr_ckpt_result *result_out);

/* ---- finding, reading ----------------------------------------------------------------------- */

/** What a manifest says. */
typedef struct tsr_ckpt_info {
    char path[TSR_TEXT_MAX];
    int64_t step, tokens, data_position;
    uint64_t seed, digest, bytes;
    int shards, tensors, format;
    char version[64];
    char *config_text; /* own block */
} tsr_ckpt_info;
void tsr_ckpt_info_free(tsr_ckpt_info *info);

/** Called for each problem or event while searching: "step-00000020: shard-0001.h5 ... ". */
typedef void tsr_ckpt_report(void *context, const char *text);

/**
 * Find the newest valid checkpoint: path is a run folder or one checkpoint's folder. Sizes and
 * digests of all files are checked; a broken one is reported and the one before is tried (only for
 * a run folder). Local: call on one rank, or on all for the same result.
 * Errors: TSR_ERR_IO: no such folder; TSR_ERR_FORMAT: nothing valid, with the reason.
 *         *found_out = false and TSR_OK only when the run folder holds no checkpoint at all.
 */
TSR_NODISCARD tsr_status tsr_ckpt_find(const char *path, tsr_ckpt_report *report, void *context,
                                       bool *found_out, tsr_ckpt_info *info_out);

/** Read the manifest of one checkpoint folder without checking the shards. */
TSR_NODISCARD tsr_status tsr_ckpt_open_info(const char *path, tsr_ckpt_info *info_out);

/** Check every file's size and digest and every tensor's digest. Errors: TSR_ERR_FORMAT naming file
 *  or tensor, and what was expected. */
TSR_NODISCARD tsr_status tsr_ckpt_verify(const char *path);

/**
 * Fill the view's slices (any layout) from a checkpoint found valid, then check the digests of what
 * was read, summed over comm. Names and shapes must be those of the view's table: a missing, extra
 * or differently shaped tensor is named. Collective on comm.
 * view->step, tokens, data_position, seed and *router_bias are filled too, and those of the arrays
 * that the checkpoint has with the same length.
 */
TSR_NODISCARD tsr_status tsr_ckpt_load(tsr_comm *comm, const char *path, tsr_state_view *view);

/** Read one whole parameter's master weights [rows * width] (f32): for eval, generate and export.
 *  path must have passed tsr_ckpt_find() or tsr_ckpt_verify(): of the shards only the sizes are
 *  checked again, and the digest of what was read. Errors: TSR_ERR_FORMAT. */
TSR_NODISCARD tsr_status tsr_ckpt_read_weights(const char *path, const tsr_param_table *table,
                                               int param, float *out);
/** Read the router bias [layers, experts]; zeros when there is none. */
TSR_NODISCARD tsr_status tsr_ckpt_read_router_bias(const char *path, int64_t layers,
                                                   int64_t experts, float *out);

/** Names of checkpoints in a run folder, oldest first, complete or not; own block of `count`. */
typedef struct tsr_ckpt_entry {
    char path[TSR_TEXT_MAX];
    int64_t step;
    bool has_manifest;
} tsr_ckpt_entry;
TSR_NODISCARD tsr_status tsr_ckpt_list(const char *run_dir, tsr_ckpt_entry **entries_out,
                                       int *count_out);

/** One line a tensor: name, shape, digest: `tessera ckpt show`. */
TSR_NODISCARD tsr_status tsr_ckpt_print_tensors(const char *path, FILE *to);

/** Test hook: end this process with SIGKILL at the n-th step of writing a checkpoint (0: never). */
void tsr_ckpt_kill_at(int n);

#ifdef __cplusplus
}
#endif

#endif
