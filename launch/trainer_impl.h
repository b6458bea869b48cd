/* What a trainer's two files share: taking memory, and the step. */
#ifndef TSR_LAUNCH_TRAINER_IMPL_H
#define TSR_LAUNCH_TRAINER_IMPL_H

#include "launch/trainer.h"

/* Length of what a step sums over ranks. */
int64_t trainer_totals_count(const trainer *t);

/* Passes that every rank makes for `sequences` of all together: those of the largest share, for
 * experts serve others. */
int64_t trainer_passes(const trainer *t, int64_t sequences);

/* For the weights as they are now. Collective. */
TSR_NODISCARD tsr_status trainer_create_optimizer(trainer *t);

/* Memory for what checkpoints hold of placement; the stage is there. */
TSR_NODISCARD tsr_status trainer_take_arrays(trainer *t);

/* Bring the router's bias to the device. */
TSR_NODISCARD tsr_status trainer_send_router_bias(trainer *t);

#endif
