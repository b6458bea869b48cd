/* Run files: one option table a folder, read by inih, overridden by --set, all errors at once.
 *
 * A table row names section, key, type, default, limits, unit and help, and where the value goes
 * in the folder's struct. Nothing else knows keys: --help-config, --print-config, checks and the
 * nearest-name hints are all made from the tables. Checks across keys are the folder's own. */
#ifndef TSR_RUNTIME_CONFIG_H
#define TSR_RUNTIME_CONFIG_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    TSR_TEXT_MAX = 1024 /* bytes of a text value with its end */
};

typedef enum tsr_option_type {
    TSR_OPTION_INT,   /* int64_t; k, m, g suffixes are not taken, 1e6 is */
    TSR_OPTION_REAL,  /* double */
    TSR_OPTION_BOOL,  /* bool; true false yes no on off 1 0 */
    TSR_OPTION_TEXT,  /* char[TSR_TEXT_MAX] */
    TSR_OPTION_PATH,  /* char[TSR_TEXT_MAX]; relative ones are relative to the run file */
    TSR_OPTION_PATHS, /* char[TSR_TEXT_MAX]; comma separated, each as PATH */
    TSR_OPTION_CHOICE /* int: place in `choices` */
} tsr_option_type;

typedef struct tsr_option {
    const char *section, *key;
    tsr_option_type type;
    const char *fallback; /* default, as text; NULL: the key must be given */
    double min, max;      /* INT and REAL; inclusive; both 0: no limits */
    const char *choices;  /* CHOICE: "softmax sigmoid" */
    const char *unit;     /* "tokens", "s", or NULL */
    const char *help;     /* one line */
    size_t offset;        /* in the folder's struct */
} tsr_option;

/** One folder's options and the struct they fill. */
typedef struct tsr_option_table {
    const tsr_option *options;
    int count;
    void *target;
} tsr_option_table;

/** Errors found in one run file, each a line "FILE:LINE: text". Zeroed is empty. Lines that do not
 *  fit are only counted. */
typedef struct tsr_config_errors {
    char text[8192];
    int count;
} tsr_config_errors;

/** Add one line to the errors; for folders' cross-checks. file_line may be NULL. */
void tsr_config_error(tsr_config_errors *errors, const char *fmt, ...) TSR_PRINTF(2, 3);

/**
 * Fill the tables' structs from defaults, then text, then overrides ("section.key=value").
 *
 * file_name is used in messages and as the base of relative paths; those in overrides are relative
 * to the working folder, as typed. Unknown keys name the nearest known one; wrong types, values out
 * of range, keys given twice and missing ones are all collected. Of overrides the last one counts.
 * Errors: none by status; the caller checks errors->count.
 */
void tsr_config_read(const char *text, const char *file_name, const char *const *overrides,
                     int override_count, const tsr_option_table *tables, int table_count,
                     tsr_config_errors *errors);

/** Write the structs as a run file that reads back to the same values, absolute paths included. */
void tsr_config_print(FILE *to, const tsr_option_table *tables, int table_count);

/** As tsr_config_print(), into an own block (free with tsr_mem_free()). */
TSR_NODISCARD tsr_status tsr_config_to_text(const tsr_option_table *tables, int table_count,
                                            char **out);

/** Print all options with type, default, range, unit and help: --help-config. */
void tsr_config_help(FILE *to, const tsr_option_table *tables, int table_count);

#ifdef __cplusplus
}
#endif

#endif
