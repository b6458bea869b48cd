#include "parallel/topology.h"

typedef struct extent {
    int nodes, places, planes; /* places: of the node with most ranks */
} extent;

static int larger(int a, int b)
{
    return a > b ? a : b;
}

static extent extent_of(const tsr_topology_view *view)
{
    extent e = {0};

    for (int r = 0; r < view->count; ++r) {
        e.nodes = larger(e.nodes, view->ranks[r].seat.node + 1);
        e.places = larger(e.places, view->ranks[r].seat.local + 1);
        e.planes = larger(e.planes, view->ranks[r].seat.plane + 1);
    }
    return e;
}

/* The rank that sits there, or -1. */
static int rank_at(const tsr_topology_view *view, int node, int local)
{
    for (int r = 0; r < view->count; ++r) {
        if (view->ranks[r].seat.node == node && view->ranks[r].seat.local == local) {
            return r;
        }
    }
    return -1;
}

bool tsr_topology_problem(const tsr_topology_view *view, char problem_out[256])
{
    const extent e = extent_of(view);

    for (int node = 0; node < e.nodes; ++node) {
        for (int local = 0; local < e.places; ++local) {
            const int first = rank_at(view, 0, local), other = rank_at(view, node, local);

            if (first < 0 || other < 0) {
                const int has = first < 0 ? node : 0, lacks = first < 0 ? 0 : node;

                (void)snprintf(problem_out, 256,
                               "node %d has a rank at local place %d and node %d has none: start "
                               "as many ranks on each node",
                               has, local, lacks);
                return true;
            }
            if (view->ranks[first].seat.plane != view->ranks[other].seat.plane) {
                (void)snprintf(problem_out, 256,
                               "local place %d is on plane %d (%s) on node 0 and on plane %d (%s) "
                               "on node %d: name the interfaces in topology.nics",
                               local, view->ranks[first].seat.plane, view->ranks[first].nic,
                               view->ranks[other].seat.plane, view->ranks[other].nic, node);
                return true;
            }
        }
    }
    problem_out[0] = '\0';
    return false;
}

static void draw_nodes(FILE *to, const tsr_topology_view *view, const extent *e)
{
    for (int node = 0; node < e->nodes; ++node) {
        (void)fprintf(to, "node %-4d %s\n", node, view->ranks[rank_at(view, node, 0)].host);
        for (int local = 0; local < e->places; ++local) {
            const int r = rank_at(view, node, local);

            if (r >= 0) {
                const tsr_topology_rank *rank = &view->ranks[r];

                (void)fprintf(to, "  local %-3d rank %-5d plane %-3d nic %-8s gpu %-12s cores %s\n",
                              local, r, rank->seat.plane, rank->nic[0] != '\0' ? rank->nic : "any",
                              rank->gpu[0] != '\0' ? rank->gpu : "-", rank->cores);
            }
        }
    }
}

static void draw_planes(FILE *to, const tsr_topology_view *view, const extent *e)
{
    for (int plane = 0; plane < e->planes; ++plane) {
        (void)fprintf(to, "plane %-3d ranks", plane);
        for (int node = 0; node < e->nodes; ++node) {
            for (int local = 0; local < e->places; ++local) {
                const int r = rank_at(view, node, local);

                if (r >= 0 && view->ranks[r].seat.plane == plane) {
                    (void)fprintf(to, " %d", r);
                }
            }
        }
        (void)fputc('\n', to);
    }
}

static void draw_groups(FILE *to, const tsr_topology_view *view, bool are_expert_groups)
{
    const int groups = are_expert_groups ? view->dp : view->ep;
    const int members = are_expert_groups ? view->ep : view->dp;

    (void)fprintf(to, "  %s groups", are_expert_groups ? "expert " : "replica");
    for (int group = 0; group < groups; ++group) {
        (void)fprintf(to, group > 0 ? " |" : "");
        for (int member = 0; member < members; ++member) {
            const int dp = are_expert_groups ? group : member;
            const int ep = are_expert_groups ? member : group;

            for (int r = 0; r < view->count; ++r) {
                if (view->ranks[r].dp_rank == dp && view->ranks[r].ep_rank == ep) {
                    (void)fprintf(to, " %d", r);
                }
            }
        }
    }
    (void)fputc('\n', to);
}

void tsr_topology_draw(FILE *to, const tsr_topology_view *view)
{
    const extent e = extent_of(view);
    char problem[256];

    (void)fprintf(to, "topology  %d rank%s on %d node%s, %d plane%s\n", view->count,
                  view->count == 1 ? "" : "s", e.nodes, e.nodes == 1 ? "" : "s", e.planes,
                  e.planes == 1 ? "" : "s");
    draw_nodes(to, view, &e);
    if (e.nodes > 1) {
        draw_planes(to, view, &e);
    }
    if (view->dp > 0) {
        (void)fprintf(to, "mesh      dp %d x ep %d\n", view->dp, view->ep);
        draw_groups(to, view, true);
        draw_groups(to, view, false);
    }
    if (tsr_topology_problem(view, problem)) {
        (void)fprintf(to, "problem   %s; messages will cross planes\n", problem);
    }
}
