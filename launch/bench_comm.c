/* `tessera bench comm`: collectives, dispatch and copies of experts over these ranks, each against
 * a line alpha + n / beta fitted to its own medians. */
#include "launch/bench.h"
#include "launch/comm_cases.h"
#include "launch/devices.h"
#include "launch/figure.h"
#include "launch/peak.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

enum { MAX_ROUNDS = 1000, MAX_SIZES = 16, WARM_UP = 2, SMALLEST = 1024, FACTOR = 4 };

static const double timeout_s = 300.0;

/* One size of one case. */
typedef struct comm_line {
    int64_t bytes;
    double min, median, p90; /* s */
    double sent[TSR_LINKS];  /* bytes of one call, by all ranks */
    double algorithm, bus;   /* bytes/s */
    double model, error;     /* s, relative */
} comm_line;

typedef struct comm_bench {
    world *w;
    tsr_mesh mesh;
    comm_job job;
    device_choice choice;
    int rounds;
    double seconds[MAX_ROUNDS];
    json_t *cases;
} comm_bench;

static const char *const link_names[TSR_LINKS] = {"self", "intra_node", "in_plane", "cross_plane"};

/* ---- one line ------------------------------------------------------------------------------- */

/* A run that is known to be right, and the bytes that it sends. */
static tsr_status check_once(comm_bench *b, const comm_case *c, double sent_out[TSR_LINKS])
{
    comm_job *j = &b->job;
    tsr_comm *all = b->mesh.expert.host.all;
    int64_t before[TSR_TRAFFICS][TSR_LINKS], after[TSR_TRAFFICS][TSR_LINKS];

    TSR_TRY(c->prepare(j));
    tsr_traffic_read(before);
    TSR_TRY(c->run(j));
    tsr_traffic_read(after);
    for (int link = 0; link < TSR_LINKS; ++link) {
        sent_out[link] = 0.0;
        for (int purpose = 0; purpose < TSR_TRAFFICS; ++purpose) {
            sent_out[link] += (double)(after[purpose][link] - before[purpose][link]);
        }
    }
    b->w->must_abort = false; /* all ranks get to the verdict */
    TSR_TRY(tsr_comm_agree(all, c->check(j)));
    b->w->must_abort = true;
    return tsr_comm_all_reduce_f64(all, sent_out, TSR_LINKS, TSR_REDUCE_SUM);
}

/* Sorted seconds of the slowest rank in each round. */
static tsr_status time_rounds(comm_bench *b, const comm_case *c)
{
    comm_job *j = &b->job;
    tsr_comm *all = b->mesh.expert.host.all;

    if (c->has_sums) {
        memset(j->host, 0, 2 * (size_t)j->max_bytes);
        TSR_TRY(comm_job_send(j, 2 * j->max_bytes));
    }
    for (int round = -WARM_UP; round < b->rounds; ++round) {
        TSR_TRY(tsr_comm_barrier(all));
        const double start = peak_clock_s();

        TSR_TRY(c->run(j));
        b->seconds[round < 0 ? 0 : round] = peak_clock_s() - start;
    }
    TSR_TRY(tsr_comm_all_reduce_f64(all, b->seconds, b->rounds, TSR_REDUCE_MAX));
    (void)bench_median(b->seconds, b->rounds); /* sorts */
    return TSR_OK;
}

static double bus_bandwidth(const comm_line *line, comm_bus bus, int ranks)
{
    const double share = (double)(ranks - 1) / ranks;
    double sent = 0.0;

    for (int link = 0; link < TSR_LINKS; ++link) {
        sent += line->sent[link];
    }
    switch (bus) {
    case COMM_BUS_ONE:
        return ranks > 1 ? line->algorithm : 0.0;
    case COMM_BUS_SHARE:
        return line->algorithm * share;
    case COMM_BUS_TWICE:
        return line->algorithm * 2.0 * share;
    case COMM_BUS_SENT:
        return sent / ranks / line->median;
    default:
        return 0.0;
    }
}

