#include "parallel/cost_model.h"

#include <math.h>
#include <string.h>

enum { WEIGHT_BYTES = 2, STATE_BYTES = 16 }; /* of a parameter: in use; with gradient, optimizer */

struct tsr_cost_model {
    tsr_cluster cluster;
    tsr_moe_shape shape;
    int nodes;
    double *to_rank;                 /* [P,P] (token, expert) pairs from a rank to a rank */
    double *to_node;                 /* [P,N] */
    double *sent, *received;         /* [P] bytes inside nodes */
    double *out, *in;                /* [N] bytes between nodes */
    double *copies, *added;          /* [P] of weights */
    double *imports, *imports_added; /* [N] */
    double *parts;                   /* [P] experts with tokens */
    int64_t *expert_at;              /* [P] tokens of the expert at hand */
};

double tsr_expert_bytes(const tsr_moe_shape *s)
{
    return (double)WEIGHT_BYTES * s->matrices * s->hidden * s->width;
}

/* Products of one token with one expert, forward. */
static double token_flops(const tsr_moe_shape *s)
{
    return 2.0 * s->matrices * s->hidden * s->width;
}

static double row_bytes(const tsr_moe_shape *s)
{
    return (double)WEIGHT_BYTES * s->hidden;
}

double tsr_dense_s(const tsr_cluster *c, const tsr_moe_shape *s)
{
    const double hidden = s->hidden; /* four projections; scores and their use */
    const double scores = (s->skips_masked ? 2.0 : 4.0) * s->seq_len * hidden;

    return (double)s->tokens * (8.0 * hidden * hidden + scores) / c->flops;
}

/* Bytes on the way in a step, in weights: out, home as gradients, and again for backward. */
static double trips(const tsr_moe_shape *s)
{
    return 1.0 + (double)s->gradient_bytes / WEIGHT_BYTES + (s->rematerializes ? 1.0 : 0.0);
}

void tsr_cost_budgets(const tsr_cluster *c, const tsr_moe_shape *s, int *rank_budget_out,
                      int *node_budget_out)
{
    /* forward hides the way out, backward, twice as long, the others */
    const double free_s = tsr_dense_s(c, s) * fmin(1.0, 2.0 / (trips(s) - 1.0));
    const double bytes = tsr_expert_bytes(s);

    *rank_budget_out = tsr_overlap_budget(free_s, c->node_bytes_s, bytes, s->experts);
    *node_budget_out = tsr_overlap_budget(free_s, c->network_bytes_s, bytes, s->experts);
}

tsr_plan_costs tsr_cost_for_plan(const tsr_cluster *c, const tsr_moe_shape *s)
{
    const double nodes = c->ranks > c->node_ranks ? (double)c->ranks / c->node_ranks : 1.0;
    const double near_s = 1.0 / c->node_bytes_s;
    const double far_s = nodes > 1.0 ? c->node_ranks / c->network_bytes_s : 0.0;
    const double byte_s = near_s > far_s ? near_s : far_s;
    /* a row that goes once is saved only if none of the token's other experts is there */
    const double alone = s->sends_once ? pow(1.0 - 1.0 / nodes, s->top_k - 1.0) : 1.0;

    return (tsr_plan_costs){.token_s = token_flops(s) / c->flops,
                            .row_s = row_bytes(s) * byte_s * alone,
                            .copy_s = tsr_expert_bytes(s) * byte_s,
                            .trips = trips(s)};
}

double tsr_cost_memory(const tsr_cluster *c, const tsr_moe_shape *s, int slots)
{
    const double parameters = tsr_expert_bytes(s) / WEIGHT_BYTES;
    const double owned = (double)s->layers * s->experts / c->ranks;
    const double kept = s->rematerializes ? fmin(2.0, s->layers) : s->layers;

    return parameters *
           (owned * STATE_BYTES + slots * (kept * WEIGHT_BYTES + (double)s->gradient_bytes));
}

/* ---- the object ------------------------------------------------------------------------------ */

