/* `tessera report`: a run's figures as a table and as pictures. */
#include "launch/report.h"
#include "launch/cli.h"
#include "launch/figure.h"
#include "launch/world.h"

#include <jansson.h>
#include <math.h>

static const cli_option report_options[] = {
    {"out", "DIR", "where tables, gnuplot scripts and pictures go (RUN/report)"},
    {"json", NULL, "print one JSON object on stdout"},
    {NULL, NULL, NULL},
};

static const struct {
    report_field field;
    const char *title, *format;
} rows[] = {
    {REPORT_LOSS, "loss", "%12.4f"},
    {REPORT_AUX_LOSS, "aux loss", "%12.4f"},
    {REPORT_GRAD_NORM, "gradient norm", "%12.3f"},
    {REPORT_MS, "step, ms", "%12.1f"},
    {REPORT_FORWARD_BACKWARD, "  forward, backward", "%12.1f"},
    {REPORT_REDUCE, "  gradient reduction", "%12.1f"},
    {REPORT_TOTALS, "  totals", "%12.1f"},
    {REPORT_UPDATE, "  optimizer, weights", "%12.1f"},
    {REPORT_TOKENS_PER_S, "tokens/s", "%12.0f"},
    {REPORT_GEMM_SHARE, "share of GEMM peak", "%12.3f"},
    {REPORT_IMBALANCE, "experts max/mean", "%12.2f"},
    {REPORT_BEFORE, "ranks max/mean, owners", "%12.2f"},
    {REPORT_AFTER, "ranks max/mean, done", "%12.2f"},
    {REPORT_COPIES, "copies a layer", "%12.1f"},
    {REPORT_EXPOSED_MS, "exposed copies, ms", "%12.2f"},
    {REPORT_SELF, "bytes self", "%12.4g"},
    {REPORT_INTRA_NODE, "bytes intra node", "%12.4g"},
    {REPORT_IN_PLANE, "bytes in plane", "%12.4g"},
    {REPORT_CROSS_PLANE, "bytes cross plane", "%12.4g"},
    {REPORT_MEM_GIB, "memory, GiB", "%12.3f"},
};

enum { ROWS = sizeof rows / sizeof rows[0], QUANTILES = 3 };
static const double quantiles[QUANTILES] = {0.1, 0.5, 0.9};

/* Mean of the first or last tenth (one step at least): one step's loss is noise. */
static double end_mean(const report *r, report_field field, bool is_last)
{
    const int64_t n = r->step_count >= 10 ? r->step_count / 10 : 1;
    double sum = 0.0;

    for (int64_t i = 0; i < n; ++i) {
        sum += r->steps[is_last ? r->step_count - 1 - i : i].value[field];
    }
    return sum / (double)n;
}

static const report_validation *best_validation(const report *r)
{
    const report_validation *best = NULL;

    for (int64_t i = 0; i < r->validation_count; ++i) {
        const report_validation *v = &r->validations[i];

        if (!isnan(v->loss) && (best == NULL || v->loss < best->loss)) {
            best = v;
        }
    }
    return best;
}

static double training_hours(const report *r)
{
    double ms = 0.0;

    for (int64_t i = 0; i < r->step_count; ++i) {
        ms += isnan(r->steps[i].value[REPORT_MS]) ? 0.0 : r->steps[i].value[REPORT_MS];
    }
    return ms / 3.6e6;
}

static void print_head(const report *r, const char *run_dir)
{
    const report_step *last = &r->steps[r->step_count - 1];
    const report_validation *best = best_validation(r);

    (void)printf("run %s: steps %lld to %lld, %.0f tokens, %.2f h in steps, resumed %lld time%s\n",
                 run_dir, (long long)r->steps[0].step, (long long)last->step,
                 last->value[REPORT_TOKENS], training_hours(r), (long long)r->resumes,
                 r->resumes == 1 ? "" : "s");
    (void)printf("loss %.4f in the first tenth, %.4f in the last", end_mean(r, REPORT_LOSS, false),
                 end_mean(r, REPORT_LOSS, true));
    if (best != NULL) {
        (void)printf("; best validation %.4f at step %lld, last %.4f", best->loss,
                     (long long)best->step, r->validations[r->validation_count - 1].loss);
    }
    (void)printf("\n\n%-24s %12s %12s %12s %12s\n", "over steps", "10 %", "median", "90 %", "last");
}

