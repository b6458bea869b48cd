/* What a run records beside its metrics where that is asked for: loads.csv and traces. */
#ifndef TSR_LAUNCH_RECORDING_H
#define TSR_LAUNCH_RECORDING_H

#include "launch/settings.h"

typedef struct recording {
    const run_config *config;       /* borrowed */
    tsr_comm *comm;                 /* borrowed: the world */
    FILE *loads;                    /* rank 0, if asked for */
    int64_t trace_begin, trace_end; /* steps done when it starts and stops; equal: none */
    int64_t start_ns;               /* of the trace, by the own clock */
    bool has_warned;
} recording;

/** Open loads.csv to append to; resumed from step `first_step`. Errors: TSR_ERR_IO. */
TSR_NODISCARD tsr_status recording_open(recording *r, const run_config *config, tsr_comm *comm,
                                        int64_t first_step);

/** Before step `done + 1`: starts and ends the trace. Collective where that is due.
 *  Errors: TSR_ERR_NOMEM, those of the communicator; a file that cannot be written is warned of. */
TSR_NODISCARD tsr_status recording_before_step(recording *r, int64_t done);

/** After step `step`: counts [layers, experts] of tokens; layers without any are left out. */
void recording_loads(recording *r, int64_t step, const double *counts, int64_t layers,
                     int64_t experts);

/** Writes what has not been written; fine on a zeroed one. */
void recording_close(recording *r);

#endif
