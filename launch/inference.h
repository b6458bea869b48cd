/* A checkpoint opened for reading only: model, weights and a stage without gradients. */
#ifndef TSR_LAUNCH_INFERENCE_H
#define TSR_LAUNCH_INFERENCE_H

#include "launch/settings.h"
#include "launch/world.h"

typedef struct inference {
    settings s; /* of the checkpoint */
    tsr_ckpt_info info;
    tsr_dtype dtype;
    tsr_device *device;
    tsr_stream *stream;
    tsr_param_table table;
    tsr_weights weights;
    tsr_stage *stage;
} inference;

/**
 * Open the newest valid checkpoint at path (run folder or checkpoint folder) and load its weights.
 *
 * precision: "f32", "bf16" or NULL for the checkpoint's own; device: "auto", "cpu", "cuda" or NULL;
 * batch: sequences a forward may take.
 * Collective: every rank loads all weights, so that they can share the work.
 * Errors: TSR_ERR_FORMAT, TSR_ERR_IO, TSR_ERR_ARG (precision), TSR_ERR_NOMEM.
 */
TSR_NODISCARD tsr_status inference_open(inference *in, world *w, const char *path,
                                        const char *precision, const char *device, int64_t batch);
void inference_close(inference *in);

#endif
