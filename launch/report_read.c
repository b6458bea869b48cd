#include "launch/report.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Where each figure lies: the object that holds it (NULL: the line), and its key there. */
static const struct {
    const char *object, *key;
} places[REPORT_FIELDS] = {
    [REPORT_LOSS] = {NULL, "loss"},
    [REPORT_AUX_LOSS] = {NULL, "aux_loss"},
    [REPORT_GRAD_NORM] = {NULL, "grad_norm"},
    [REPORT_LR] = {NULL, "lr"},
    [REPORT_MS] = {NULL, "ms"},
    [REPORT_TOKENS_PER_S] = {NULL, "tokens_per_s"},
    [REPORT_GEMM_SHARE] = {NULL, "gemm_share"},
    [REPORT_IMBALANCE] = {NULL, "expert_max_over_mean"},
    [REPORT_MEM_GIB] = {NULL, "mem_gib"},
    [REPORT_TOKENS] = {NULL, "tokens"},
    [REPORT_SELF] = {"bytes", "self"},
    [REPORT_INTRA_NODE] = {"bytes", "intra_node"},
    [REPORT_IN_PLANE] = {"bytes", "in_plane"},
    [REPORT_CROSS_PLANE] = {"bytes", "cross_plane"},
    [REPORT_FORWARD_BACKWARD] = {"parts_ms", "forward_backward"},
    [REPORT_REDUCE] = {"parts_ms", "reduce"},
    [REPORT_TOTALS] = {"parts_ms", "totals"},
    [REPORT_UPDATE] = {"parts_ms", "update"},
    [REPORT_BEFORE] = {"moe", "before"},
    [REPORT_AFTER] = {"moe", "after"},
    [REPORT_COPIES] = {"moe", "copies"},
    [REPORT_EXPOSED_MS] = {"moe", "exposed_ms"},
};

const char *report_field_name(report_field field)
{
    return places[field].key;
}

/* A number, or the mean of an array of them (a figure a layer). */
static double number_of(const json_t *value)
{
    double sum = 0.0;
    size_t at = 0;
    json_t *item = NULL;

    if (json_is_number(value)) {
        return json_number_value(value);
    }
    if (!json_is_array(value) || json_array_size(value) == 0) {
        return NAN;
    }
    json_array_foreach(value, at, item)
    {
        sum += json_is_number(item) ? json_number_value(item) : NAN;
    }
    return sum / (double)json_array_size(value);
}

static tsr_status grow(void **block, int64_t count, int64_t *room, size_t size)
{
    void *larger = NULL;

    if (count < *room) {
        return TSR_OK;
    }
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, 2 * *room + 64, size, &larger));
    if (count > 0) {
        memcpy(larger, *block, (size_t)count * size);
    }
    tsr_mem_free(*block);
    *block = larger;
    *room = 2 * *room + 64;
    return TSR_OK;
}

static void drop_validations_after(report *r, int64_t step)
{
    while (r->validation_count > 0 && r->validations[r->validation_count - 1].step > step) {
        --r->validation_count;
    }
}

/* The run went on from this step: what an earlier try did beyond it is not this run's. */
static void drop_after(report *r, int64_t step)
{
    while (r->step_count > 0 && r->steps[r->step_count - 1].step > step) {
        --r->step_count;
    }
    drop_validations_after(r, step);
}

static tsr_status add_step(report *r, const json_t *line, int64_t step)
{
    drop_after(r, step - 1);
    TSR_TRY(grow((void **)&r->steps, r->step_count, &r->step_room, sizeof *r->steps));
    report_step *to = &r->steps[r->step_count++];
    to->step = step;
    for (int f = 0; f < REPORT_FIELDS; ++f) {
        const json_t *from =
            places[f].object != NULL ? json_object_get(line, places[f].object) : line;
        to->value[f] = number_of(json_object_get(from, places[f].key));
    }
    return TSR_OK;
}

static tsr_status add_validation(report *r, int64_t step, double loss)
{
    drop_validations_after(r, step - 1);
    TSR_TRY(grow((void **)&r->validations, r->validation_count, &r->validation_room,
                 sizeof *r->validations));
    r->validations[r->validation_count++] = (report_validation){step, loss};
    return TSR_OK;
}

static tsr_status add_line(report *r, const char *text)
{
    json_t *line = json_loads(text, 0, NULL);
    const json_t *step = json_object_get(line, "step");
    const json_t *valid = json_object_get(line, "valid_loss");
    const json_t *resumed = json_object_get(line, "resumed_from");
    tsr_status st = TSR_OK;

    if (json_is_integer(resumed)) {
        ++r->resumes;
        drop_after(r, json_integer_value(resumed));
    } else if (!json_is_integer(step)) {
        ++r->bad_lines;
    } else if (valid != NULL) {
        st = add_validation(r, json_integer_value(step), number_of(valid));
    } else {
        st = add_step(r, line, json_integer_value(step));
    }
    json_decref(line);
    return st;
}

tsr_status report_read(const char *run_dir, report *out)
{
    char path[TSR_TEXT_MAX + 16];
    char *text = NULL;
    size_t room = 0;
    tsr_status st = TSR_OK;

    *out = (report){0};
    (void)snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    FILE *file = fopen(path, "r");
    TSR_CHECK(file != NULL, TSR_ERR_IO, "%s: %s; RUN is the folder that run.dir names", path,
              strerror(errno));
    while (st == TSR_OK && getline(&text, &room, file) >= 0) {
        st = add_line(out, text);
    }
    const bool is_bad = ferror(file) != 0;
    free(text); /* getline's own */
    (void)fclose(file);
    if (st == TSR_OK && is_bad) {
        st = TSR_FAIL(TSR_ERR_IO, "%s: cannot be read", path);
    }
    if (st == TSR_OK && out->step_count == 0) {
        st = TSR_FAIL(TSR_ERR_FORMAT, "%s: holds no step (%lld lines are not steps)", path,
                      (long long)out->bad_lines);
    }
    if (st != TSR_OK) {
        report_free(out);
    }
    return st;
}

void report_free(report *r)
{
    tsr_mem_free(r->steps);
    tsr_mem_free(r->validations);
    *r = (report){0};
}

bool report_has(const report *r, report_field field)
{
    for (int64_t i = 0; i < r->step_count; ++i) {
        if (!isnan(r->steps[i].value[field])) {
            return true;
        }
    }
    return false;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

tsr_status report_quantile(const report *r, report_field field, double part, double *out)
{
    double *values = NULL;
    int64_t count = 0;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, r->step_count, sizeof *values, (void **)&values));
    for (int64_t i = 0; i < r->step_count; ++i) {
        if (!isnan(r->steps[i].value[field])) {
            values[count++] = r->steps[i].value[field];
        }
    }
    qsort(values, (size_t)count, sizeof *values, ascending);
    *out = count > 0 ? values[(int64_t)(part * (double)(count - 1) + 0.5)] : NAN;
    tsr_mem_free(values);
    return TSR_OK;
}