static tsr_status print_rows(const report *r, json_t *object)
{
    const report_step *last = &r->steps[r->step_count - 1];

    for (int i = 0; i < ROWS; ++i) {
        double q[QUANTILES];

        if (!report_has(r, rows[i].field)) {
            continue;
        }
        for (int k = 0; k < QUANTILES; ++k) {
            TSR_TRY(report_quantile(r, rows[i].field, quantiles[k], &q[k]));
        }
        const double end = last->value[rows[i].field];
        if (object == NULL) {
            (void)printf("%-24s ", rows[i].title);
            for (int k = 0; k < QUANTILES; ++k) {
                (void)printf(rows[i].format, q[k]);
                (void)putchar(' ');
            }
            (void)printf(rows[i].format, end);
            (void)putchar('\n');
        } else {
            (void)json_object_set_new(object, report_field_name(rows[i].field),
                                      json_pack("{s:o,s:o,s:o,s:o}", "p10", figure_json(q[0]),
                                                "median", figure_json(q[1]), "p90",
                                                figure_json(q[2]), "last", figure_json(end)));
        }
    }
    return TSR_OK;
}

static tsr_status print_json(const report *r, const char *run_dir, const char *folder, int pictures)
{
    const report_step *last = &r->steps[r->step_count - 1];
    const report_validation *best = best_validation(r);
    json_t *figures = json_object();
    json_t *object =
        json_pack("{s:s,s:I,s:I,s:I,s:I,s:o,s:o,s:s,s:i,s:O}", "run", run_dir, "first_step",
                  (json_int_t)r->steps[0].step, "last_step", (json_int_t)last->step, "resumes",
                  (json_int_t)r->resumes, "bad_lines", (json_int_t)r->bad_lines, "first_loss",
                  figure_json(end_mean(r, REPORT_LOSS, false)), "last_loss",
                  figure_json(end_mean(r, REPORT_LOSS, true)), "folder", folder, "pictures",
                  pictures, "over_steps", figures);
    const tsr_status st = print_rows(r, figures);

    if (best != NULL) {
        (void)json_object_set_new(object, "best_valid_loss", figure_json(best->loss));
        (void)json_object_set_new(object, "best_valid_step", json_integer((json_int_t)best->step));
    }
    if (st == TSR_OK) {
        (void)json_dumpf(object, stdout, JSON_REAL_PRECISION(9));
        (void)putchar('\n');
    }
    json_decref(figures);
    json_decref(object);
    return st;
}

static tsr_status make_report(report *r, const char *run_dir, const char *out, bool as_json)
{
    char folder[TSR_TEXT_MAX + 16];
    int pictures = 0;

    (void)snprintf(folder, sizeof folder, "%s%s", out != NULL ? out : run_dir,
                   out != NULL ? "" : "/report");
    TSR_TRY(report_read(run_dir, r));
    TSR_TRY(report_plot(r, run_dir, folder, &pictures));
    if (r->bad_lines > 0) {
        tsr_log(TSR_LOG_WARN, "%s/metrics.jsonl: %lld lines are no steps and were left out",
                run_dir, (long long)r->bad_lines);
    }
    if (as_json) {
        return print_json(r, run_dir, folder, pictures);
    }
    print_head(r, run_dir);
    TSR_TRY(print_rows(r, NULL));
    (void)printf("\ntables and gnuplot scripts in %s, %d pictures%s\n", folder, pictures,
                 pictures == 0 ? ": gnuplot is not installed or failed" : " (SVG)");
    return TSR_OK;
}

static int run_report(const cli_values *values, world *w)
{
    report r = {0};
    const tsr_status st =
        make_report(&r, values->positional[0], cli_get(&cli_report, values, "out"), w->json);

    report_free(&r);
    return st == TSR_OK ? EXIT_DONE : world_fail(w, st);
}

const cli_command cli_report = {
    .name = "report",
    .arguments = "RUN [--out DIR]",
    .summary = "Tables and pictures of a run: loss, speed, time, balance, bytes.",
    .details = "RUN is a run folder. Pictures are SVG, made by gnuplot if it is installed; their\n"
               "tables and scripts stay beside them. With run.loads_every set, the load of each\n"
               "expert over time is one of them.\n",
    .min_positional = 1,
    .max_positional = 1,
    .options = report_options,
    .run = run_report,
    .needs_ranks = false,
};
