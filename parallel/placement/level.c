/* Tokens of each holder such that the largest load of a rank is the least possible one.
 *
 * Experts send their tokens to holders, each rank takes at most `level`: a flow. Where it cannot
 * take all, the ranks that a search from the unplaced tokens reaches are full, and hold nothing
 * that could go elsewhere: their load and what is unplaced, over their number, is a lower bound of
 * any level (the density of that set). So the level rises to it, from the bound that the mean and
 * the experts with one holder give, until all is placed: it is then the optimum, in whole tokens.
 *
 * Tokens are placed on their own rank first, then in their node, then anywhere, and only what does
 * not fit is moved by the search; a level that has risen is filled once more, from the start.
 *
 * Source: the formulation is that of MicroMoE, arXiv:2511.16947 (there a linear program). */
#include "parallel/placement/placement_impl.h"

#include <string.h>

enum { NOT_REACHED = -1, STARTED = -2 };

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* ---- who shares what ------------------------------------------------------------------------- */

/* Experts with several holders, fewest first: those with little choice choose first. */
static int list_shared(tsr_planner *p, const tsr_holding *holding)
{
    int count = 0;

    for (int e = 0; e < p->options.experts; ++e) {
        if (holding->begin[e + 1] - holding->begin[e] > 1) {
            p->items[count++] =
                (plan_item){.id = e, .key = holding->begin[e + 1] - holding->begin[e]};
        }
    }
    plan_sort(p, count);
    for (int i = 0; i < count; ++i) {
        p->shared[i] = p->items[i].id;
    }
    return count;
}

static void index_by_rank(tsr_planner *p, const tsr_holding *holding, int shared)
{
    const int ranks = p->options.ranks;

    memset(p->rank_begin, 0, (size_t)(ranks + 1) * sizeof *p->rank_begin);
    for (int i = 0; i < shared; ++i) {
        const int e = p->shared[i];

        for (int32_t at = holding->begin[e]; at < holding->begin[e + 1]; ++at) {
            p->entry_expert[at] = e;
            ++p->rank_begin[holding->rank[at] + 1];
        }
    }
    for (int r = 0; r < ranks; ++r) {
        p->rank_begin[r + 1] += p->rank_begin[r];
        p->rank_parent[r] = p->rank_begin[r]; /* here: where the next one goes */
    }
    for (int i = 0; i < shared; ++i) {
        const int e = p->shared[i];

        for (int32_t at = holding->begin[e]; at < holding->begin[e + 1]; ++at) {
            p->rank_entry[p->rank_parent[holding->rank[at]]++] = at;
        }
    }
}

static void count_by_node(tsr_planner *p, const int64_t *counts)
{
    const int experts = p->options.experts;

    memset(p->node_count, 0, (size_t)experts * (size_t)p->nodes * sizeof *p->node_count);
    for (int r = 0; r < p->options.ranks; ++r) {
        int64_t *row = p->node_count + (int64_t)p->node[r] * experts;

        for (int e = 0; e < experts; ++e) {
            row[e] += counts[(int64_t)r * experts + e];
        }
    }
}

/* ---- filling --------------------------------------------------------------------------------- */

static void place(tsr_planner *p, const tsr_holding *holding, int32_t at, int64_t tokens)
{
    p->amount[at] += tokens;
    p->load[holding->rank[at]] += tokens;
}

/* Tokens of e to the holders on ranks [from, to), the emptiest first, up to the level; gives what
 * is left over. */
static int64_t fill(tsr_planner *p, const tsr_holding *holding, int e, int from, int to,
                    int64_t level, int64_t tokens)
{
    while (tokens > 0) {
        int32_t best = -1;

        for (int32_t at = holding->begin[e]; at < holding->begin[e + 1]; ++at) {
            const int r = holding->rank[at];

            if (r >= from && r < to && p->load[r] < level &&
                (best < 0 || p->load[r] < p->load[holding->rank[best]])) {
                best = at;
            }
        }
        if (best < 0) {
            break;
        }
        const int64_t part = smaller(tokens, level - p->load[holding->rank[best]]);
        place(p, holding, best, part);
        tokens -= part;
    }
    return tokens;
}

static void fill_own_ranks(tsr_planner *p, const int64_t *counts, const tsr_holding *holding, int e,
                           int64_t level)
{
    for (int32_t at = holding->begin[e]; at < holding->begin[e + 1]; ++at) {
        const int r = holding->rank[at];

        p->amount[at] = 0;
        if (p->load[r] < level) {
            place(p, holding, at,
                  smaller(counts[(int64_t)r * p->options.experts + e], level - p->load[r]));
        }
    }
}

/* What a node has for e and did not keep on its ranks, to the node's other holders. */
static void fill_nodes(tsr_planner *p, const tsr_holding *holding, int e, int64_t level)
{
    for (int n = 0; n < p->nodes; ++n) {
        p->left[n] = p->node_count[(int64_t)n * p->options.experts + e];
    }
    for (int32_t at = holding->begin[e]; at < holding->begin[e + 1]; ++at) {
        p->left[p->node[holding->rank[at]]] -= p->amount[at];
    }
    int64_t far = 0;
    for (int n = 0; n < p->nodes; ++n) {
        far += fill(p, holding, e, p->node_begin[n], p->node_begin[n + 1], level, p->left[n]);
    }
    p->unplaced[e] = far;
}

/* All tokens by preference; gives how many found no room. */
static int64_t fill_all(tsr_planner *p, const int64_t *counts, const tsr_holding *holding,
                        int shared, int64_t level)
{
    int64_t unplaced = 0;

    memcpy(p->load, p->fixed_load, (size_t)p->options.ranks * sizeof *p->load);
    for (int i = 0; i < shared; ++i) {
        fill_own_ranks(p, counts, holding, p->shared[i], level);
    }
    for (int i = 0; i < shared; ++i) {
        fill_nodes(p, holding, p->shared[i], level);
    }
    for (int i = 0; i < shared; ++i) {
        const int e = p->shared[i];

        p->unplaced[e] = fill(p, holding, e, 0, p->options.ranks, level, p->unplaced[e]);
        unplaced += p->unplaced[e];
    }
    return unplaced;
}

