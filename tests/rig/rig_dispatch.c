/* Tokens to their experts and back over the hosts of the rig, for test_rig.py: bytes sent against
 * bytes that must be sent, milliseconds; one JSON object by rank 0.
 *
 * usage: rig_dispatch two_stage|flat TOKENS MORE WIDTH EXPERTS TOP_K ROUNDS
 *        TOKENS of each rank, and MORE for each place of it on its node: then planes differ */
#include "collectives/dispatch.h"
#include "launch/world.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_ROUNDS = 64, MOST_K = 64 };

typedef struct sizes {
    bool in_stages;
    int64_t tokens, more, width, experts, top_k, rounds;
} sizes;

typedef struct memory {
    int32_t *lane;      /* [tokens,K] */
    float *weight;      /* [tokens,K] */
    void *rows, *units; /* [tokens,D], [units,D]: bf16 */
    float *out;         /* [tokens,D] */
    int64_t units_room;
} memory;

/* What a rank tells. */
typedef struct report {
    int64_t bytes[TSR_TRAFFICS][TSR_LINKS];
    int64_t units_two_stage,
        units_flat;                 /* that leave its node, if each goes once a node, or rank */
    double dispatch_ms, combine_ms; /* medians */
} report;

static double now_ms(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* K different experts for each token, all equally likely. */
static void choose_lanes(const sizes *s, const tsr_comm *comm, memory *m, report *r)
{
    const int ranks = tsr_comm_size(comm), own = tsr_comm_rank(comm);
    const tsr_seat *seats = tsr_comm_seats(comm);
    const int64_t each = s->experts / ranks;

    for (int64_t t = 0; t < s->tokens; ++t) {
        int32_t *lane = m->lane + t * s->top_k;
        bool to_node[MOST_K * MOST_K] = {0}, to_rank[MOST_K * MOST_K] = {0};
        uint64_t draws = 0;

        for (int64_t k = 0; k < s->top_k;) {
            uint32_t words[4];
            bool is_new = true;

            tsr_rng_words((uint64_t)own + 1, (uint64_t)t << 20 | draws++, words);
            const int64_t expert = words[0] % s->experts;
            const int rank = (int)(expert / each);
            lane[k] = tsr_lane(rank, (int)(expert % each));
            for (int64_t before = 0; before < k; ++before) {
                is_new = is_new && lane[before] != lane[k];
            }
            if (is_new && seats[rank].node != seats[own].node) {
                r->units_two_stage += !to_node[seats[rank].node];
                r->units_flat += !to_rank[rank];
                to_node[seats[rank].node] = to_rank[rank] = true;
            }
            k += is_new;
        }
        for (int64_t k = 0; k < s->top_k; ++k) {
            m->weight[t * s->top_k + k] = 1.0F;
        }
    }
}

static tsr_status take_memory(const sizes *s, int ranks, memory *m)
{
    const int64_t cells = s->tokens * s->width;

    m->units_room = s->tokens * ranks * ranks;
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, s->tokens * s->top_k, 4, (void **)&m->lane));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, s->tokens * s->top_k, 4, (void **)&m->weight));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, cells, 2, &m->rows));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, m->units_room * s->width, 2, &m->units));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, cells, 4, (void **)&m->out));
    memset(m->rows, 0x3f, (size_t)cells * 2);
    return TSR_OK;
}

