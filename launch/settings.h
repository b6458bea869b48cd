/* The whole run file: every folder's options in one place, read, checked, printed. */
#ifndef TSR_LAUNCH_SETTINGS_H
#define TSR_LAUNCH_SETTINGS_H

#include "checkpoints/checkpoints.h"
#include "optim/optim.h"
#include "parallel/parallel.h"

/** Values of section [run]. */
typedef struct run_config {
    char dir[TSR_TEXT_MAX];
    int64_t seed;
    int device; /* device_choice */
    int64_t threads;
    double timeout_s;
    int64_t loads_every, trace_steps;
} run_config;

/** Values of section [train]. */
typedef struct train_config {
    int64_t steps, global_batch, micro_batch, valid_every, valid_tokens;
    int recompute; /* tsr_recompute */
} train_config;

/** Values of section [precision]. */
typedef struct precision_config {
    int compute; /* tsr_dtype */
} precision_config;

enum { SETTINGS_TABLES = 10 };

typedef struct settings {
    run_config run;
    tsr_model_config model;
    tsr_data_config data;
    train_config train;
    tsr_optim_config optim;
    precision_config precision;
    tsr_parallel_config parallel;
    tsr_experts_config experts;
    tsr_topology_config topology;
    tsr_checkpoint_config checkpoint;
    tsr_option_table tables[SETTINGS_TABLES]; /* pointing into this struct: do not copy it */
} settings;

/**
 * Read a run file's text with its overrides and check everything that can be checked alone.
 *
 * Errors: TSR_ERR_ARG; the message holds all errors, a line each.
 */
TSR_NODISCARD tsr_status settings_read(settings *s, const char *text, const char *file_name,
                                       const char *const *overrides, int override_count);

/** As settings_read(), from a file: rank 0 reads and sends, all parse the same. Collective. */
TSR_NODISCARD tsr_status settings_read_file(settings *s, tsr_comm *comm, const char *path,
                                            const char *const *overrides, int override_count);

/** Point the tables into s; for printing help and for settings_read(). */
void settings_tables(settings *s);

#endif