static tsr_status measure(comm_bench *b, const comm_case *c, int64_t bytes, comm_line *line_out)
{
    comm_line line = {.bytes = bytes};

    b->job.bytes = bytes;
    b->w->must_abort = true; /* what fails here leaves the others in the middle of it */
    TSR_TRY(check_once(b, c, line.sent));
    TSR_TRY(time_rounds(b, c));
    b->w->must_abort = false;
    line.min = b->seconds[0];
    line.median = b->rounds % 2 == 1
                      ? b->seconds[b->rounds / 2]
                      : 0.5 * (b->seconds[b->rounds / 2 - 1] + b->seconds[b->rounds / 2]);
    line.p90 = b->seconds[b->rounds * 9 / 10];
    line.algorithm = (double)bytes / line.median;
    line.bus = bus_bandwidth(&line, c->bus, b->job.ranks);
    *line_out = line;
    return TSR_OK;
}

/* ---- the model ------------------------------------------------------------------------------ */

typedef struct comm_model {
    double alpha, per_byte; /* s */
} comm_model;

/* Least squares of relative errors, (alpha + n b) / t - 1, so that small sizes count as much as
 * large ones; neither number may be below 0. */
static comm_model fit(comm_line *lines, int count)
{
    double w = 0.0, wn = 0.0, wnn = 0.0, u = 0.0, un = 0.0;
    comm_model m = {0.0, 0.0};

    for (int i = 0; i < count; ++i) {
        const double t = lines[i].median, n = (double)lines[i].bytes;

        w += 1.0 / (t * t);
        wn += n / (t * t);
        wnn += n * n / (t * t);
        u += 1.0 / t;
        un += n / t;
    }
    const double determinant = w * wnn - wn * wn;
    if (count > 1 && determinant > 0.0) {
        m.alpha = (u * wnn - un * wn) / determinant;
        m.per_byte = (w * un - wn * u) / determinant;
    }
    if (count == 1 || m.per_byte < 0.0) {
        m = (comm_model){u / w, 0.0};
    } else if (m.alpha < 0.0) {
        m = (comm_model){0.0, un / wnn};
    }
    for (int i = 0; i < count; ++i) {
        lines[i].model = m.alpha + m.per_byte * (double)lines[i].bytes;
        lines[i].error = lines[i].model / lines[i].median - 1.0;
    }
    return m;
}

/* ---- report --------------------------------------------------------------------------------- */

static void print_case(const comm_bench *b, const comm_case *c, const comm_line *lines, int count,
                       const comm_model *m)
{
    FILE *to = b->w->people;

    for (int i = 0; i < count; ++i) {
        const comm_line *l = &lines[i];

        (void)fprintf(
            to, "%-22s %10lld %9.1f %9.1f %9.1f %7.2f %7.2f %9.3f %9.3f %9.3f %9.1f %+5.0f%%\n",
            c->name, (long long)l->bytes, l->min * 1e6, l->median * 1e6, l->p90 * 1e6,
            l->algorithm * 1e-9, l->bus * 1e-9, l->sent[TSR_LINK_INTRA_NODE] * 1e-6,
            l->sent[TSR_LINK_IN_PLANE] * 1e-6, l->sent[TSR_LINK_CROSS_PLANE] * 1e-6, l->model * 1e6,
            100.0 * l->error);
    }
    if (m->per_byte > 0.0) {
        (void)fprintf(to, "%-22s %.1f us + n / %.3g GB/s\n", c->name, m->alpha * 1e6,
                      1e-9 / m->per_byte);
    }
}

static void add_case(comm_bench *b, const comm_case *c, const comm_line *lines, int count,
                     const comm_model *m)
{
    json_t *rows = json_array();

    for (int i = 0; i < count; ++i) {
        const comm_line *l = &lines[i];
        json_t *sent = json_object();

        for (int link = 0; link < TSR_LINKS; ++link) {
            (void)json_object_set_new(sent, link_names[link], figure_json(l->sent[link]));
        }
        (void)json_array_append_new(
            rows, json_pack("{s:I,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "bytes", (json_int_t)l->bytes,
                            "us_min", figure_json(l->min * 1e6), "us_median",
                            figure_json(l->median * 1e6), "us_p90", figure_json(l->p90 * 1e6),
                            "algorithm_gb_per_s", figure_json(l->algorithm * 1e-9), "bus_gb_per_s",
                            figure_json(l->bus * 1e-9), "us_model", figure_json(l->model * 1e6),
                            "model_error", figure_json(l->error), "sent", sent));
    }
    json_t *object = json_pack("{s:s,s:s,s:o,s:o}", "name", c->name, "memory",
                               b->job.on_device ? tsr_device_name(b->job.device) : "host",
                               "alpha_us", figure_json(m->alpha * 1e6), "lines", rows);
    (void)json_object_set_new(object, "beta_gb_per_s",
                              m->per_byte > 0.0 ? figure_json(1e-9 / m->per_byte) : json_null());
    (void)json_array_append_new(b->cases, object);
}

