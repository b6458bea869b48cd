/* Choosing the next token from logits: temperature and nucleus (top-p) sampling.
 * Source: Holtzman et al. 2019, arXiv:1904.09751. */
#ifndef TSR_LAUNCH_SAMPLING_H
#define TSR_LAUNCH_SAMPLING_H

#include "runtime/runtime.h"

typedef struct sampling {
    double temperature; /* 0: the likeliest token */
    double top_p;       /* (0, 1] */
    uint64_t key;       /* of the random numbers */
} sampling;

/**
 * Token number `position` of a text: a function of (how, logits, position) only.
 * Shapes: logits [vocab]; order [vocab] scratch. NaN logits are never chosen unless all are NaN.
 */
int32_t sampling_choose(const sampling *how, const float *logits, int64_t vocab, int64_t position,
                        int32_t *order);

#endif
