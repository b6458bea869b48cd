/* What a trainer's files share. */
#ifndef TSR_LAUNCH_TRAINER_IMPL_H
#define TSR_LAUNCH_TRAINER_IMPL_H

#include "launch/trainer.h"

/* The largest micro-batch and all else that a stage is made for but its communicators and owners;
 * room [L] is borrowed. */
tsr_stage_options trainer_stage_options(const settings *s, const tsr_param_table *table,
                                        tsr_device *device, const tsr_mesh *mesh,
                                        const double *room);

/* The whole table, who holds which experts, and what expert rank `part` of `parts` holds. */
TSR_NODISCARD tsr_status trainer_make_tables(const settings *s, int parts, int part,
                                             tsr_param_table *table, int32_t **owner,
                                             tsr_param_table *local);

/* ---- trainer_memory.c ---- */

/* Room for token copies as the run file says. */
TSR_NODISCARD tsr_status trainer_take_room(trainer *t);
/* Plan for it, once all memory has been taken. */
TSR_NODISCARD tsr_status trainer_plan_start(trainer *t);
/* After a step: plan for the loads since the last time, if that is due and they differ; told in
 * result. Collective. */
TSR_NODISCARD tsr_status trainer_plan_anew(trainer *t, step_result *result);
/* What this process holds of what a plan counts but staging. */
size_t trainer_held_bytes(void);

/* ---- the step ---- */

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
