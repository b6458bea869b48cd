/* Tokens of each holder by a rule that does not look at the loads of ranks. */
#include "parallel/placement/placement_impl.h"

/* Holder number i of count gets its part of tokens; who gets one more turns with the expert. */
static int64_t even_part(int64_t tokens, int count, int i, int turn)
{
    return tokens / count + ((i + turn) % count < tokens % count);
}

/* Of expert e's tokens: by node what has no copy on its rank, into p->left [N]; the return value
 * has none in its node. p->node_holding [N] counts the node's holders, p->node_seen [N] is 0. */
static int64_t without_own(tsr_planner *p, const int64_t *counts, const tsr_holding *holding, int e)
{
    int64_t far = 0;

    for (int n = 0; n < p->nodes; ++n) {
        p->left[n] = p->node_holding[n] = p->node_seen[n] = 0;
    }
    for (int r = 0; r < p->options.ranks; ++r) {
        p->left[p->node[r]] += counts[(int64_t)r * p->options.experts + e];
    }
    for (int32_t at = holding->begin[e]; at < holding->begin[e + 1]; ++at) {
        const int rank = holding->rank[at];

        ++p->node_holding[p->node[rank]];
        p->left[p->node[rank]] -= counts[(int64_t)rank * p->options.experts + e];
    }
    for (int n = 0; n < p->nodes; ++n) {
        far += p->node_holding[n] == 0 ? p->left[n] : 0;
    }
    return far;
}

void amounts_nearest(tsr_planner *p, const int64_t *counts, const tsr_holding *holding)
{
    for (int e = 0; e < p->options.experts; ++e) {
        const int32_t first = holding->begin[e], count = holding->begin[e + 1] - first;

        if (count == 1) {
            p->amount[first] = p->expert_load[e];
            continue;
        }
        const int64_t far = without_own(p, counts, holding, e);
        for (int32_t i = 0; i < count; ++i) {
            const int32_t rank = holding->rank[first + i], n = p->node[rank];

            p->amount[first + i] = counts[(int64_t)rank * p->options.experts + e] +
                                   even_part(p->left[n], p->node_holding[n], p->node_seen[n]++, e) +
                                   even_part(far, count, i, e);
        }
    }
}

int64_t try_nearest(tsr_planner *p, const int64_t *counts)
{
    holders_write(p, &p->trial);
    amounts_nearest(p, counts, &p->trial.holding);
    return loads_from_amounts(p, &p->trial.holding, p->trial_load);
}

void amounts_even(tsr_planner *p, const int64_t *counts, const tsr_holding *holding)
{
    (void)counts;
    for (int e = 0; e < p->options.experts; ++e) {
        const int32_t first = holding->begin[e], count = holding->begin[e + 1] - first;

        for (int32_t i = 0; i < count; ++i) {
            p->amount[first + i] = even_part(p->expert_load[e], count, i, e);
        }
    }
}