tsr_status tsr_cost_model_create(const tsr_cluster *c, const tsr_moe_shape *s, tsr_cost_model **out)
{
    tsr_cost_model *m = NULL;
    tsr_status st = TSR_OK;

    TSR_CHECK(c->ranks >= 1 && c->node_ranks >= 1 &&
                  (c->ranks < c->node_ranks || c->ranks % c->node_ranks == 0),
              TSR_ERR_ARG, "cluster: %d ranks in nodes of %d: must fill nodes", c->ranks,
              c->node_ranks);
    TSR_CHECK(c->flops > 0.0 && c->memory_bytes_s > 0.0 && c->node_bytes_s > 0.0 &&
                  c->network_bytes_s > 0.0,
              TSR_ERR_ARG, "cluster: rates must be above 0");
    TSR_CHECK(s->layers >= 1 && s->experts >= 1 && s->top_k >= 1 && s->top_k <= s->experts &&
                  s->hidden >= 1 && s->width >= 1 && s->matrices >= 1 && s->tokens >= 1 &&
                  s->seq_len >= 1,
              TSR_ERR_ARG, "cost model: sizes of the model must be above 0, top_k <= experts");
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof *m, (void **)&m));
    m->cluster = *c;
    m->shape = *s;
    m->nodes = (c->ranks + c->node_ranks - 1) / c->node_ranks;
    const int64_t ranks = c->ranks, nodes = m->nodes;
    const struct {
        double **out;
        int64_t count;
    } arrays[] = {
        {&m->to_rank, ranks * ranks},
        {&m->to_node, ranks * nodes},
        {&m->sent, ranks},
        {&m->received, ranks},
        {&m->out, nodes},
        {&m->in, nodes},
        {&m->copies, ranks},
        {&m->added, ranks},
        {&m->imports, nodes},
        {&m->imports_added, nodes},
        {&m->parts, ranks},
    };
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; ++i) {
        TSR_TRY_GOTO(tsr_mem_alloc_array(TSR_MEM_OTHER, arrays[i].count, sizeof **arrays[i].out,
                                         (void **)arrays[i].out),
                     err);
    }
    TSR_TRY_GOTO(
        tsr_mem_alloc_array(TSR_MEM_OTHER, ranks, sizeof *m->expert_at, (void **)&m->expert_at),
        err);
    *out = m;
    return TSR_OK;
err:
    tsr_cost_model_destroy(&m);
    return st;
}

void tsr_cost_model_destroy(tsr_cost_model **model_p)
{
    tsr_cost_model *m = *model_p;

    if (m == NULL) {
        return;
    }
    double *const arrays[] = {m->to_rank, m->to_node, m->sent,    m->received,      m->out,  m->in,
                              m->copies,  m->added,   m->imports, m->imports_added, m->parts};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; ++i) {
        tsr_mem_free(arrays[i]);
    }
    tsr_mem_free(m->expert_at);
    tsr_mem_free(m);
    *model_p = NULL;
}

static double largest(const double *values, int count)
{
    double best = 0.0;

    for (int i = 0; i < count; ++i) {
        best = values[i] > best ? values[i] : best;
    }
    return best;
}