static tsr_status run_rounds(const sizes *s, tsr_comm *comm, const memory *m, tsr_dispatch *d,
                             tsr_dispatch_plan *plan, tsr_stream *stream, report *r)
{
    double to_ms[MOST_ROUNDS] = {0}, back_ms[MOST_ROUNDS] = {0};
    int64_t before[TSR_TRAFFICS][TSR_LINKS] = {0};

    for (int64_t i = -1; i < s->rounds; ++i) { /* the first grows memory and opens connections */
        double parts[2];

        if (i == 0) {
            tsr_traffic_read(before);
        }
        TSR_TRY(tsr_comm_barrier(comm));
        const double start = now_ms();
        TSR_TRY(tsr_dispatch_make(d, plan, m->lane, m->weight, s->tokens,
                                  (int)(s->experts / tsr_comm_size(comm)), stream));
        TSR_CHECK(tsr_dispatch_plan_view(plan).units <= m->units_room, TSR_ERR_RANGE, "units");
        TSR_TRY(tsr_dispatch_rows(d, plan, m->rows, false, m->units, stream));
        TSR_TRY(tsr_stream_wait(stream));
        parts[0] = now_ms() - start;
        TSR_TRY(tsr_comm_barrier(comm));
        const double middle = now_ms();
        TSR_TRY(tsr_dispatch_combine(d, plan, m->units, NULL, m->out, stream));
        TSR_TRY(tsr_stream_wait(stream));
        parts[1] = now_ms() - middle;
        TSR_TRY(tsr_comm_all_reduce_f64(comm, parts, 2, TSR_REDUCE_MAX));
        if (i >= 0) {
            to_ms[i] = parts[0];
            back_ms[i] = parts[1];
        }
    }
    tsr_traffic_read(r->bytes);
    for (int p = 0; p < TSR_TRAFFICS * TSR_LINKS; ++p) {
        r->bytes[p / TSR_LINKS][p % TSR_LINKS] -= before[p / TSR_LINKS][p % TSR_LINKS];
    }
    qsort(to_ms, (size_t)s->rounds, sizeof to_ms[0], compare);
    qsort(back_ms, (size_t)s->rounds, sizeof back_ms[0], compare);
    r->dispatch_ms = to_ms[s->rounds / 2];
    r->combine_ms = back_ms[s->rounds / 2];
    return TSR_OK;
}

static tsr_status measure(const sizes *s, const tsr_mesh *mesh, report *r)
{
    const tsr_group *group = &mesh->expert;
    tsr_dispatch_options options = {.all = group->host.all,
                                    .flat = group->flat,
                                    .node = s->in_stages ? group->host.node : NULL,
                                    .rail = s->in_stages ? group->host.rail : NULL,
                                    .flat_rows = group->flat,
                                    .node_rows = group->host.node,
                                    .rail_rows = group->host.rail,
                                    .width = s->width,
                                    .top_k = (int)s->top_k,
                                    .dtype = TSR_BF16};
    tsr_stream *stream = NULL;
    tsr_dispatch *dispatch = NULL;
    tsr_dispatch_plan *plan = NULL;
    memory m = {0};

    TSR_TRY(tsr_device_open("cpu", 1, &options.device));
    TSR_TRY(tsr_stream_create(options.device, &stream));
    TSR_TRY(take_memory(s, mesh->ep, &m));
    choose_lanes(s, group->flat, &m, r);
    TSR_TRY(tsr_dispatch_create(&options, &dispatch));
    TSR_TRY(tsr_dispatch_plan_create(dispatch, &plan));
    TSR_TRY(run_rounds(s, group->host.all, &m, dispatch, plan, stream, r));
    tsr_dispatch_plan_destroy(&plan);
    tsr_dispatch_destroy(&dispatch);
    tsr_stream_destroy(&stream);
    tsr_device_close(&options.device);
    tsr_mem_free(m.lane);
    tsr_mem_free(m.weight);
    tsr_mem_free(m.rows);
    tsr_mem_free(m.units);
    tsr_mem_free(m.out);
    return TSR_OK;
}

static json_t *bytes_json(const report *r, tsr_traffic purpose)
{
    const int64_t *bytes = r->bytes[purpose];

    return json_pack("{s:I,s:I,s:I}", "intra_node", (json_int_t)bytes[TSR_LINK_INTRA_NODE],
                     "in_plane", (json_int_t)bytes[TSR_LINK_IN_PLANE], "cross_plane",
                     (json_int_t)bytes[TSR_LINK_CROSS_PLANE]);
}

