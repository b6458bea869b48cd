#include "parallel/loads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Log shares wander around the shape's: d(t) = KEPT * d(t - 1) + normal, of which the last
 * REMEMBERED terms are added (KEPT^REMEMBERED = 0.03). */
#define KEPT 0.9
enum { REMEMBERED = 32, HALVINGS = 40 };

struct tsr_loads {
    tsr_load_options options;
    double *share; /* [E] */
    double *log_share;
    float *normal;
    double *trace; /* [steps, layers of the file, E] */
    int64_t trace_steps;
    int trace_layers;
};

/* ---- words ----------------------------------------------------------------------------------- */

static const char *const shapes[] = {
    [TSR_LOAD_EVEN] = "even", [TSR_LOAD_ZIPF] = "zipf",   [TSR_LOAD_MAX_MEAN] = "maxmean",
    [TSR_LOAD_HOT] = "hot",   [TSR_LOAD_TRACE] = "trace",
};

static bool read_number(const char *text, const char **end, double *out)
{
    char *stop = NULL;

    *out = strtod(text, &stop);
    *end = stop;
    return stop != text && isfinite(*out) && *out >= 0.0;
}

/* ",drift=X,noise=X": what is left must be empty. */
static tsr_status read_rest(const char *whole, const char *rest, tsr_load_options *o)
{
    while (*rest == ',') {
        double *const to = strncmp(rest, ",drift=", 7) == 0   ? &o->drift
                           : strncmp(rest, ",noise=", 7) == 0 ? &o->noise
                                                              : NULL;
        TSR_CHECK(to != NULL && read_number(rest + 7, &rest, to), TSR_ERR_ARG,
                  "load %s: \"%s\" must be ,drift=X or ,noise=X with X >= 0", whole, rest);
    }
    TSR_CHECK(*rest == '\0', TSR_ERR_ARG, "load %s: cannot read \"%s\"", whole, rest);
    return TSR_OK;
}

tsr_status tsr_load_parse(const char *text, tsr_load_options *options)
{
    const size_t length = strcspn(text, ":,");
    tsr_load_options o = *options;
    const char *rest = text + length;
    double period = 0.0;
    int shape = -1;

    for (int i = 0; i <= TSR_LOAD_TRACE; ++i) {
        if (strlen(shapes[i]) == length && strncmp(shapes[i], text, length) == 0) {
            shape = i;
        }
    }
    TSR_CHECK(shape >= 0, TSR_ERR_ARG,
              "load %s: must be even, zipf:S, maxmean:R, hot:R@PERIOD or trace:FILE", text);
    o.shape = (tsr_load_shape)shape;
    o.period = 10;
    o.drift = shape == TSR_LOAD_EVEN || shape == TSR_LOAD_TRACE ? 0.0 : 0.22;
    o.noise = shape == TSR_LOAD_EVEN || shape == TSR_LOAD_TRACE ? 0.0 : 0.3;
    TSR_CHECK(shape == TSR_LOAD_EVEN || *rest == ':', TSR_ERR_ARG, "load %s: \"%s\" needs \":\"",
              text, shapes[shape]);
    if (shape == TSR_LOAD_TRACE) {
        const size_t path = strcspn(rest + 1, ",");

        TSR_CHECK(path > 0 && path < sizeof o.path, TSR_ERR_ARG,
                  "load %s: the file's name must have 1 to %zu characters", text,
                  sizeof o.path - 1);
        memcpy(o.path, rest + 1, path);
        o.path[path] = '\0';
        rest += 1 + path;
    } else if (shape != TSR_LOAD_EVEN) {
        TSR_CHECK(read_number(rest + 1, &rest, &o.value), TSR_ERR_ARG,
                  "load %s: \":\" must be followed by a number >= 0", text);
    }
    if (shape == TSR_LOAD_HOT && *rest == '@') {
        TSR_CHECK(read_number(rest + 1, &rest, &period) && period >= 1.0 && period <= 1e9,
                  TSR_ERR_ARG, "load %s: \"@\" must be followed by steps, 1 to 1e9", text);
        o.period = (int)period;
    }
    TSR_TRY(read_rest(text, rest, &o));
    *options = o;
    return TSR_OK;
}

