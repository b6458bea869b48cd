/* The set of holders while it is chosen, and as a plan. */
#include "parallel/placement/placement_impl.h"

#include <string.h>

enum { HOLDS = 1, ADDED = 2 };

static uint8_t *cell(tsr_planner *p, int expert, int rank)
{
    return &p->holds[(int64_t)expert * p->options.ranks + rank];
}

static void clear(tsr_planner *p)
{
    const size_t ranks = (size_t)p->options.ranks, experts = (size_t)p->options.experts;
    const size_t nodes = (size_t)p->nodes;

    memset(p->holds, 0, experts * ranks);
    memset(p->copies, 0, ranks * sizeof *p->copies);
    memset(p->node_holders, 0, experts * nodes * sizeof *p->node_holders);
    memset(p->imports, 0, nodes * sizeof *p->imports);
    p->added_count = 0;
}

static void set_owner(tsr_planner *p, int expert, int owner)
{
    p->owner[expert] = owner;
    *cell(p, expert, owner) = HOLDS;
    ++*holders_in_node(p, expert, p->node[owner]);
}

static void set(tsr_planner *p, int expert, int rank, uint8_t how)
{
    *cell(p, expert, rank) = how;
    ++p->copies[rank];
    p->imports[p->node[rank]] += (*holders_in_node(p, expert, p->node[rank]))++ == 0;
}

void holders_from_owners(tsr_planner *p, const int32_t *owner)
{
    clear(p);
    for (int e = 0; e < p->options.experts; ++e) {
        set_owner(p, e, owner[e]);
    }
}

void holders_from(tsr_planner *p, const tsr_holding *holding)
{
    clear(p);
    for (int e = 0; e < p->options.experts; ++e) {
        set_owner(p, e, holding->rank[holding->begin[e]]);
        for (int32_t at = holding->begin[e] + 1; at < holding->begin[e + 1]; ++at) {
            set(p, e, holding->rank[at], HOLDS);
        }
    }
}

void holders_add(tsr_planner *p, int expert, int rank)
{
    set(p, expert, rank, ADDED);
    p->added[p->added_count++] = (plan_part){.expert = expert, .rank = rank};
}

void holders_undo(tsr_planner *p, int64_t count)
{
    while (p->added_count > count) {
        const plan_part *last = &p->added[--p->added_count];
        const int node = p->node[last->rank];

        *cell(p, last->expert, last->rank) = 0;
        --p->copies[last->rank];
        p->imports[node] -= --*holders_in_node(p, last->expert, node) == 0;
    }
}

/* Owners, then the ranks whose cell is at least `least`, ascending. */
static int32_t write(const tsr_planner *p, uint8_t least, int32_t *begin, int32_t *rank)
{
    int32_t at = 0;

    for (int e = 0; e < p->options.experts; ++e) {
        const uint8_t *row = p->holds + (int64_t)e * p->options.ranks;

        begin[e] = at;
        rank[at++] = p->owner[e];
        for (int r = 0; r < p->options.ranks; ++r) {
            if (row[r] >= least && r != p->owner[e]) {
                rank[at++] = r;
            }
        }
    }
    begin[p->options.experts] = at;
    return at - p->options.experts;
}

void holders_write(const tsr_planner *p, tsr_plan *plan)
{
    int32_t *begin = plan->memory, *rank = begin + p->options.experts + 1;

    plan->copies = write(p, HOLDS, begin, rank);
    plan->holding = (tsr_holding){.chunks = p->options.experts, .begin = begin, .rank = rank};
}

void holders_write_added(const tsr_planner *p, tsr_plan *plan)
{
    int32_t *begin = plan->memory + p->options.experts + 1 + p->capacity;
    int32_t *rank = begin + p->options.experts + 1;

    plan->copies_added = write(p, ADDED, begin, rank);
    plan->added = (tsr_holding){.chunks = p->options.experts, .begin = begin, .rank = rank};
}
