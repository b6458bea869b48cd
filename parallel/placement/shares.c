/* From the tokens of each holder to quotas of (source, holder): own rank, node, then any. */
#include "parallel/placement/placement_impl.h"

#include <string.h>

int64_t loads_from_amounts(const tsr_planner *p, const tsr_holding *holding, int64_t *load)
{
    int64_t largest = 0;

    memset(load, 0, (size_t)p->options.ranks * sizeof *load);
    for (int32_t at = 0; at < holding->begin[holding->chunks]; ++at) {
        load[holding->rank[at]] += p->amount[at];
    }
    for (int r = 0; r < p->options.ranks; ++r) {
        largest = load[r] > largest ? load[r] : largest;
    }
    return largest;
}

static void emit(tsr_planner *p, int64_t *next, int source, int32_t at, int64_t tokens)
{
    p->quota[(*next)++] = (tsr_quota){.source = source, .at = at, .tokens = tokens};
    p->left[source] -= tokens;
    p->room[at] -= tokens;
}

/* Sources [from, to) meet holders at[0 .. count), both in order: each pair finishes one of them. */
static void pair_up(tsr_planner *p, int64_t *next, int from, int to, const int32_t *at, int count)
{
    int i = 0;

    for (int source = from; source < to; ++source) {
        while (p->left[source] > 0 && i < count) {
            const int64_t room = p->room[at[i]];
            const int64_t tokens = room < p->left[source] ? room : p->left[source];

            if (tokens > 0) {
                emit(p, next, source, at[i], tokens);
            }
            i += p->room[at[i]] == 0;
        }
    }
}

/* Holders of one expert ascending by rank into p->at: only the first, the owner, is not so. */
static int by_rank(tsr_planner *p, const tsr_holding *holding, int e)
{
    const int32_t owner_at = holding->begin[e], end = holding->begin[e + 1];
    int count = 0;
    bool has_owner = false;

    for (int32_t at = owner_at + 1; at < end; ++at) {
        if (!has_owner && holding->rank[at] > holding->rank[owner_at]) {
            p->at[count++] = owner_at;
            has_owner = true;
        }
        p->at[count++] = at;
    }
    if (!has_owner) {
        p->at[count++] = owner_at;
    }
    return count;
}

static void write_shared(tsr_planner *p, int64_t *next, const tsr_holding *holding, int e)
{
    const int count = by_rank(p, holding, e);

    for (int i = 0; i < count; ++i) {
        const int rank = holding->rank[p->at[i]];
        const int64_t room = p->room[p->at[i]];
        const int64_t tokens = room < p->left[rank] ? room : p->left[rank];

        if (tokens > 0) {
            emit(p, next, rank, p->at[i], tokens);
        }
    }
    for (int i = 0; i < count;) {
        const int n = p->node[holding->rank[p->at[i]]];
        int end = i + 1;

        while (end < count && p->node[holding->rank[p->at[end]]] == n) {
            ++end;
        }
        pair_up(p, next, p->node_begin[n], p->node_begin[n + 1], p->at + i, end - i);
        i = end;
    }
    pair_up(p, next, 0, p->options.ranks, p->at, count);
}

void quotas_write(tsr_planner *p, const int64_t *counts, const tsr_holding *holding)
{
    const int experts = p->options.experts, ranks = p->options.ranks;
    int64_t next = 0;

    for (int e = 0; e < experts; ++e) {
        const int32_t first = holding->begin[e];

        p->quota_begin[e] = next;
        if (holding->begin[e + 1] - first == 1) {
            for (int r = 0; r < ranks; ++r) {
                const int64_t tokens = counts[(int64_t)r * experts + e];

                if (tokens > 0) {
                    p->quota[next++] = (tsr_quota){.source = r, .at = first, .tokens = tokens};
                }
            }
            continue;
        }
        for (int r = 0; r < ranks; ++r) {
            p->left[r] = counts[(int64_t)r * experts + e];
        }
        for (int32_t at = first; at < holding->begin[e + 1]; ++at) {
            p->room[at] = p->amount[at];
        }
        write_shared(p, &next, holding, e);
    }
    p->quota_begin[experts] = next;
}