/* ---- recorded loads -------------------------------------------------------------------------- */

static tsr_status read_text(const char *path, char **text_out)
{
    FILE *file = fopen(path, "rb");
    char *text = NULL;
    tsr_status st = TSR_OK;

    TSR_CHECK(file != NULL, TSR_ERR_IO, "cannot read %s", path);
    const long size = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    if (size < 0 || fseek(file, 0, SEEK_SET) != 0) {
        st = TSR_FAIL(TSR_ERR_IO, "cannot read %s", path);
    } else {
        st = tsr_mem_alloc(TSR_MEM_OTHER, (size_t)size + 1, (void **)&text);
    }
    if (st == TSR_OK && fread(text, 1, (size_t)size, file) != (size_t)size) {
        tsr_mem_free(text);
        st = TSR_FAIL(TSR_ERR_IO, "cannot read %s", path);
    }
    (void)fclose(file);
    if (st == TSR_OK) {
        *text_out = text;
    }
    return st;
}

/* One line into row [E]; end is where the next one begins. */
static bool read_line(const char *line, int experts, double *step, double *row, const char **end)
{
    double layer = 0.0;
    bool is_right =
        read_number(line, &line, step) && *line++ == ',' && read_number(line, &line, &layer);

    for (int e = 0; is_right && e < experts; ++e) {
        is_right = *line == ',' && read_number(line + 1, &line, &row[e]);
    }
    line += *line == '\r';
    is_right = is_right && (*line == '\n' || *line == '\0');
    *end = line + (*line == '\n');
    return is_right;
}

static tsr_status read_rows(tsr_loads *l, const char *text, int64_t lines)
{
    const int experts = l->options.experts;
    const char *at = text;
    double last_step = 0.0;
    int64_t rows = 0;

    TSR_TRY(
        tsr_mem_alloc_array(TSR_MEM_OTHER, lines * experts, sizeof *l->trace, (void **)&l->trace));
    for (int64_t number = 1; *at != '\0'; ++number) {
        double step = 0.0, sum = 0.0, *row = l->trace + rows * experts;

        if (number == 1 && (*at < '0' || *at > '9')) {
            at += strcspn(at, "\n");
            at += *at == '\n';
            continue;
        }
        TSR_CHECK(read_line(at, experts, &step, row, &at), TSR_ERR_FORMAT,
                  "%s, line %lld: must be step,layer and the tokens of %d experts", l->options.path,
                  (long long)number, experts);
        for (int e = 0; e < experts; ++e) {
            sum += row[e];
        }
        TSR_CHECK(sum > 0.0, TSR_ERR_FORMAT, "%s, line %lld: no tokens", l->options.path,
                  (long long)number);
        if (rows > 0 && step != last_step && l->trace_layers == 0) {
            l->trace_layers = (int)rows;
        }
        const bool begins = l->trace_layers == 0 ? rows == 0 : rows % l->trace_layers == 0;
        TSR_CHECK(begins == (rows == 0 || step != last_step), TSR_ERR_FORMAT,
                  "%s, line %lld: step %g: every step must have as many layers as the first",
                  l->options.path, (long long)number, step);
        last_step = step;
        ++rows;
    }
    TSR_CHECK(rows > 0 && (l->trace_layers == 0 || rows % l->trace_layers == 0), TSR_ERR_FORMAT,
              "%s: %lld lines, must be whole steps of %d layers", l->options.path, (long long)rows,
              l->trace_layers);
    l->trace_layers = l->trace_layers == 0 ? (int)rows : l->trace_layers;
    l->trace_steps = rows / l->trace_layers;
    return TSR_OK;
}

static tsr_status read_trace(tsr_loads *l)
{
    char *text = NULL;
    int64_t lines = 1;

    TSR_TRY(read_text(l->options.path, &text));
    for (const char *at = text; *at != '\0'; ++at) {
        lines += *at == '\n';
    }
    const tsr_status st = read_rows(l, text, lines);
    tsr_mem_free(text);
    return st;
}

/* ---- the object ------------------------------------------------------------------------------ */

