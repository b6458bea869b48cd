#include "runtime/status.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[1024];
static _Thread_local char place[128];

tsr_status tsr_fail(tsr_status code, const char *file, int line, const char *fmt, ...)
{
    char text[sizeof message]; /* fmt's arguments may point into the old message */
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    (void)snprintf(message, sizeof message, "%s", text);
    (void)snprintf(place, sizeof place, "%s:%d", file, line);
    return code;
}

const char *tsr_error_message(void)
{
    return message;
}

const char *tsr_error_place(void)
{
    return place;
}

const char *tsr_status_name(tsr_status code)
{
    static const char *const names[] = {
        [TSR_OK] = "ok",
        [TSR_ERR_ARG] = "argument",
        [TSR_ERR_STATE] = "state",
        [TSR_ERR_RANGE] = "range",
        [TSR_ERR_NOMEM] = "out of memory",
        [TSR_ERR_IO] = "input/output",
        [TSR_ERR_FORMAT] = "format",
        [TSR_ERR_UNSUPPORTED] = "unsupported",
        [TSR_ERR_DEVICE] = "device",
        [TSR_ERR_COMM] = "communication",
        [TSR_ERR_TIMEOUT] = "timeout",
        [TSR_ERR_PEER] = "peer",
        [TSR_ERR_INTERNAL] = "internal",
    };
    const unsigned at = (unsigned)code;

    return at < sizeof names / sizeof names[0] ? names[at] : "unknown";
}