static tsr_status print(const tsr_comm *comm, const report *all, const sizes *s)
{
    json_t *rows = json_array();

    for (int r = 0; r < tsr_comm_size(comm); ++r) {
        (void)json_array_append_new(
            rows, json_pack("{s:i,s:I,s:I,s:o,s:o,s:o}", "plane", tsr_comm_seats(comm)[r].plane,
                            "units_two_stage", (json_int_t)all[r].units_two_stage, "units_flat",
                            (json_int_t)all[r].units_flat, "dispatch",
                            bytes_json(&all[r], TSR_TRAFFIC_DISPATCH), "combine",
                            bytes_json(&all[r], TSR_TRAFFIC_COMBINE), "control",
                            bytes_json(&all[r], TSR_TRAFFIC_CONTROL)));
    }
    json_t *object = json_pack("{s:f,s:f,s:I,s:o}", "dispatch_ms", all[0].dispatch_ms, "combine_ms",
                               all[0].combine_ms, "rounds", (json_int_t)s->rounds, "ranks", rows);
    const bool is_written = json_dumpf(object, stdout, 0) == 0 && fputc('\n', stdout) != EOF;
    json_decref(object);
    TSR_CHECK(is_written, TSR_ERR_IO, "standard output");
    return TSR_OK;
}

static tsr_status parse(int argc, char **argv, sizes *s)
{
    int64_t *const numbers[] = {&s->tokens,  &s->more,  &s->width,
                                &s->experts, &s->top_k, &s->rounds};

    TSR_CHECK(argc == 8, TSR_ERR_ARG,
              "usage: rig_dispatch two_stage|flat TOKENS MORE WIDTH EXPERTS TOP_K ROUNDS");
    s->in_stages = strcmp(argv[1], "two_stage") == 0;
    for (int i = 0; i < 6; ++i) {
        *numbers[i] = strtoll(argv[i + 2], NULL, 10);
        TSR_CHECK(*numbers[i] >= 0 && *numbers[i] < 1 << 20, TSR_ERR_ARG, "%s", argv[i + 2]);
    }
    TSR_CHECK(s->tokens > 0 && s->width > 0 && s->top_k > 0 && s->rounds > 0, TSR_ERR_ARG,
              "too few");
    TSR_CHECK(s->rounds <= MOST_ROUNDS && s->top_k <= MOST_K && s->experts >= s->top_k, TSR_ERR_ARG,
              "too many");
    return TSR_OK;
}

static tsr_status run(int argc, char **argv, world *w)
{
    tsr_parallel_config config = {.ep = tsr_comm_size(w->comm)};
    report mine = {0}, *all = NULL;
    tsr_mesh mesh = {0};
    sizes s = {0};

    TSR_TRY(parse(argc, argv, &s));
    TSR_CHECK(s.experts % config.ep == 0 && config.ep <= MOST_K, TSR_ERR_ARG,
              "EXPERTS must be a multiple of the ranks");
    s.tokens += s.more * tsr_comm_local_rank(w->comm);
    TSR_TRY(tsr_mesh_create(&config, w->comm, &mesh));
    TSR_TRY(measure(&s, &mesh, &mine));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, config.ep, sizeof *all, (void **)&all));
    TSR_TRY(tsr_comm_all_gather(mesh.world.host.all, &mine, sizeof mine, all));
    tsr_status st = tsr_comm_rank(w->comm) == 0 ? print(w->comm, all, &s) : TSR_OK;
    tsr_mem_free(all);
    tsr_mesh_destroy(&mesh);
    return st;
}

int main(int argc, char **argv)
{
    world w = {0};
    tsr_status st = world_start(&argc, &argv, true, &w);

    st = st == TSR_OK ? run(argc, argv, &w) : st;
    return world_stop(&w, st == TSR_OK ? EXIT_DONE : world_fail(&w, st));
}
