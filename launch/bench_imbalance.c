/* `tessera bench imbalance --modelled`: every policy of placement against ep and against even
 * loads, by the cost model. */
#include "launch/bench.h"
#include "launch/figure.h"
#include "launch/imbalance.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_SIZES = 16, MAX_RANKS = 4096, DEFAULT_COPIES = 8 };

typedef struct request {
    const imbalance_cluster *cluster;
    const imbalance_shape *shape;
    imbalance_case base; /* but for the ranks */
    const char *load;
    bool is_wanted[TSR_PLACEMENT_POLICIES];
    int64_t slots; /* < 0: by the budget */
    int ranks[MAX_SIZES], sizes;
} request;

static const char *text_or(const cli_values *values, const char *name, const char *fallback)
{
    const char *text = cli_get(&cli_bench, values, name);

    return text != NULL ? text : fallback;
}

static tsr_status read_ranks(const char *text, request *r)
{
    for (const char *at = text;; ++at) {
        char *end = NULL;
        const long ranks = strtol(at, &end, 10);
        const int per_node = r->cluster->cluster.node_ranks;

        TSR_CHECK(end != at && (*end == ',' || *end == '\0') && ranks >= 1 && ranks <= MAX_RANKS &&
                      (ranks < per_node || ranks % per_node == 0),
                  TSR_ERR_ARG, "--ranks %s: must be numbers up to %d that fill nodes of %d", text,
                  MAX_RANKS, per_node);
        TSR_CHECK(r->sizes < MAX_SIZES, TSR_ERR_ARG, "--ranks: more than %d numbers", MAX_SIZES);
        r->ranks[r->sizes++] = (int)ranks;
        at = end;
        if (*at == '\0') {
            return TSR_OK;
        }
    }
}

static tsr_status read_request(const cli_values *values, request *r)
{
    int64_t experts = 0;

    TSR_TRY(imbalance_find_cluster(text_or(values, "cluster", "h100"), &r->cluster));
    TSR_TRY(imbalance_find_shape(text_or(values, "model", "fine"), &r->shape));
    r->base.cluster = r->cluster->cluster;
    r->base.shape = r->shape->shape;
    r->base.shape.rematerializes =
        r->base.shape.rematerializes || cli_get(&cli_bench, values, "rematerialize") != NULL;
    TSR_TRY(cli_get_int(&cli_bench, values, "experts", r->base.shape.top_k, 4096,
                        r->base.shape.experts, &experts));
    r->base.shape.experts = (int)experts;
    TSR_TRY(cli_get_int(&cli_bench, values, "slots", 0, experts, -1, &r->slots));
    r->load = text_or(values, "load", "zipf:0.8");
    r->base.load.seed = 1;
    TSR_TRY(tsr_load_parse(r->load, &r->base.load));
    TSR_TRY(imbalance_find_policies(text_or(values, "policy", "all"), r->is_wanted));
    return read_ranks(text_or(values, "ranks", "32"), r);
}

/* One expert group of at most as many ranks as there are experts; larger clusters have several. */
static tsr_status make_case(const request *r, int ranks, imbalance_case *c)
{
    int rank_budget = 0, node_budget = 0;
    const int experts = r->base.shape.experts, per_node = r->base.cluster.node_ranks;

    *c = r->base;
    c->cluster.ranks = ranks <= experts      ? ranks
                       : experts >= per_node ? experts / per_node * per_node
                                             : experts;
    TSR_CHECK(ranks % c->cluster.ranks == 0, TSR_ERR_ARG,
              "%d ranks are no whole number of groups of %d (%d experts)", ranks, c->cluster.ranks,
              experts);
    tsr_cost_budgets(&c->cluster, &c->shape, &rank_budget, &node_budget);
    const int budget = c->cluster.ranks > per_node ? node_budget : rank_budget;
    c->slots = r->slots >= 0             ? (int)r->slots
               : budget < DEFAULT_COPIES ? budget + 1
                                         : DEFAULT_COPIES + 1;
    c->slots = c->slots < experts ? c->slots : experts;
    return TSR_OK;
}

static void print_head(FILE *to, const request *r, const imbalance_case *c, int ranks)
{
    int rank_budget = 0, node_budget = 0;

    tsr_cost_budgets(&c->cluster, &c->shape, &rank_budget, &node_budget);
    (void)fprintf(to,
                  "modelled | %s: %s\n%s: %s | load %s\n%d ranks in %d expert group%s of %d, %d "
                  "experts | %d slots a rank | hidden: %d experts a rank, %d a node\n",
                  r->cluster->name, r->cluster->about, r->shape->name, r->shape->about, r->load,
                  ranks, ranks / c->cluster.ranks, ranks == c->cluster.ranks ? "" : "s",
                  c->cluster.ranks, c->shape.experts, c->slots, rank_budget, node_budget);
    (void)fprintf(to, "%-7s %9s %7s %8s %8s %8s %8s %8s %8s %7s %7s %8s %8s %8s\n", "policy",
                  "max/mean", "worst", "layer ms", "vs ep", "of even", "exchange", "experts",
                  "exposed", "copies", "spilled", "node MB", "net MB", "mem GB");
}

