/* Copies of experts beside their owners: what a run file says of them.
 *
 * Which experts are copied where is the work of placement.h, moving them that of the sparse
 * collectives; the MoE layers do both each step. */
#ifndef TSR_PARALLEL_EXPERTS_H
#define TSR_PARALLEL_EXPERTS_H

#include "runtime/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Values of section [experts]. */
typedef struct tsr_experts_config {
    int64_t slots;         /* room for copies of a layer's experts on a rank; 0: half of what it
                               owns, at least one */
    int64_t spill_slots;   /* of them, kept for copies after the gate */
    int64_t budget;        /* copies of a layer that come to a rank ahead; 0: as many as fit */
    bool measure;          /* set the budget from measured times after the third step */
    int prediction;        /* tsr_prediction */
    int64_t window;        /* steps */
    double target;         /* max/mean of ranks' loads from which copies after the gate pay */
    bool calibrate;        /* fssdp: copies after the gate too */
    double room;           /* memory for token copies at the start, over what even loads need */
    bool rematerialize;    /* one layer's copies at a time, fetched again in backward */
    int64_t reshard_every; /* steps between looks for better owners; 0: never */
    double reshard_cost;   /* tokens computed by an expert in the time that it takes to move it */
} tsr_experts_config;

tsr_option_table tsr_experts_options(tsr_experts_config *config);

/** Add a line for each contradiction. */
void tsr_experts_config_check(const tsr_experts_config *config, tsr_config_errors *errors);

#ifdef __cplusplus
}
#endif

#endif