static tsr_status check(const tsr_load_options *o)
{
    TSR_CHECK(o->layers >= 1 && o->experts >= 1 && o->ranks >= 1, TSR_ERR_ARG,
              "loads: %d layers, %d experts, %d ranks: must be at least 1", o->layers, o->experts,
              o->ranks);
    const bool is_ratio = o->shape == TSR_LOAD_MAX_MEAN || o->shape == TSR_LOAD_HOT;
    TSR_CHECK(!is_ratio || (o->value >= 1.0 && o->value <= o->ranks), TSR_ERR_ARG,
              "loads: max/mean = %g, must be in [1, %d ranks]", o->value, o->ranks);
    TSR_CHECK(o->shape != TSR_LOAD_ZIPF || o->value <= 20.0, TSR_ERR_ARG,
              "loads: zipf %g, must be in [0, 20]", o->value);
    TSR_CHECK(o->drift <= 5.0 && o->noise <= 5.0, TSR_ERR_ARG,
              "loads: drift = %g, noise = %g, must be in [0, 5]", o->drift, o->noise);
    TSR_CHECK(o->shape != TSR_LOAD_HOT || o->period >= 1, TSR_ERR_ARG,
              "loads: period = %d, must be at least 1", o->period);
    return TSR_OK;
}

tsr_status tsr_loads_create(const tsr_load_options *options, tsr_loads **out)
{
    tsr_loads *l = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(check(options));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *l, (void **)&l));
    l->options = *options;
    TSR_TRY_GOTO(
        tsr_mem_alloc_array(TSR_MEM_OTHER, options->experts, sizeof *l->share, (void **)&l->share),
        err);
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, options->experts, sizeof *l->log_share,
                                     (void **)&l->log_share),
                 err);
    TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, options->experts, sizeof *l->normal,
                                     (void **)&l->normal),
                 err);
    if (options->shape == TSR_LOAD_TRACE) {
        TSR_TRY_GOTO(read_trace(l), err);
    }
    *out = l;
    return TSR_OK;
err:
    tsr_loads_destroy(&l);
    return st;
}

void tsr_loads_destroy(tsr_loads **loads_p)
{
    if (*loads_p != NULL) {
        tsr_mem_free((*loads_p)->share);
        tsr_mem_free((*loads_p)->log_share);
        tsr_mem_free((*loads_p)->normal);
        tsr_mem_free((*loads_p)->trace);
        tsr_mem_free(*loads_p);
        *loads_p = NULL;
    }
}

/* ---- shares ---------------------------------------------------------------------------------- */

static uint64_t key(const tsr_loads *l, const char *what, int layer)
{
    char name[64];

    (void)snprintf(name, sizeof name, "loads/%s/%d", what, layer);
    return tsr_rng_key(l->options.seed, name);
}

static void normalise(double *share, int experts)
{
    double sum = 0.0;

    for (int e = 0; e < experts; ++e) {
        sum += share[e];
    }
    for (int e = 0; e < experts; ++e) {
        share[e] /= sum;
    }
}

/* How far each log share has drifted from its shape at this step. */
static void drift(tsr_loads *l, int layer, int64_t step, double *out)
{
    const int experts = l->options.experts;
    /* so that the change from one step to the next has the deviation asked for */
    double scale = l->options.drift * sqrt((1.0 + KEPT) / 2.0);

    memset(out, 0, (size_t)experts * sizeof *out);
    for (int back = 0; scale > 0.0 && back < REMEMBERED; ++back) {
        tsr_rng_normal(key(l, "drift", layer), (uint64_t)((step + REMEMBERED - back) * experts),
                       experts, l->normal);
        for (int e = 0; e < experts; ++e) {
            out[e] += scale * (double)l->normal[e];
        }
        scale *= KEPT;
    }
}

/* exp(power * log_share), normalised; gives max/mean over ranks with experts dealt evenly. */
static double skew(const tsr_loads *l, double power, double *share)
{
    const int experts = l->options.experts, ranks = l->options.ranks;
    const int each = experts / ranks, rest = experts % ranks;
    double largest = 0.0;

    for (int e = 0; e < experts; ++e) {
        share[e] = exp(power * l->log_share[e]);
    }
    normalise(share, experts);
    for (int r = 0, e = 0; r < ranks; ++r) {
        double sum = 0.0;

        for (int end = e + each + (r < rest); e < end; ++e) {
            sum += share[e];
        }
        largest = sum > largest ? sum : largest;
    }
    return largest * ranks;
}

