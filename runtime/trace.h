/* Spans of time of this process, for the viewers of Chrome and Perfetto.
 *
 * Off, a span costs one load. On, spans are kept in one block taken at the start; when it is full
 * further ones are counted and left out. Spans are wall time of the host: what a GPU does behind
 * its stream shows where it is waited for. */
#ifndef TSR_RUNTIME_TRACE_H
#define TSR_RUNTIME_TRACE_H

#include "runtime/status.h"

#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The row of the picture that a span lies in. */
typedef enum tsr_trace_track {
    TSR_TRACE_STEP = 0,   /* parts of a step */
    TSR_TRACE_COMPUTE,    /* layers */
    TSR_TRACE_EXCHANGE,   /* communication, on whichever thread */
    TSR_TRACE_BACKGROUND, /* calls that run beside the computation */
    TSR_TRACE_TRACKS
} tsr_trace_track;

/** Begin to record at most max_spans. Errors: TSR_ERR_ARG if < 1, TSR_ERR_NOMEM, TSR_ERR_STATE if
 *  it has begun. */
TSR_NODISCARD tsr_status tsr_trace_start(int64_t max_spans);

/** Nanoseconds of a monotonic clock, 0 when nothing is recorded. Threads: any. */
int64_t tsr_trace_begin(void);

/** Close the span that began at `begin`; nothing if that is 0. name is kept, not copied; number
 *  goes with it (a layer, a step), < 0: none. Threads: any. */
void tsr_trace_end(tsr_trace_track track, const char *name, int64_t number, int64_t begin);

/** Write what was recorded as one JSON object, process `rank`, times from the common start_ns of
 *  the ranks' clocks (see tsr_trace_clock()). Errors: TSR_ERR_IO. */
TSR_NODISCARD tsr_status tsr_trace_write(FILE *to, int rank, int64_t start_ns);

/** The clock of spans, always. */
int64_t tsr_trace_clock(void);

/** Stop and give the memory back; fine when nothing was started. No span may be open in another
 *  thread. */
void tsr_trace_stop(void);

#ifdef __cplusplus
}
#endif

#endif
