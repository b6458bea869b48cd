#include "launch/metrics.h"
#include "launch/figure.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

static void write_line(metrics *m, json_t *object)
{
    errno = 0;
    const bool is_written =
        object != NULL && json_dumpf(object, m->file, JSON_COMPACT | JSON_REAL_PRECISION(9)) == 0 &&
        fputc('\n', m->file) != EOF && fflush(m->file) == 0;

    json_decref(object);
    if (!is_written && !m->has_warned) {
        m->has_warned = true;
        tsr_log(TSR_LOG_WARN, "metrics.jsonl cannot be written: %s; lines are missing from now on",
                strerror(errno));
    }
}

tsr_status metrics_open(metrics *m, const char *run_dir, int64_t resumed_from, int64_t steps,
                        FILE *people)
{
    char path[TSR_TEXT_MAX + 16];

    *m = (metrics){.people = people, .steps = steps};
    (void)snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    m->file = fopen(path, "a");
    TSR_CHECK(m->file != NULL, TSR_ERR_IO, "%s: %s", path, strerror(errno));
    /* cppcheck-suppress seekOnAppendedFile; not to write elsewhere, but to learn the length */
    if (fseek(m->file, 0, SEEK_END) == 0 && ftell(m->file) > 0) {
        write_line(m, json_pack("{s:I}", "resumed_from", (json_int_t)resumed_from));
    }
    return TSR_OK;
}

void metrics_close(metrics *m)
{
    if (m->file != NULL && fclose(m->file) != 0) {
        tsr_log(TSR_LOG_WARN, "metrics.jsonl: %s", strerror(errno));
    }
    m->file = NULL;
}

const char *metrics_short(double value, char out[16])
{
    static const char units[] = {'\0', 'k', 'M', 'G', 'T', 'P'};
    size_t unit = 0;

    while (fabs(value) >= 999.5 && unit + 1 < sizeof units) {
        value /= 1000.0;
        ++unit;
    }
    if (units[unit] == '\0') {
        (void)snprintf(out, 16, "%.3g", value);
    } else {
        (void)snprintf(out, 16, "%.3g%c", value, units[unit]);
    }
    return out;
}

static void print_eta(double seconds, char out[32])
{
    const long all = lround(seconds);

    (void)snprintf(out, 32, "%ld:%02ld:%02ld", all / 3600, all / 60 % 60, all % 60);
}

/* Bytes by link. */
static json_t *links_json(const double bytes[TSR_LINKS])
{
    return json_pack("{s:I,s:I,s:I,s:I}", "self", (json_int_t)bytes[TSR_LINK_SELF], "intra_node",
                     (json_int_t)bytes[TSR_LINK_INTRA_NODE], "in_plane",
                     (json_int_t)bytes[TSR_LINK_IN_PLANE], "cross_plane",
                     (json_int_t)bytes[TSR_LINK_CROSS_PLANE]);
}

/* Bytes in all, and by what they were moved for where there are any. */
static void add_bytes(json_t *line, const double bytes[TSR_TRAFFICS][TSR_LINKS])
{
    double sums[TSR_LINKS] = {0.0};
    json_t *by = json_object();

    for (int purpose = 0; purpose < TSR_TRAFFICS; ++purpose) {
        double sum = 0.0;

        for (int link = 0; link < TSR_LINKS; ++link) {
            sum += bytes[purpose][link];
            sums[link] += bytes[purpose][link];
        }
        if (sum > 0.0) {
            (void)json_object_set_new(by, tsr_traffic_name((tsr_traffic)purpose),
                                      links_json(bytes[purpose]));
        }
    }
    (void)json_object_set_new(line, "bytes", links_json(sums));
    (void)json_object_set_new(line, "bytes_by", by);
}