static void reach_ratio(const tsr_loads *l, double *share)
{
    double low = 0.0, high = 32.0;

    for (int i = 0; i < HALVINGS; ++i) {
        const double middle = 0.5 * (low + high);

        *(skew(l, middle, share) < l->options.value ? &low : &high) = middle;
    }
    (void)skew(l, high, share);
}

/* One expert so hot that its rank, with its even part of the others, has value * mean. */
static void heat(const tsr_loads *l, int layer, int64_t step, double *share)
{
    const int experts = l->options.experts, ranks = l->options.ranks;
    const uint64_t turn = (uint64_t)(step / l->options.period);
    const uint64_t hot =
        tsr_rng_permute(key(l, "hot", layer), turn % (uint64_t)experts, (uint64_t)experts);
    const double beside = experts == 1 ? 0.0 : ((double)experts / ranks - 1.0) / (experts - 1.0);
    const double wanted = (l->options.value / ranks - beside) / (1.0 - beside);

    share[hot] = 0.0;
    normalise(share, experts);
    for (int e = 0; e < experts; ++e) {
        share[e] *= 1.0 - wanted;
    }
    share[hot] = wanted;
}

void tsr_loads_shares(tsr_loads *l, int layer, int64_t step, double *share_out)
{
    const int experts = l->options.experts;
    const uint64_t places = key(l, "places", layer);

    if (l->options.shape == TSR_LOAD_TRACE) {
        const int64_t row = step % l->trace_steps * l->trace_layers + layer % l->trace_layers;

        memcpy(share_out, l->trace + row * experts, (size_t)experts * sizeof *share_out);
        normalise(share_out, experts);
        return;
    }
    drift(l, layer, step, l->log_share);
    for (int e = 0; e < experts; ++e) {
        const double place = 1.0 + (double)tsr_rng_permute(places, (uint64_t)e, (uint64_t)experts);
        const double power = l->options.shape == TSR_LOAD_ZIPF       ? l->options.value
                             : l->options.shape == TSR_LOAD_MAX_MEAN ? 1.0
                                                                     : 0.0;

        l->log_share[e] -= power * log(place);
    }
    if (l->options.shape == TSR_LOAD_MAX_MEAN) {
        reach_ratio(l, share_out);
        return;
    }
    (void)skew(l, 1.0, share_out);
    if (l->options.shape == TSR_LOAD_HOT) {
        heat(l, layer, step, share_out);
    }
}

void tsr_loads_counts(tsr_loads *l, int layer, int64_t step, int64_t tokens, int64_t *counts_out)
{
    const int experts = l->options.experts, ranks = l->options.ranks;
    const uint64_t noise = key(l, "noise", layer), sample = key(l, "sample", layer);

    tsr_loads_shares(l, layer, step, l->share);
    for (int r = 0; r < ranks; ++r) {
        const uint64_t first = (uint64_t)((step * ranks + r) * experts);
        int64_t *row = counts_out + (int64_t)r * experts;
        double sum = 0.0, before = 0.0;

        tsr_rng_normal(noise, first, experts, l->normal);
        for (int e = 0; e < experts; ++e) {
            l->log_share[e] = l->share[e] * exp(l->options.noise * (double)l->normal[e]);
        }
        normalise(l->log_share, experts);
        tsr_rng_normal(sample, first, experts, l->normal);
        for (int e = 0; e < experts; ++e) { /* the spread of drawing tokens one by one */
            const double mean = (double)tokens * l->log_share[e];
            const double drawn =
                mean + (l->options.noise > 0.0 ? sqrt(mean) : 0.0) * (double)l->normal[e];

            l->log_share[e] = drawn > 0.0 ? drawn : 0.0;
            sum += l->log_share[e];
        }
        /* rounding the running sum keeps the total */
        int64_t given = 0;
        for (int e = 0; e < experts; ++e) {
            before += l->log_share[e];
            const int64_t upto = sum > 0.0 ? llround((double)tokens * (before / sum)) : 0;

            row[e] = upto - given;
            given = upto;
        }
        row[experts - 1] += tokens - given; /* 0 but for a sum of 0 */
    }
}
