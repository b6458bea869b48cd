/* Experts change their owners between steps, where that pays: weights, moments and all. */
#ifndef TSR_LAUNCH_RESHARD_H
#define TSR_LAUNCH_RESHARD_H

#include "launch/trainer.h"

/** What a deal has moved. */
typedef struct reshard_move {
    int64_t experts; /* that changed their owner */
    double bytes;    /* of state, between ranks, all of them together */
    double seconds;
} reshard_move;

/**
 * Give the experts to other owners [L,E]: an equal table on all ranks, of expert ranks.
 *
 * The state's slices are kept in memory while local table, weights and optimizer are made anew,
 * then go to whom they belong now, bit for bit. Slices, and a checkpoint writer made for them, are
 * no longer valid. Memory: this rank's optimizer state and master weights once more, in passing.
 * Collective. Errors: TSR_ERR_FORMAT for an owner out of range, on all ranks, with nothing changed.
 */
TSR_NODISCARD tsr_status reshard_deal(trainer *t, const int32_t *owner, reshard_move *move_out);

/** Every experts.reshard_every steps: look for better owners and move to them if that pays; 0
 *  experts in move_out: nothing has changed. Collective. */
TSR_NODISCARD tsr_status reshard_if_due(trainer *t, reshard_move *move_out);

#endif
