/* `tessera bench imbalance`: loads from the generator, forced through the gates of a real model. */
#ifndef TSR_LAUNCH_IMBALANCE_GATE_H
#define TSR_LAUNCH_IMBALANCE_GATE_H

#include "parallel/parallel.h"

/** What to add to the logits of all gates of one rank; zeroed is empty. */
typedef struct imbalance_gate {
    tsr_loads *loads;
    int layers, experts, ranks, rank, top_k;
    int64_t tokens;  /* of this rank's micro-batch */
    int64_t *counts; /* [P,E] of a layer */
    int32_t *choice; /* [T,K] of a layer: each token's experts */
    float *bias;     /* [L,T,E] host memory */
    size_t bytes;    /* of bias */
} imbalance_gate;

/**
 * Errors: TSR_ERR_ARG for a load that these sizes do not allow, those of its file, TSR_ERR_NOMEM.
 */
TSR_NODISCARD tsr_status imbalance_gate_create(const tsr_load_options *load,
                                               const tsr_model_config *config, tsr_comm *comm,
                                               int64_t tokens, imbalance_gate *out);
void imbalance_gate_destroy(imbalance_gate *gate);

/**
 * Set bias for a step: each token's K experts stand far above the others, and the gate's own
 * logits say how it mixes them. Each expert gets the generator's count, unless that is more than
 * the tokens there are: what is over goes to the others evenly.
 */
void imbalance_gate_draw(imbalance_gate *gate, int64_t step);

#endif
