#include "runtime/log.h"

#include <stdarg.h>

static FILE *log_stream;
static tsr_log_level log_level = TSR_LOG_INFO;
static int log_rank;

void tsr_log_setup(FILE *stream, tsr_log_level level, int rank)
{
    log_stream = stream;
    log_level = level;
    log_rank = rank;
}

void tsr_log(tsr_log_level level, const char *fmt, ...)
{
    static const char *const prefix[] = {"error: ", "warning: ", "", "debug: ", "trace: "};
    FILE *stream = log_stream != NULL ? log_stream : stderr;
    char text[2048];
    va_list args;

    if (level > log_level || (level == TSR_LOG_INFO && log_rank != 0)) {
        return;
    }
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (log_rank != 0) {
        (void)fprintf(stream, "%srank %d: %s\n", prefix[level], log_rank, text);
    } else {
        (void)fprintf(stream, "%s%s\n", prefix[level], text);
    }
    (void)fflush(stream);
}
