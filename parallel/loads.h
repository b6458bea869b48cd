/* Loads of experts as gates make them: shapes, drift, and recorded ones, to try placements with.
 *
 * A pure function of (options, layer, step): steps may be asked for in any order, by any rank. */
#ifndef TSR_PARALLEL_LOADS_H
#define TSR_PARALLEL_LOADS_H

#include "runtime/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tsr_load_shape {
    TSR_LOAD_EVEN = 0,
    TSR_LOAD_ZIPF,     /* shares ~ 1 / place^value, experts in random places */
    TSR_LOAD_MAX_MEAN, /* so skewed that rank loads are max/mean = value when dealt evenly */
    TSR_LOAD_HOT,      /* one expert makes its rank's load value * mean; another each period */
    TSR_LOAD_TRACE     /* recorded tokens of a file */
} tsr_load_shape;

typedef struct tsr_load_options {
    tsr_load_shape shape;
    int period; /* steps that one expert is hot */
    double value;
    double drift; /* deviation of the change of an expert's log share from step to step */
    double noise; /* deviation of a rank's log share of an expert from the mean of all ranks */
    uint64_t seed;
    char path[TSR_TEXT_MAX];
    int layers, experts, ranks;
} tsr_load_options;

/**
 * Read "even", "zipf:S", "maxmean:R", "hot:R" or "hot:R@PERIOD", "trace:FILE", each with
 * ",drift=X" and ",noise=X" behind; sets what the text says and leaves sizes and seed alone.
 * Default: drift 0.22, noise 0.3 (deviations seen in traces of training), none of them for even
 * and trace.
 *
 * Errors: TSR_ERR_ARG naming the word.
 */
TSR_NODISCARD tsr_status tsr_load_parse(const char *text, tsr_load_options *options);

typedef struct tsr_loads tsr_loads;

/**
 * A trace has lines "step,layer,tokens of expert 0,tokens of expert 1, ...", as loads.csv of a
 * run: step after step, each with as many layers; a first line of words is skipped. Steps and
 * layers are counted from the first ones recorded, and begin again behind the last.
 *
 * Errors: TSR_ERR_ARG for sizes below 1 or a value out of range (the limit is named), TSR_ERR_IO,
 *         TSR_ERR_FORMAT with the line.
 */
TSR_NODISCARD tsr_status tsr_loads_create(const tsr_load_options *options, tsr_loads **out);
void tsr_loads_destroy(tsr_loads **loads_p);

/** Share [E] of the tokens that each expert gets, of all ranks together; sums to 1. */
void tsr_loads_shares(tsr_loads *loads, int layer, int64_t step, double *share_out);

/** Tokens counts_out [P,E]; each rank has `tokens` of them. */
void tsr_loads_counts(tsr_loads *loads, int layer, int64_t step, int64_t tokens,
                      int64_t *counts_out);

#ifdef __cplusplus
}
#endif

#endif