static void zero(double *values, int64_t count)
{
    memset(values, 0, (size_t)count * sizeof *values);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* Rows of one rank that go to a place which `pairs` of its (token, expert) pairs need: a token
 * with K experts, each there with chance pairs / (T * K), needs it unless none is. */
static double rows(const tsr_cost_model *m, double pairs)
{
    const double tokens = (double)m->shape.tokens, k = m->shape.top_k;
    const double chance = fmin(1.0, pairs / (tokens * k));

    return m->shape.sends_once ? tokens * (1.0 - pow(1.0 - chance, k)) : pairs;
}

static void count_pairs(tsr_cost_model *m, const tsr_plan *plan, const tsr_quotas *quotas)
{
    const int64_t ranks = m->cluster.ranks, nodes = m->nodes;

    zero(m->to_rank, ranks * ranks);
    zero(m->to_node, ranks * nodes);
    zero(m->parts, ranks);
    for (int e = 0; e < m->shape.experts; ++e) {
        memset(m->expert_at, 0, (size_t)ranks * sizeof *m->expert_at);
        for (int64_t i = quotas->begin[e]; i < quotas->begin[e + 1]; ++i) {
            const tsr_quota *q = &quotas->quota[i];
            const int rank = plan->holding.rank[q->at];

            m->to_rank[q->source * ranks + rank] += (double)q->tokens;
            m->to_node[q->source * nodes + rank / m->cluster.node_ranks] += (double)q->tokens;
            m->parts[rank] += m->expert_at[rank] == 0;
            m->expert_at[rank] += q->tokens;
        }
    }
}

/* Bytes of one dispatch: between nodes from a rank to that of its place in the other node, and
 * inside nodes from there on, and from the ranks themselves. */
static void count_rows(tsr_cost_model *m)
{
    const int ranks = m->cluster.ranks, per_node = m->cluster.node_ranks;
    const double bytes = row_bytes(&m->shape);

    zero(m->sent, ranks);
    zero(m->received, ranks);
    zero(m->out, m->nodes);
    zero(m->in, m->nodes);
    for (int source = 0; source < ranks; ++source) {
        for (int n = 0; n < m->nodes; ++n) {
            const int relay = n * per_node + source % per_node; /* the source itself at home */

            if (n != source / per_node) {
                const double far = bytes * rows(m, m->to_node[source * m->nodes + n]);
                m->out[source / per_node] += far;
                m->in[n] += far;
            }
            for (int rank = n * per_node; rank < ranks && rank < (n + 1) * per_node; ++rank) {
                const double pairs = m->to_rank[(int64_t)source * ranks + rank];

                if (rank != relay && pairs > 0.0) {
                    const double near = bytes * rows(m, pairs);
                    m->sent[relay] += near;
                    m->received[rank] += near;
                }
            }
        }
    }
}

static double exchange_s(const tsr_cost_model *m)
{
    const tsr_cluster *c = &m->cluster;
    const double near = fmax(largest(m->sent, c->ranks), largest(m->received, c->ranks));
    const double far = fmax(largest(m->out, m->nodes), largest(m->in, m->nodes));

    return near / c->node_bytes_s + far / c->network_bytes_s +
           (c->node_ranks > 1 ? c->node_latency_s : 0.0) +
           (m->nodes > 1 ? c->network_latency_s : 0.0);
}

/* ---- weights --------------------------------------------------------------------------------- */

static bool is_added(const tsr_plan *plan, int e, int rank)
{
    if (plan->copies_added == 0) {
        return false;
    }
    for (int32_t at = plan->added.begin[e] + 1; at < plan->added.begin[e + 1]; ++at) {
        if (plan->added.rank[at] == rank) {
            return true;
        }
    }
    return false;
}

/* Copies of each rank, and experts that each node gets from others: of the plan before the gate,
 * and of the spill. */
static void count_weights(tsr_cost_model *m, const tsr_plan *plan)
{
    const int per_node = m->cluster.node_ranks;

    zero(m->copies, m->cluster.ranks);
    zero(m->added, m->cluster.ranks);
    zero(m->imports, m->nodes);
    zero(m->imports_added, m->nodes);
    for (int e = 0; e < plan->holding.chunks; ++e) {
        const int32_t first = plan->holding.begin[e], end = plan->holding.begin[e + 1];
        const int home = plan->holding.rank[first] / per_node;
        int node = -1; /* the ranks ascend, so a node's come together */
        bool was_there = false, is_counted = false;

        for (int32_t at = first + 1; at < end; ++at) {
            const int rank = plan->holding.rank[at], n = rank / per_node;
            const bool is_new = is_added(plan, e, rank);

            *(is_new ? &m->added[rank] : &m->copies[rank]) += 1.0;
            if (n != node) {
                node = n;
                was_there = is_counted = n == home;
            }
            if (!is_new && !was_there) {
                m->imports[n] += 1.0;
                m->imports_added[n] -= is_counted; /* it had come before, after all */
                was_there = is_counted = true;
            } else if (is_new && !is_counted) {
                m->imports_added[n] += 1.0;
                is_counted = true;
            }
        }
    }
}

/* A node's experts come once over the network and, piece by piece, on inside it; relays keep any
 * one owner from sending more than others receive. */
static double weights_s(const tsr_cost_model *m, const double *copies, const double *imports,
                        double bytes)
{
    const tsr_cluster *c = &m->cluster;
    const double near = largest(copies, c->ranks), far = largest(imports, m->nodes);

    return fmax(near * bytes / c->node_bytes_s, far * bytes / c->network_bytes_s) +
           (near > 0.0 ? c->node_latency_s : 0.0) + (far > 0.0 ? c->network_latency_s : 0.0);
}

static double sum(const double *values, int count)
{
    double total = 0.0;

    for (int i = 0; i < count; ++i) {
        total += values[i];
    }
    return total;
}

static double above(double value, double limit)
{
    return value > limit ? value - limit : 0.0;
}

tsr_layer_cost tsr_cost_layer(tsr_cost_model *m, const tsr_plan *plan, const tsr_quotas *quotas,
                              bool plans_exactly)
{
    const tsr_cluster *c = &m->cluster;
    const double bytes = tsr_expert_bytes(&m->shape), dense = tsr_dense_s(c, &m->shape);
    const double token_s = token_flops(&m->shape) / c->flops, weight_s = bytes / c->memory_bytes_s;
    tsr_layer_cost cost = {.dense_s = 3.0 * dense};

    count_pairs(m, plan, quotas);
    count_rows(m);
    count_weights(m, plan);
    for (int r = 0; r < c->ranks; ++r) {
        cost.compute_s =
            fmax(cost.compute_s, (double)quotas->load[r] * token_s + m->parts[r] * weight_s);
    }
    cost.compute_s *= 3.0;
    cost.exchange_s = 4.0 * exchange_s(m);
    cost.node_bytes = sum(m->received, c->ranks);
    cost.network_bytes = sum(m->in, m->nodes);
    cost.weight_bytes = bytes * (double)plan->copies;
    cost.weight_network = bytes * (sum(m->imports, m->nodes) + sum(m->imports_added, m->nodes));
    const double out = weights_s(m, m->copies, m->imports, bytes);
    cost.spill_s = weights_s(m, m->added, m->imports_added, bytes);
    for (int r = 0; r < c->ranks; ++r) {
        m->copies[r] += m->added[r];
    }
    for (int n = 0; n < m->nodes; ++n) {
        m->imports[n] += m->imports_added[n];
    }
    const double home =
        weights_s(m, m->copies, m->imports, bytes / WEIGHT_BYTES * m->shape.gradient_bytes);
    const double again = m->shape.rematerializes ? weights_s(m, m->copies, m->imports, bytes) : 0.0;
    cost.hidden_s = out + home + again;
    cost.exposed_s = above(out, dense) + above(home + again, 2.0 * dense);
    cost.plan_s = plans_exactly ? c->plan_s * c->ranks * m->shape.experts / (64.0 * 256.0) : 0.0;
    cost.step_s = cost.dense_s + cost.compute_s + cost.exchange_s + cost.exposed_s + cost.spill_s +
                  cost.plan_s;
    return cost;
}