/* One figure of each layer. */
static json_t *figures_json(const step_result *r, size_t offset)
{
    json_t *list = json_array();

    for (int64_t l = r->first_layer; l < r->layers; ++l) {
        const char *at = (const char *)&r->balance[l] + offset;
        (void)json_array_append_new(list, figure_json(*(const double *)(const void *)at));
    }
    return list;
}

/* How each layer's tokens were spread over ranks. */
static void add_balance(json_t *line, const step_result *r)
{
    if (r->balance != NULL) {
        (void)json_object_set_new(
            line, "moe",
            json_pack("{s:o,s:o,s:o,s:o,s:o}", "before",
                      figures_json(r, offsetof(layer_balance, before)), "after",
                      figures_json(r, offsetof(layer_balance, after)), "copies",
                      figures_json(r, offsetof(layer_balance, copies)), "bytes",
                      figures_json(r, offsetof(layer_balance, bytes)), "exposed_ms",
                      figures_json(r, offsetof(layer_balance, exposed_ms))));
    }
}

void metrics_step(metrics *m, int64_t step, const step_result *r)
{
    const double gib = 1.0 / 1073741824.0;
    char rate[16], eta[32], experts[48] = "";

    if (m->file == NULL) {
        return; /* not rank 0 */
    }
    m->smooth_ms = m->smooth_ms > 0.0 ? 0.95 * m->smooth_ms + 0.05 * r->ms : r->ms;
    print_eta(1e-3 * m->smooth_ms * (double)(m->steps - step), eta);
    if (r->expert_max_over_mean > 0.0) {
        (void)snprintf(experts, sizeof experts, " | experts %.2f L%d", r->expert_max_over_mean,
                       r->worst_layer);
    }
    (void)fprintf(
        m->people,
        "step %lld/%lld | loss %.4f | aux %.4f | gnorm %.3f | lr %.2e | %.0f ms | %s tok/s | "
        "%.0f%% peak%s | %.2f GiB | eta %s\n",
        (long long)step, (long long)m->steps, r->loss, r->aux_loss, r->grad_norm, r->lr, r->ms,
        metrics_short(r->tokens_per_s, rate), 100.0 * r->gemm_share, experts, r->mem_bytes * gib,
        eta);
    (void)fflush(m->people);
    json_t *parts = json_object();
    for (int part = 0; part < STEP_PARTS; ++part) {
        (void)json_object_set_new(parts, step_part_name((step_part)part),
                                  figure_json(r->part_ms[part]));
    }
    json_t *line = json_pack(
        "{s:I,s:I,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "step", (json_int_t)step,
        "tokens", (json_int_t)r->tokens_seen, "loss", figure_json(r->loss), "aux_loss",
        figure_json(r->aux_loss), "grad_norm", figure_json(r->grad_norm), "lr", figure_json(r->lr),
        "ms", figure_json(r->ms), "tokens_per_s", figure_json(r->tokens_per_s), "gemm_share",
        figure_json(r->gemm_share), "expert_max_over_mean", figure_json(r->expert_max_over_mean),
        "mem_gib", figure_json(r->mem_bytes * gib), "held_gib", figure_json(r->held_bytes * gib),
        "planned_gib", figure_json(r->planned_bytes * gib), "parts_ms", parts);
    add_bytes(line, r->bytes);
    add_balance(line, r);
    if (r->resharded > 0) {
        (void)json_object_set_new(line, "resharded", json_integer((json_int_t)r->resharded));
    }
    write_line(m, line);
}

void metrics_validation(metrics *m, int64_t step, double loss, int64_t tokens)
{
    if (m->file == NULL) {
        return;
    }
    (void)fprintf(m->people, "step %lld/%lld | validation loss %.4f nats/token over %lld tokens\n",
                  (long long)step, (long long)m->steps, loss, (long long)tokens);
    (void)fflush(m->people);
    write_line(m, json_pack("{s:I,s:o,s:I}", "step", (json_int_t)step, "valid_loss",
                            figure_json(loss), "valid_tokens", (json_int_t)tokens));
}
