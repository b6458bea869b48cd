/* One layer with its memory, for tests: run it both ways, compare gradients with quotients. */
#ifndef TSR_TESTS_LAYER_RIG_H
#define TSR_TESTS_LAYER_RIG_H

#include "tests/layers/rig.h"

typedef tsr_status layer_create(const tsr_layer_spec *spec, tsr_layer **out);

typedef struct layer_rig {
    rig base;
    tsr_layer *layer;
    tsr_pass pass;
    tsr_rope_table rope;
    int64_t count; /* elements of the residual */
    float *h_in, *h_out, *dh;
    float *g; /* the loss is sum(h_out * g) + extra */
    void *saved, *work;
    double (*extra)(struct layer_rig *); /* NULL: 0 */
} layer_rig;

/** Layer 0 of config; h_in normal(0, 1), g normal(0, 1). */
TSR_NODISCARD tsr_status layer_rig_open(layer_rig *r, const char *device,
                                        const tsr_model_config *config, tsr_dtype dtype,
                                        layer_create *create, int64_t batch, int64_t seq);
void layer_rig_close(layer_rig *r);

TSR_NODISCARD tsr_status layer_rig_forward(layer_rig *r);
/** From dh = g; the gradient of h_in is left in dh. */
TSR_NODISCARD tsr_status layer_rig_backward(layer_rig *r);

/**
 * Compare the gradients of h_in and of layer 0's parameters with difference quotients.
 * part: parameters whose name has this in it. Returns the worst ratio to the tolerance, INFINITY if
 * a call failed; name_out: of the worst tensor.
 */
double layer_rig_quotients(layer_rig *r, const char *const *parts, int part_count,
                           const char **name_out);

#endif
