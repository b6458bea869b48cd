/* Pictures of a run: one table, one gnuplot script each, so that people can restyle them. */
#include "launch/report.h"

#include <errno.h>
#include <math.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

extern char **environ;

/* steps.dat: column 1 the step, column 2 + field the figure. Layouts share this first part. */
static const char head[] = "set terminal svg size 900,480 dynamic background 'white' font ',12'\n"
                           "set key outside right top\nset grid\nset datafile missing 'nan'\n"
                           "set xlabel 'step'\n";

enum { COLUMN = 2 };

typedef struct picture {
    const char *name, *title;
    report_field needs; /* not drawn if no step has it */
    void (*body)(FILE *to);
} picture;

static void line(FILE *to, bool is_first, report_field field, const char *title)
{
    (void)fprintf(to, "%s'steps.dat' using 1:%d with lines title '%s'", is_first ? "plot " : ", ",
                  COLUMN + (int)field, title);
}

static void loss_body(FILE *to)
{
    (void)fputs("set ylabel 'nats/token'\n", to);
    line(to, true, REPORT_LOSS, "training");
    (void)fputs(", 'validations.dat' using 1:2 with linespoints pt 7 ps 0.5 title 'validation'\n",
                to);
}

static void speed_body(FILE *to)
{
    (void)fputs("set ylabel 'tokens/s'\n", to);
    line(to, true, REPORT_TOKENS_PER_S, "tokens/s");
    (void)fputc('\n', to);
}

static void parts_body(FILE *to)
{
    (void)fputs("set ylabel 'ms'\nset style fill solid 0.7 noborder\nplot ", to);
    for (int last = REPORT_UPDATE; last >= REPORT_FORWARD_BACKWARD; --last) {
        (void)fputs("'steps.dat' using 1:(", to);
        for (int f = REPORT_FORWARD_BACKWARD; f <= last; ++f) {
            (void)fprintf(to, "%s$%d", f > REPORT_FORWARD_BACKWARD ? "+" : "", COLUMN + f);
        }
        (void)fprintf(to, ") with filledcurves y1=0 title '%s'%s",
                      report_field_name((report_field)last),
                      last > REPORT_FORWARD_BACKWARD ? ", " : "\n");
    }
}

static void imbalance_body(FILE *to)
{
    (void)fputs("set ylabel 'max/mean'\nset yrange [1:]\n", to);
    line(to, true, REPORT_IMBALANCE, "experts, worst layer");
    line(to, false, REPORT_BEFORE, "ranks, at the owners");
    line(to, false, REPORT_AFTER, "ranks, as computed");
    (void)fputc('\n', to);
}

static void bytes_body(FILE *to)
{
    (void)fputs("set ylabel 'bytes a step, all ranks'\nset logscale y\nset format y '%.1s%cB'\n",
                to);
    line(to, true, REPORT_SELF, "self");
    line(to, false, REPORT_INTRA_NODE, "intra node");
    line(to, false, REPORT_IN_PLANE, "in plane");
    line(to, false, REPORT_CROSS_PLANE, "cross plane");
    (void)fputc('\n', to);
}

static void loads_body(FILE *to)
{
    (void)fputs("set ylabel 'expert, layer by layer'\nset cblabel 'load / mean'\n"
                "set palette defined (0 'white', 1 'light-blue', 2 'orange', 4 'red')\n"
                "set cbrange [0:4]\nunset grid\nset autoscale fix\n"
                "plot 'loads.dat' using 1:2:3 with image notitle\n",
                to);
}

static const picture pictures[] = {
    {"loss", "Loss", REPORT_LOSS, loss_body},
    {"speed", "Speed", REPORT_TOKENS_PER_S, speed_body},
    {"parts", "Where a step's time goes", REPORT_FORWARD_BACKWARD, parts_body},
    {"imbalance", "Imbalance", REPORT_IMBALANCE, imbalance_body},
    {"bytes", "Bytes sent", REPORT_IN_PLANE, bytes_body},
};

static tsr_status open_in(const char *folder, const char *name, const char *end, FILE **out)
{
    char path[TSR_TEXT_MAX + 64];

    (void)snprintf(path, sizeof path, "%s/%s%s", folder, name, end);
    *out = fopen(path, "w");
    TSR_CHECK(*out != NULL, TSR_ERR_IO, "%s: %s", path, strerror(errno));
    return TSR_OK;
}

static tsr_status close_file(FILE *file, const char *folder)
{
    const bool is_bad = ferror(file) != 0;

    TSR_CHECK(fclose(file) == 0 && !is_bad, TSR_ERR_IO, "%s: cannot be written: %s", folder,
              strerror(errno));
    return TSR_OK;
}

