/* What a run says about itself before the first step: layout, model, memory, work, data. */
#ifndef TSR_LAUNCH_BANNER_H
#define TSR_LAUNCH_BANNER_H

#include "launch/trainer.h"

/** Print the banner of a run that is about to start, on rank 0. */
void banner_run(const trainer *t, const tsr_data *train, const tsr_data *valid);

/** Print that a step's loads have changed the plan of memory. */
void banner_memory(const trainer *t, const step_result *r);

/** Print the same without taking the memory: `train --dry-run`. */
TSR_NODISCARD tsr_status banner_plan(const settings *s, const world *w, const tsr_data *train,
                                     const tsr_data *valid);

#endif