static int nodes_of(const comm_bench *b)
{
    const tsr_seat *seats = tsr_comm_seats(b->mesh.expert.flat);
    int nodes = 1;

    for (int rank = 0; rank < b->job.ranks; ++rank) {
        nodes = seats[rank].node >= nodes ? seats[rank].node + 1 : nodes;
    }
    return nodes;
}

static void print_head(const comm_bench *b)
{
    const comm_job *j = &b->job;

    (void)fprintf(b->w->people,
                  "%d ranks, %d nodes, %s, %s | %d rounds, slowest rank of each | rows of %lld "
                  "f32, top-%d of %d experts\n",
                  j->ranks, nodes_of(b), tsr_device_name(j->device),
                  b->mesh.expert.host.rail != NULL ? "along planes" : "each pair directly",
                  b->rounds, (long long)j->hidden, j->top_k, j->experts);
    (void)fprintf(b->w->people, "%-22s %10s %9s %9s %9s %7s %7s %9s %9s %9s %9s %6s\n", "", "bytes",
                  "us min", "median", "p90", "algGB/s", "busGB/s", "MB node", "plane", "cross",
                  "model us", "error");
}

static void print_json(const comm_bench *b)
{
    const comm_job *j = &b->job;
    json_t *object =
        json_pack("{s:s,s:s,s:s,s:i,s:i,s:b,s:s,s:i,s:I,s:i,s:i,s:O}", "bench", "comm", "revision",
                  TSR_REVISION, "build", TSR_BUILD_TYPE, "ranks", j->ranks, "nodes", nodes_of(b),
                  "along_planes", b->mesh.expert.host.rail != NULL, "device",
                  tsr_device_name(j->device), "rounds", b->rounds, "hidden", (json_int_t)j->hidden,
                  "top_k", j->top_k, "experts", j->experts, "collectives", b->cases);

    (void)json_dumpf(object, stdout, JSON_REAL_PRECISION(6));
    (void)fputc('\n', stdout);
    json_decref(object);
}

/* ---- all of them ---------------------------------------------------------------------------- */

static tsr_status measure_case(comm_bench *b, const comm_case *c)
{
    comm_job *j = &b->job;
    comm_line lines[MAX_SIZES];
    int count = 0;

    j->variant = c->variant;
    if (c->bus == COMM_BUS_NONE) {
        TSR_TRY(measure(b, c, 0, &lines[count++]));
    }
    for (int64_t wanted = SMALLEST; c->bus != COMM_BUS_NONE && wanted <= j->max_bytes;
         wanted *= FACTOR) {
        const int64_t bytes = c->fit(j, wanted);

        if (bytes > 0) {
            TSR_TRY(measure(b, c, bytes, &lines[count++]));
        }
    }
    if (count > 0 && tsr_comm_rank(b->w->comm) == 0) {
        const comm_model m = fit(lines, count);

        print_case(b, c, lines, count, &m);
        add_case(b, c, lines, count, &m);
    }
    return TSR_OK;
}

static tsr_status measure_all(comm_bench *b, const char *only)
{
    typedef const comm_case *case_table(int *count_out);
    static case_table *const tables[] = {comm_cases_vectors, comm_cases_rows};
    const bool speaks = tsr_comm_rank(b->w->comm) == 0;

    if (speaks) {
        print_head(b);
    }
    for (size_t t = 0; t < sizeof tables / sizeof *tables; ++t) {
        int count = 0;
        const comm_case *cases = tables[t](&count);

        for (int i = 0; i < count; ++i) {
            if (strncmp(cases[i].name, only, strlen(only)) == 0) {
                TSR_TRY(measure_case(b, &cases[i]));
            }
        }
    }
    if (speaks && (b->w->json || b->w->people != stdout)) {
        print_json(b);
    }
    return TSR_OK;
}