static tsr_status write_tables(const report *r, const char *folder)
{
    FILE *to = NULL;

    TSR_TRY(open_in(folder, "steps", ".dat", &to));
    (void)fputs("# step", to);
    for (int f = 0; f < REPORT_FIELDS; ++f) {
        (void)fprintf(to, " %s", report_field_name((report_field)f));
    }
    for (int64_t i = 0; i < r->step_count; ++i) {
        (void)fprintf(to, "\n%lld", (long long)r->steps[i].step);
        for (int f = 0; f < REPORT_FIELDS; ++f) {
            (void)fprintf(to, " %.9g", r->steps[i].value[f]);
        }
    }
    (void)fputc('\n', to);
    TSR_TRY(close_file(to, folder));
    TSR_TRY(open_in(folder, "validations", ".dat", &to));
    (void)fputs("# step loss\n", to);
    for (int64_t i = 0; i < r->validation_count; ++i) {
        (void)fprintf(to, "%lld %.9g\n", (long long)r->validations[i].step, r->validations[i].loss);
    }
    if (r->validation_count == 0) {
        (void)fputs("nan nan\n", to);
    }
    return close_file(to, folder);
}

/* "step,layer,n0,n1,..." -> step, row, load over the layer's mean; layers lie one above another. */
static tsr_status copy_loads(FILE *from, FILE *to, const char *path)
{
    static char text[1 << 16];
    int64_t number = 0;

    while (fgets(text, sizeof text, from) != NULL) {
        char *at = text;
        double sum = 0.0;
        int experts = 0;

        if (++number == 1 && strncmp(text, "step", 4) == 0) {
            continue;
        }
        const long long step = strtoll(at, &at, 10);
        const long long layer = *at == ',' ? strtoll(at + 1, &at, 10) : -1;
        char *next = at;
        for (; *at == ','; ++experts) {
            sum += strtod(at + 1, &at);
        }
        TSR_CHECK(layer >= 0 && experts > 0 && (*at == '\n' || *at == '\r' || *at == '\0'),
                  TSR_ERR_FORMAT, "%s: line %lld is not step,layer,count,count,...", path,
                  (long long)number);
        for (int e = 0; e < experts; ++e) {
            const double load = strtod(next + 1, &next);
            (void)fprintf(to, "%lld %lld %.5g\n", step, layer * experts + e,
                          sum > 0.0 ? load * experts / sum : 0.0);
        }
    }
    return TSR_OK;
}

static tsr_status write_loads(const char *run_dir, const char *folder, bool *found)
{
    char path[TSR_TEXT_MAX + 16];
    FILE *to = NULL;

    (void)snprintf(path, sizeof path, "%s/loads.csv", run_dir);
    FILE *from = fopen(path, "r");
    *found = from != NULL;
    if (from == NULL) {
        return TSR_OK;
    }
    tsr_status st = open_in(folder, "loads", ".dat", &to);
    if (st == TSR_OK) {
        st = copy_loads(from, to, path);
        const tsr_status closed = close_file(to, folder);
        st = st != TSR_OK ? st : closed;
    }
    (void)fclose(from);
    return st;
}

/* gnuplot runs in the folder: scripts name their tables without a path. */
static bool draw(const char *folder, const char *script)
{
    char where[TSR_TEXT_MAX + 16], what[64];
    char *const words[] = {"sh", "-c", "cd -- \"$1\" && exec gnuplot \"$2\"", "sh", where,
                           what, NULL};
    pid_t child = 0;
    int state = 0;

    (void)snprintf(where, sizeof where, "%s", folder);
    (void)snprintf(what, sizeof what, "%s", script);
    return posix_spawnp(&child, "sh", NULL, NULL, words, environ) == 0 &&
           waitpid(child, &state, 0) == child && WIFEXITED(state) && WEXITSTATUS(state) == 0;
}

static tsr_status add_picture(const picture *p, const char *folder, int *drawn)
{
    char script[64];
    FILE *to = NULL;

    (void)snprintf(script, sizeof script, "%s.gp", p->name);
    TSR_TRY(open_in(folder, script, "", &to));
    (void)fputs(head, to);
    (void)fprintf(to, "set output '%s.svg'\nset title \"%s\"\n", p->name, p->title);
    p->body(to);
    TSR_TRY(close_file(to, folder));
    *drawn += draw(folder, script) ? 1 : 0;
    return TSR_OK;
}

tsr_status report_plot(const report *r, const char *run_dir, const char *folder, int *pictures_out)
{
    static const picture loads = {"loads", "Load of each expert", REPORT_LOSS, loads_body};
    bool has_loads = false;

    *pictures_out = 0;
    TSR_CHECK(mkdir(folder, 0777) == 0 || errno == EEXIST, TSR_ERR_IO, "%s: %s", folder,
              strerror(errno));
    TSR_TRY(write_tables(r, folder));
    for (size_t i = 0; i < sizeof pictures / sizeof pictures[0]; ++i) {
        if (report_has(r, pictures[i].needs)) {
            TSR_TRY(add_picture(&pictures[i], folder, pictures_out));
        }
    }
    TSR_TRY(write_loads(run_dir, folder, &has_loads));
    return has_loads ? add_picture(&loads, folder, pictures_out) : TSR_OK;
}