static void print_row(FILE *to, const char *name, const imbalance_result *x, double ep_s,
                      double even_s)
{
    (void)fprintf(to,
                  "%-7s %9.3f %7.3f %8.2f %7.2fx %7.1f%% %8.2f %8.2f %8.2f %7.1f %7.2f %8.1f %8.1f "
                  "%8.2f\n",
                  name, x->ratio, x->worst_ratio, x->step_s * 1e3, ep_s / x->step_s,
                  100.0 * even_s / x->step_s, x->exchange_s * 1e3, x->compute_s * 1e3,
                  x->exposed_s * 1e3, x->copies, x->spilled, x->node_bytes * 1e-6,
                  x->network_bytes * 1e-6, x->memory_bytes * 1e-9);
}

static json_t *row_object(const char *name, const imbalance_result *x, double ep_s, double even_s)
{
    return json_pack(
        "{s:s,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "policy", name,
        "max_over_mean", figure_json(x->ratio), "worst_max_over_mean", figure_json(x->worst_ratio),
        "layer_s", figure_json(x->step_s), "speedup_over_ep", figure_json(ep_s / x->step_s),
        "share_of_even", figure_json(even_s / x->step_s), "exchange_s", figure_json(x->exchange_s),
        "experts_s", figure_json(x->compute_s), "exposed_s", figure_json(x->exposed_s), "hidden_s",
        figure_json(x->hidden_s), "copies", figure_json(x->copies), "spilled",
        figure_json(x->spilled), "experts_moved", figure_json(x->moved), "node_bytes",
        figure_json(x->node_bytes), "network_bytes", figure_json(x->network_bytes), "weight_bytes",
        figure_json(x->weight_bytes), "memory_bytes", figure_json(x->memory_bytes));
}

static tsr_status run_size(const request *r, int ranks, FILE *to, json_t *groups)
{
    imbalance_case c, even;
    imbalance_result ep, ideal, x;
    json_t *rows = json_array();

    tsr_status st = make_case(r, ranks, &c);
    if (st == TSR_OK) {
        st = imbalance_run(&c, TSR_PLACEMENT_EP, &ep);
    }
    even = c;
    if (st == TSR_OK) {
        st = tsr_load_parse("even", &even.load);
    }
    if (st == TSR_OK) {
        st = imbalance_run(&even, TSR_PLACEMENT_EP, &ideal);
    }
    if (st == TSR_OK) {
        print_head(to, r, &c, ranks);
        print_row(to, "even", &ideal, ep.step_s, ideal.step_s);
        (void)json_array_append_new(rows, row_object("even", &ideal, ep.step_s, ideal.step_s));
    }
    for (int i = 0; st == TSR_OK && i < TSR_PLACEMENT_POLICIES; ++i) {
        const char *name = tsr_placement_name((tsr_placement_policy)i);

        if (!r->is_wanted[i]) {
            continue;
        }
        st = imbalance_run(&c, (tsr_placement_policy)i, &x);
        if (st == TSR_OK) {
            print_row(to, name, &x, ep.step_s, ideal.step_s);
            (void)json_array_append_new(rows, row_object(name, &x, ep.step_s, ideal.step_s));
        }
    }
    if (st == TSR_OK) {
        (void)fputc('\n', to);
        (void)json_array_append_new(
            groups, json_pack("{s:s,s:s,s:s,s:i,s:i,s:i,s:i,s:O}", "cluster", r->cluster->name,
                              "model", r->shape->name, "load", r->load, "ranks", ranks,
                              "group_ranks", c.cluster.ranks, "experts", c.shape.experts, "slots",
                              c.slots, "policies", rows));
    }
    json_decref(rows);
    return st;
}

tsr_status bench_imbalance(const cli_values *values, world *w)
{
    static request r; /* large: holds a path */
    json_t *groups = NULL;

    TSR_CHECK(values->positional_count == 1, TSR_ERR_ARG, "bench imbalance: takes no run file");
    if (cli_get(&cli_bench, values, "modelled") == NULL) {
        return bench_imbalance_real(values, w);
    }
    r = (request){.sizes = 0};
    TSR_TRY(read_request(values, &r));
    TSR_CHECK(tsr_comm_size(w->comm) == 1, TSR_ERR_ARG,
              "bench imbalance --modelled: %d ranks; the model runs in one process",
              tsr_comm_size(w->comm));
    groups = json_array();
    tsr_status st = TSR_OK;
    for (int i = 0; st == TSR_OK && i < r.sizes; ++i) {
        st = run_size(&r, r.ranks[i], w->people, groups);
    }
    if (st == TSR_OK && (w->json || w->people != stdout)) {
        json_t *object =
            json_pack("{s:b,s:s,s:O}", "modelled", 1, "revision", TSR_REVISION, "sizes", groups);
        (void)json_dumpf(object, stdout, JSON_REAL_PRECISION(6));
        (void)fputc('\n', stdout);
        json_decref(object);
    }
    json_decref(groups);
    return st;
}
