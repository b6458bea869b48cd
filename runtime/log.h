/* Log lines for people: lower case, `name value` pairs, on stderr or stdout of rank 0.
 *
 * Measurements are not log text: they go to metrics.jsonl. Errors are not logged by libraries. */
#ifndef TSR_RUNTIME_LOG_H
#define TSR_RUNTIME_LOG_H

#include "runtime/status.h"

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tsr_log_level {
    TSR_LOG_ERROR,
    TSR_LOG_WARN,
    TSR_LOG_INFO,
    TSR_LOG_DEBUG,
    TSR_LOG_TRACE
} tsr_log_level;

/** Where lines go, up to which level, and the rank they name. info is printed by rank 0 only. */
void tsr_log_setup(FILE *stream, tsr_log_level level, int rank);

/** One line; threads may call it at once. */
void tsr_log(tsr_log_level level, const char *fmt, ...) TSR_PRINTF(2, 3);

#ifdef __cplusplus
}
#endif

#endif