/* ---- searching ------------------------------------------------------------------------------- */

/* A rank with room was reached: shift tokens along the way back to where the search began. */
static int64_t shift(tsr_planner *p, const tsr_holding *holding, int rank, int64_t level)
{
    int64_t tokens = level - p->load[rank];
    int32_t at = p->rank_parent[rank];

    for (;;) { /* what every step of the way allows */
        const int e = p->entry_expert[at];
        const int32_t from = p->expert_parent[e];

        if (from == STARTED) {
            tokens = smaller(tokens, p->unplaced[e]);
            break;
        }
        tokens = smaller(tokens, p->amount[from]);
        at = p->rank_parent[holding->rank[from]];
    }
    if (tokens <= 0) {
        return 0; /* an earlier way of this search took it */
    }
    p->load[rank] += tokens;
    at = p->rank_parent[rank];
    for (;;) {
        const int e = p->entry_expert[at];
        const int32_t from = p->expert_parent[e];

        p->amount[at] += tokens;
        if (from == STARTED) {
            p->unplaced[e] -= tokens;
            return tokens;
        }
        p->amount[from] -= tokens;
        at = p->rank_parent[holding->rank[from]];
    }
}

/* One breadth-first search from all unplaced tokens: shifts what it can, says how much, and how
 * many ranks it reached. */
static int64_t search(tsr_planner *p, const tsr_holding *holding, int shared, int64_t level,
                      int *reached_out)
{
    const int experts = p->options.experts;
    int head = 0, tail = 0, reached = 0;
    int64_t shifted = 0;

    memset(p->rank_parent, 0xff, (size_t)p->options.ranks * sizeof *p->rank_parent);
    for (int i = 0; i < shared; ++i) {
        const int e = p->shared[i];

        p->expert_parent[e] = p->unplaced[e] > 0 ? STARTED : NOT_REACHED;
        if (p->unplaced[e] > 0) {
            p->queue[tail++] = e;
        }
    }
    while (head < tail) {
        const int32_t node = p->queue[head++];

        if (node < experts) {
            for (int32_t at = holding->begin[node]; at < holding->begin[node + 1]; ++at) {
                const int r = holding->rank[at];

                if (p->rank_parent[r] != NOT_REACHED) {
                    continue;
                }
                p->rank_parent[r] = at;
                ++reached;
                if (p->load[r] < level) {
                    shifted += shift(p, holding, r, level);
                } else {
                    p->queue[tail++] = experts + r;
                }
            }
            continue;
        }
        for (int32_t i = p->rank_begin[node - experts]; i < p->rank_begin[node - experts + 1];
             ++i) {
            const int32_t at = p->rank_entry[i];

            if (p->amount[at] > 0 && p->expert_parent[p->entry_expert[at]] == NOT_REACHED) {
                p->expert_parent[p->entry_expert[at]] = at;
                p->queue[tail++] = p->entry_expert[at];
            }
        }
    }
    *reached_out = reached;
    return shifted;
}

/* Place the rest, raising the level as far as it must; gives the level. */
static int64_t settle(tsr_planner *p, const tsr_holding *holding, int shared, int64_t unplaced,
                      int64_t level)
{
    while (unplaced > 0) {
        int reached = 0;
        const int64_t shifted = search(p, holding, shared, level, &reached);

        unplaced -= shifted;
        if (shifted == 0) {
            level += (unplaced + reached - 1) / reached; /* the cut's density */
        }
    }
    return level;
}

/* Experts with one holder; gives the lowest level that can hold the rest. */
static int64_t fix_single(tsr_planner *p, const tsr_holding *holding)
{
    const int ranks = p->options.ranks;
    int64_t level = (p->total + ranks - 1) / ranks;

    memset(p->fixed_load, 0, (size_t)ranks * sizeof *p->fixed_load);
    for (int e = 0; e < p->options.experts; ++e) {
        const int32_t first = holding->begin[e];

        if (holding->begin[e + 1] - first == 1) {
            p->amount[first] = p->expert_load[e];
            p->fixed_load[holding->rank[first]] += p->expert_load[e];
        }
    }
    for (int r = 0; r < ranks; ++r) {
        level = p->fixed_load[r] > level ? p->fixed_load[r] : level;
    }
    return level;
}

void amounts_level(tsr_planner *p, const int64_t *counts, const tsr_holding *holding)
{
    const int64_t level = fix_single(p, holding);
    const int shared = list_shared(p, holding);

    index_by_rank(p, holding, shared);
    count_by_node(p, counts);
    const int64_t unplaced = fill_all(p, counts, holding, shared, level);
    const int64_t least = settle(p, holding, shared, unplaced, level);
    if (least > level) {
        (void)settle(p, holding, shared, fill_all(p, counts, holding, shared, least), least);
    }
}

void amounts_excess(tsr_planner *p, const int64_t *counts, const tsr_holding *holding,
                    int64_t level)
{
    int reached = 0;

    (void)fix_single(p, holding);
    const int shared = list_shared(p, holding);
    index_by_rank(p, holding, shared);
    count_by_node(p, counts);
    (void)fill_all(p, counts, holding, shared, level);
    while (search(p, holding, shared, level, &reached) > 0) {
    }
    for (int i = 0; i < shared; ++i) {
        const int e = p->shared[i];

        place(p, holding, holding->begin[e], p->unplaced[e]);
    }
}