/* Sections [parallel] and [topology] have a say, by --set; the mesh is one group of all ranks. */
static tsr_status open_mesh(comm_bench *b, const cli_values *values, tsr_parallel_config *parallel)
{
    tsr_topology_config topology = {0};
    tsr_config_errors errors = {0};
    const tsr_option_table tables[] = {tsr_parallel_options(parallel),
                                       tsr_topology_options(&topology)};

    tsr_config_read("", "bench comm", values->set, values->set_count, tables, 2, &errors);
    TSR_CHECK(errors.count == 0, TSR_ERR_ARG, "%.*s", (int)strcspn(errors.text, "\n"),
              errors.text); /* the first of them */
    TSR_TRY(world_set_run(b->w, timeout_s, &topology));
    parallel->pp = parallel->dp = 1;
    parallel->ep = tsr_comm_size(b->w->comm);
    parallel->placement = TSR_PLACEMENT_FSSDP; /* for a communicator for copies */
    return tsr_mesh_create(parallel, b->w->comm, &b->mesh);
}

static tsr_status open_device(comm_bench *b)
{
    int threads = 1;

    TSR_TRY(world_thread_share(b->w, &threads));
    tsr_status st = devices_open(b->choice, b->w, threads, &b->job.device);
    if (st == TSR_OK) {
        st = tsr_stream_create(b->job.device, &b->job.stream);
    }
    return tsr_comm_agree(b->w->comm, st);
}

static tsr_status read_job(const cli_values *values, comm_bench *b)
{
    const char *device = cli_get(&cli_bench, values, "device");
    comm_job *j = &b->job;
    int64_t rounds = 0, top_k = 0, experts = 0;
    double mib = 0.0;

    TSR_CHECK(values->positional_count == 1, TSR_ERR_ARG, "bench comm: takes no run file");
    TSR_TRY(devices_parse(device != NULL ? device : "cpu", &b->choice));
    TSR_TRY(cli_get_int(&cli_bench, values, "rounds", 1, MAX_ROUNDS, 20, &rounds));
    TSR_TRY(cli_get_real(&cli_bench, values, "max-mib", 1.0 / 1024.0, 4096.0, 16.0, &mib));
    TSR_TRY(cli_get_int(&cli_bench, values, "hidden", 1, 1 << 20, 1024, &j->hidden));
    TSR_TRY(cli_get_int(&cli_bench, values, "experts", 1, TSR_LANE_PLACES, 64, &experts));
    TSR_TRY(
        cli_get_int(&cli_bench, values, "top-k", 1, experts, experts < 8 ? experts : 8, &top_k));
    b->rounds = (int)rounds;
    j->top_k = (int)top_k;
    j->experts = (int)experts;
    j->max_bytes = (int64_t)(mib * 1048576.0) / 8 * 8;
    TSR_CHECK(top_k <= j->hidden, TSR_ERR_ARG,
              "--hidden %lld: must be at least --top-k, %lld: rows carry their lanes to be checked",
              (long long)j->hidden, (long long)top_k);
    return TSR_OK;
}

/* An error that is equal everywhere. */
static tsr_status say_once(const world *w, tsr_status st)
{
    return st == TSR_ERR_ARG && tsr_comm_rank(w->comm) != 0
               ? TSR_FAIL(TSR_ERR_PEER, "rank 0 reports the same")
               : st;
}

static tsr_status run(const cli_values *values, comm_bench *b)
{
    const char *only = cli_get(&cli_bench, values, "only");
    const tsr_nccl_options nccl = {0};
    tsr_parallel_config parallel = {0};

    TSR_TRY(say_once(b->w, read_job(values, b)));
    TSR_TRY(say_once(b->w, open_mesh(b, values, &parallel)));
    TSR_TRY(open_device(b));
    if (parallel.collectives == TSR_COLLECTIVES_NCCL ||
        (parallel.collectives == TSR_COLLECTIVES_AUTO && !tsr_device_is_host(b->job.device))) {
        TSR_TRY(tsr_mesh_use_nccl(&b->mesh, b->job.device, &nccl));
    }
    b->job.mesh = &b->mesh;
    TSR_TRY(tsr_comm_agree(b->w->comm, comm_job_open(&b->job)));
    return measure_all(b, only != NULL ? only : "");
}

tsr_status bench_comm(const cli_values *values, world *w)
{
    static comm_bench b; /* large: holds the rounds */

    b = (comm_bench){.w = w, .cases = json_array()};
    const tsr_status st = run(values, &b);
    json_decref(b.cases);
    if (w->must_abort && st != TSR_OK) {
        return st; /* the others are not there to end together */
    }
    comm_job_close(&b.job);
    tsr_mesh_destroy(&b.mesh);
    tsr_stream_destroy(&b.job.stream);
    tsr_device_close(&b.job.device);
    return st;
}
