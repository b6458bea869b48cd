/* What a run shows: metrics.jsonl for programs, one line a step for people. Rank 0 only. */
#ifndef TSR_LAUNCH_METRICS_H
#define TSR_LAUNCH_METRICS_H

#include "launch/trainer.h"

typedef struct metrics {
    FILE *file; /* metrics.jsonl, appended to; NULL on other ranks */
    FILE *people;
    int64_t steps;
    double smooth_ms; /* for the ETA */
    bool has_warned;
} metrics;

/** Open run_dir/metrics.jsonl; a file with lines gets {"resumed_from": step}. Errors: TSR_ERR_IO.
 */
TSR_NODISCARD tsr_status metrics_open(metrics *m, const char *run_dir, int64_t resumed_from,
                                      int64_t steps, FILE *people);
void metrics_close(metrics *m);

/* A line that cannot be written (full disk) is warned of once; training goes on. */
void metrics_step(metrics *m, int64_t step, const step_result *result);
void metrics_validation(metrics *m, int64_t step, double loss, int64_t tokens);

/** "1.5k", "3.1M": a number for people, in an own buffer of 16 bytes. */
const char *metrics_short(double value, char out[16]);

#endif
