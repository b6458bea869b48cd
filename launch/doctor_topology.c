/* `tessera doctor --topology`: who sits where, which interface each rank got, and how. */
#include "launch/doctor.h"

#include "launch/settings.h"

#include <jansson.h>
#include <string.h>
#include <unistd.h>

/* What each rank tells. */
typedef struct rank_place {
    tsr_topology_rank rank;
    char source[16], set[512], kept[512]; /* as in network */
} rank_place;

static void describe(const world *w, const tsr_mesh *mesh, rank_place *mine)
{
    tsr_nic near;

    mine->rank = (tsr_topology_rank){.seat = tsr_comm_seats(w->comm)[tsr_comm_rank(w->comm)],
                                     .dp_rank = mesh->dp_rank,
                                     .ep_rank = mesh->ep_rank};
    (void)gethostname(mine->rank.host, sizeof mine->rank.host - 1);
    doctor_binding(mine->rank.cores);
    network_nearest(network_local_rank(), 0, &near, mine->rank.gpu);
    memcpy(mine->rank.nic, w->network.nic.name, sizeof mine->rank.nic);
    (void)snprintf(mine->source, sizeof mine->source, "%s",
                   w->network.source != NULL ? w->network.source : "");
    memcpy(mine->set, w->network.set, sizeof mine->set);
    memcpy(mine->kept, w->network.kept, sizeof mine->kept);
}

/* The mesh that the run file asks for on these ranks. */
static tsr_status read_mesh(const cli_values *values, world *w, tsr_mesh *mesh)
{
    static settings s; /* large */

    if (values->positional_count == 0) {
        return TSR_OK;
    }
    TSR_TRY(settings_read_file(&s, w->comm, values->positional[0], values->set, values->set_count));
    TSR_TRY(world_set_run(w, s.run.timeout_s, &s.topology));
    return tsr_mesh_create(&s.parallel, w->comm, mesh);
}

static bool tells_the_same(const rank_place *a, const rank_place *b)
{
    return strcmp(a->source, b->source) == 0 && strcmp(a->set, b->set) == 0 &&
           strcmp(a->kept, b->kept) == 0;
}

/* What MPI and NCCL were told, once for all ranks that were told the same. */
static void print_settings(const rank_place *all, int ranks)
{
    for (int r = 0; r < ranks; ++r) {
        bool is_told = false;

        for (int before = 0; before < r; ++before) {
            is_told = is_told || tells_the_same(&all[before], &all[r]);
        }
        if (is_told) {
            continue;
        }
        (void)printf("ranks    ");
        for (int other = r; other < ranks; ++other) {
            if (tells_the_same(&all[other], &all[r])) {
                (void)printf(" %d", other);
            }
        }
        if (all[r].source[0] == '\0') {
            (void)printf(": no interface chosen, MPI and NCCL take theirs\n");
            continue;
        }
        (void)printf(": by %s\n", all[r].source);
        (void)printf("  set     %s\n", all[r].set[0] != '\0' ? all[r].set : "nothing");
        if (all[r].kept[0] != '\0') {
            (void)printf("  yours   %s\n", all[r].kept);
        }
    }
}

static void print_json(const rank_place *all, const tsr_topology_view *view, const char *problem)
{
    json_t *rows = json_array();

    for (int r = 0; r < view->count; ++r) {
        const tsr_topology_rank *rank = &all[r].rank;

        (void)json_array_append_new(
            rows, json_pack("{s:i,s:i,s:i,s:s,s:s,s:s,s:s,s:i,s:i,s:s,s:s,s:s}", "node",
                            rank->seat.node, "local", rank->seat.local, "plane", rank->seat.plane,
                            "host", rank->host, "nic", rank->nic, "gpu", rank->gpu, "cores",
                            rank->cores, "dp_rank", rank->dp_rank, "ep_rank", rank->ep_rank,
                            "source", all[r].source, "set", all[r].set, "kept", all[r].kept));
    }
    json_t *object = json_pack("{s:i,s:i,s:o,s:s}", "dp", view->dp, "ep", view->ep, "ranks", rows,
                               "problem", problem);
    (void)json_dumpf(object, stdout, 0);
    (void)fputc('\n', stdout);
    json_decref(object);
}

static tsr_status show(const rank_place *all, const tsr_mesh *mesh, int ranks, bool is_json,
                       bool *is_regular_out)
{
    tsr_topology_rank *rows = NULL;
    char problem[256];

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, ranks, sizeof *rows, (void **)&rows));
    for (int r = 0; r < ranks; ++r) {
        rows[r] = all[r].rank;
    }
    const tsr_topology_view view = {rows, ranks, mesh->dp, mesh->ep};
    *is_regular_out = !tsr_topology_problem(&view, problem);
    if (is_json) {
        print_json(all, &view, problem);
    } else {
        tsr_topology_draw(stdout, &view);
        print_settings(all, ranks);
    }
    tsr_mem_free(rows);
    return TSR_OK;
}

static tsr_status gather(const world *w, const tsr_mesh *mesh, rank_place **all_out)
{
    rank_place mine = {0};

    describe(w, mesh, &mine);
    TSR_TRY(tsr_comm_agree(w->comm, tsr_mem_alloc_array(TSR_MEM_OTHER, tsr_comm_size(w->comm),
                                                        sizeof mine, (void **)all_out)));
    return tsr_comm_all_gather(w->comm, &mine, sizeof mine, *all_out);
}

int doctor_topology(const cli_values *values, world *w)
{
    rank_place *all = NULL;
    tsr_mesh mesh = {0};
    bool is_regular = true;

    tsr_status st = read_mesh(values, w, &mesh);
    if (st == TSR_OK) {
        st = gather(w, &mesh, &all);
    }
    if (st == TSR_OK && tsr_comm_rank(w->comm) == 0) {
        st = show(all, &mesh, tsr_comm_size(w->comm), w->json, &is_regular);
    }
    tsr_mem_free(all);
    tsr_mesh_destroy(&mesh);
    if (st != TSR_OK) {
        return world_fail(w, st);
    }
    return is_regular ? EXIT_DONE : EXIT_RUN_FAILED;
}
