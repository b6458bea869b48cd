/* A small model on one device for the tests of layers and stages: weights large enough that every
 * path matters, and gradients checked by difference quotients. */
#ifndef TSR_TESTS_RIG_H
#define TSR_TESTS_RIG_H

#include "runtime/runtime.h"

typedef struct rig {
    tsr_model_config config;
    tsr_param_table table;
    tsr_weights weights;
    tsr_device *device;
    tsr_stream *stream;
    tsr_dtype dtype;
} rig;

/** Defaults of the option table, then a tiny mixtral: V 40, D 16, L 2, H 4:2 of 4, F 12, E 5, K 2.
 */
tsr_model_config rig_config(void);

/** Open the device with 2 threads and make weights with gradients; values by rig_fill(). */
TSR_NODISCARD tsr_status rig_open(rig *r, const char *device, const tsr_model_config *config,
                                  tsr_dtype dtype);
void rig_close(rig *r);

/** Matrices normal(0, 0.2), gates normal(0, 0.5), norms 1 + normal(0, 0.2), by name and seed. */
void rig_fill(rig *r, uint64_t seed);

/** Elements [first, first + count) of a parameter's working copy := values, rounded to its type. */
void rig_set(rig *r, int param, int64_t first, int64_t count, const float *values);
float rig_get(const rig *r, int param, int64_t element);

/** Largest |a - b| over largest |b|. */
double rig_difference(const float *a, const float *b, int64_t count);

/** Deterministic tokens in [0, vocab_size). */
void rig_tokens(const rig *r, uint64_t seed, int64_t count, int32_t *out);

/* ---- difference quotients ------------------------------------------------------------------- */

/** A function of f32 values somewhere in memory; scale_out: root of the sum of its terms' squares.
 */
typedef double rig_function(void *context, double *scale_out);

/**
 * |difference quotient - directional derivative| / its tolerance, the worst of three directions.
 *
 * value[count] is moved by step along normal directions, in f32, and put back; gradient is what the
 * layer claims. Two steps are combined so that the error of the quotient is O(step^4) (Richardson).
 */
double rig_quotient(rig_function *function, void *context, float *value, const float *gradient,
                    int64_t count, double step, uint64_t seed);

#endif
