#include "launch/recording.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

enum { WARM_UP = 2, SPANS_PER_STEP = 1 << 14, MOST_SPANS = 1 << 21 };

static void warn_once(recording *r, const char *file)
{
    if (!r->has_warned) {
        r->has_warned = true;
        tsr_log(TSR_LOG_WARN, "%s cannot be written: %s; the run goes on without it", file,
                strerror(errno));
    }
}

tsr_status recording_open(recording *r, const run_config *config, tsr_comm *comm,
                          int64_t first_step)
{
    char path[TSR_TEXT_MAX + 16];

    *r = (recording){.config = config,
                     .comm = comm,
                     .trace_begin = first_step + WARM_UP,
                     .trace_end = first_step + WARM_UP + config->trace_steps};
    if (config->loads_every == 0 || tsr_comm_rank(comm) != 0) {
        return TSR_OK;
    }
    (void)snprintf(path, sizeof path, "%s/loads.csv", config->dir);
    r->loads = fopen(path, "a");
    TSR_CHECK(r->loads != NULL, TSR_ERR_IO, "%s: %s", path, strerror(errno));
    return TSR_OK;
}

static tsr_status start_trace(recording *r)
{
    const int64_t spans = r->config->trace_steps * SPANS_PER_STEP;

    TSR_TRY(tsr_comm_agree(r->comm, tsr_trace_start(spans < MOST_SPANS ? spans : MOST_SPANS)));
    TSR_TRY(tsr_comm_barrier(r->comm)); /* hosts have clocks of their own: this is their zero */
    r->start_ns = tsr_trace_clock();
    return TSR_OK;
}

static void write_trace(recording *r)
{
    const int rank = tsr_comm_rank(r->comm);
    char path[TSR_TEXT_MAX + 32];

    (void)snprintf(path, sizeof path, "%s/trace", r->config->dir);
    (void)mkdir(path, 0777); /* another rank may have made it; what is wrong shows below */
    (void)snprintf(path, sizeof path, "%s/trace/rank-%04d.json", r->config->dir, rank);
    FILE *to = fopen(path, "w");
    if (to == NULL || tsr_trace_write(to, rank, r->start_ns) != TSR_OK) {
        warn_once(r, path);
    } else if (rank == 0) {
        tsr_log(TSR_LOG_INFO, "trace of %" PRId64 " steps in %s/trace: open in ui.perfetto.dev",
                r->config->trace_steps, r->config->dir);
    }
    if (to != NULL) {
        (void)fclose(to);
    }
    tsr_trace_stop();
    r->trace_end = r->trace_begin;
}

tsr_status recording_before_step(recording *r, int64_t done)
{
    if (r->trace_begin == r->trace_end) {
        return TSR_OK;
    }
    if (done == r->trace_begin) {
        return start_trace(r);
    }
    if (done == r->trace_end) {
        write_trace(r);
    }
    return TSR_OK;
}

void recording_loads(recording *r, int64_t step, const double *counts, int64_t layers,
                     int64_t experts)
{
    if (r->loads == NULL || step % r->config->loads_every != 0) {
        return;
    }
    for (int64_t l = 0; l < layers; ++l) {
        double sum = 0.0;

        for (int64_t e = 0; e < experts; ++e) {
            sum += counts[l * experts + e];
        }
        if (sum > 0.0) {
            (void)fprintf(r->loads, "%" PRId64 ",%" PRId64, step, l);
            for (int64_t e = 0; e < experts; ++e) {
                (void)fprintf(r->loads, ",%.0f", counts[l * experts + e]);
            }
            (void)fputc('\n', r->loads);
        }
    }
    if (fflush(r->loads) != 0) {
        warn_once(r, "loads.csv");
    }
}

void recording_close(recording *r)
{
    if (r->config != NULL && r->start_ns != 0 && r->trace_begin != r->trace_end) {
        write_trace(r); /* the run ended first */
    }
    if (r->loads != NULL && fclose(r->loads) != 0) {
        warn_once(r, "loads.csv");
    }
    *r = (recording){0};
}
