/* Where a run starts from: afresh, or from which checkpoint. */
#ifndef TSR_LAUNCH_RESUME_H
#define TSR_LAUNCH_RESUME_H

#include "launch/settings.h"

/**
 * Find the checkpoint that --resume means: "latest", "auto", a path, or NULL for a fresh start.
 *
 * path_out is empty for a fresh start. Local: rank 0 looks and tells the others.
 * Errors: TSR_ERR_ARG when a fresh start would meet checkpoints in dir; TSR_ERR_FORMAT when there
 *         is no (valid) one, with the reason and the remedy.
 */
TSR_NODISCARD tsr_status resume_choose(const char *dir, const char *resume,
                                       char path_out[TSR_TEXT_MAX]);

/**
 * Refuse a run file whose model computes something else than the checkpoint's, where shapes do not
 * show it (those are checked when loading); warn when the data order changes. Errors: TSR_ERR_ARG.
 */
TSR_NODISCARD tsr_status resume_check_model(const settings *now, const char *then_text);

#endif
