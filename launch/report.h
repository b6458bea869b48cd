/* What `tessera report` knows of a run: metrics.jsonl as arrays. */
#ifndef TSR_LAUNCH_REPORT_H
#define TSR_LAUNCH_REPORT_H

#include "runtime/runtime.h"

/** Figures of a step, by their names in metrics.jsonl; NaN where a line lacks one. */
typedef enum report_field {
    REPORT_LOSS = 0,
    REPORT_AUX_LOSS,
    REPORT_GRAD_NORM,
    REPORT_LR,
    REPORT_MS,
    REPORT_TOKENS_PER_S,
    REPORT_GEMM_SHARE,
    REPORT_IMBALANCE, /* expert_max_over_mean: of the gate's choice, worst layer */
    REPORT_MEM_GIB,
    REPORT_TOKENS,
    REPORT_SELF, /* bytes */
    REPORT_INTRA_NODE,
    REPORT_IN_PLANE,
    REPORT_CROSS_PLANE,
    REPORT_FORWARD_BACKWARD, /* parts_ms */
    REPORT_REDUCE,
    REPORT_TOTALS,
    REPORT_UPDATE,
    REPORT_BEFORE, /* moe: mean over layers of ranks' max/mean with every expert at its owner */
    REPORT_AFTER,  /* and as it was computed */
    REPORT_COPIES,
    REPORT_EXPOSED_MS,
    REPORT_FIELDS
} report_field;

typedef struct report_step {
    int64_t step;
    double value[REPORT_FIELDS];
} report_step;

typedef struct report_validation {
    int64_t step;
    double loss;
} report_validation;

typedef struct report {
    report_step *steps; /* ascending; after a resume nothing of an earlier try beyond its step */
    int64_t step_count, step_room;
    report_validation *validations; /* likewise */
    int64_t validation_count, validation_room;
    int64_t resumes, bad_lines;
} report;

/** Read run_dir/metrics.jsonl. Lines that are no JSON object are counted, the last one may well be
 *  cut. Errors: TSR_ERR_IO, TSR_ERR_FORMAT if there is no step in it, TSR_ERR_NOMEM. */
TSR_NODISCARD tsr_status report_read(const char *run_dir, report *out);
void report_free(report *r);

const char *report_field_name(report_field field);

/** Does any step have this figure? */
bool report_has(const report *r, report_field field);

/** Value below which a share `part` (0 .. 1) of the steps lie, of those that have it; NaN if none
 *  has. Errors: TSR_ERR_NOMEM. */
TSR_NODISCARD tsr_status report_quantile(const report *r, report_field field, double part,
                                         double *out);

/**
 * Write tables and gnuplot scripts into folder (made if missing), and pictures (SVG) if gnuplot is
 * there: *pictures_out of them. run_dir/loads.csv gives the load heat map if it exists.
 * Errors: TSR_ERR_IO, TSR_ERR_FORMAT for a bad loads.csv.
 */
TSR_NODISCARD tsr_status report_plot(const report *r, const char *run_dir, const char *folder,
                                     int *pictures_out);

#endif
