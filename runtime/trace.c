#include "runtime/trace.h"
#include "runtime/memory.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

typedef struct span {
    int64_t begin, end, number;
    const char *name;
    tsr_trace_track track;
} span;

static span *spans;
static int64_t room;
static atomic_bool is_on;
static _Atomic int64_t taken; /* may pass room: the rest was left out */

int64_t tsr_trace_clock(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

tsr_status tsr_trace_start(int64_t max_spans)
{
    void *block = NULL;

    TSR_CHECK(max_spans >= 1, TSR_ERR_ARG, "a trace of %" PRId64 " spans, at least 1", max_spans);
    TSR_CHECK(spans == NULL, TSR_ERR_STATE, "a trace is being recorded already");
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, max_spans, sizeof(span), &block));
    spans = block;
    room = max_spans;
    atomic_store(&taken, 0);
    atomic_store(&is_on, true);
    return TSR_OK;
}

int64_t tsr_trace_begin(void)
{
    return atomic_load_explicit(&is_on, memory_order_relaxed) ? tsr_trace_clock() : 0;
}

void tsr_trace_end(tsr_trace_track track, const char *name, int64_t number, int64_t begin)
{
    if (begin == 0 || !atomic_load_explicit(&is_on, memory_order_relaxed)) {
        return;
    }
    const int64_t at = atomic_fetch_add(&taken, 1);
    if (at < room) {
        spans[at] = (span){begin, tsr_trace_clock(), number, name, track};
    }
}

static const char *const track_names[TSR_TRACE_TRACKS] = {"step", "layers", "communication",
                                                          "background"};

/* Names are literals of this program, without characters that JSON would have to escape. */
tsr_status tsr_trace_write(FILE *to, int rank, int64_t start_ns)
{
    const int64_t all = atomic_load(&taken), count = all < room ? all : room;

    (void)fprintf(to,
                  "{\"displayTimeUnit\":\"ms\",\"spansLeftOut\":%" PRId64 ",\"traceEvents\":[\n",
                  all - count);
    (void)fprintf(to,
                  "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%d,\"tid\":0,"
                  "\"args\":{\"name\":\"rank %d\"}}",
                  rank, rank);
    for (int track = 0; track < TSR_TRACE_TRACKS; ++track) {
        (void)fprintf(to,
                      ",\n{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":%d,\"tid\":%d,"
                      "\"args\":{\"name\":\"%s\"}}",
                      rank, track, track_names[track]);
    }
    for (int64_t i = 0; i < count; ++i) {
        const span *s = &spans[i];

        (void)fprintf(to,
                      ",\n{\"ph\":\"X\",\"name\":\"%s\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,"
                      "\"dur\":%.3f",
                      s->name, rank, (int)s->track, 1e-3 * (double)(s->begin - start_ns),
                      1e-3 * (double)(s->end - s->begin));
        if (s->number >= 0) {
            (void)fprintf(to, ",\"args\":{\"number\":%" PRId64 "}", s->number);
        }
        (void)fputc('}', to);
    }
    (void)fputs("\n]}\n", to);
    TSR_CHECK(fflush(to) == 0 && ferror(to) == 0, TSR_ERR_IO, "the trace cannot be written");
    return TSR_OK;
}

void tsr_trace_stop(void)
{
    atomic_store(&is_on, false);
    tsr_mem_free(spans);
    spans = NULL;
    room = 0;
}
