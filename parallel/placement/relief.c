/* Copies that take load from ranks with too much of it.
 *
 * For a goal, ranks give their excess away, the heaviest rank and its heaviest expert first, to
 * whoever has most room and a free slot. A search by halves finds the lowest goal that this
 * reaches.
 *
 * Source: the solver of UltraEP, arXiv:2606.04101, as published in its code; here the pieces may
 * be copies themselves, and nodes matter. */
#include "parallel/placement/placement_impl.h"

#include <string.h>

typedef struct relief {
    tsr_planner *p;
    const plan_part *parts; /* by rank, the largest first */
    const int32_t *begin;   /* [P+1] */
    int slots;
    relief_choice choice;
} relief;

/* Is rank a preferred to b, whatever their loads? Less than 0: yes, 0: neither. */
static int prefer(const relief *f, int e, int rank, int a, int b)
{
    const tsr_planner *p = f->p;

    if (f->choice == RELIEF_SPREADS) {
        return *holders_in_node(p, e, p->node[a]) - *holders_in_node(p, e, p->node[b]);
    }
    return (p->node[b] == p->node[rank]) - (p->node[a] == p->node[rank]);
}

/* Who takes up to `need` tokens of e from rank; -1: nobody. */
static int choose(const relief *f, const int64_t *load, int e, int rank, int64_t goal, int64_t need)
{
    const tsr_planner *p = f->p;
    int preferred = -1, emptiest = -1;

    for (int r = 0; r < p->options.ranks; ++r) {
        if (load[r] >= goal || p->copies[r] >= f->slots || holders_has(p, e, r) ||
            (f->choice == RELIEF_SPREADS && !holders_may_import(p, e, r))) {
            continue;
        }
        if (emptiest < 0 || load[r] < load[emptiest]) {
            emptiest = r;
        }
        const int order = preferred < 0 ? -1 : prefer(f, e, rank, r, preferred);
        if (order < 0 || (order == 0 && load[r] < load[preferred])) {
            preferred = r;
        }
    }
    /* not at the price of more than twice as many copies */
    const bool has_room = preferred >= 0 && (goal - load[preferred] >= need ||
                                             2 * (goal - load[preferred]) >= goal - load[emptiest]);
    return has_room ? preferred : emptiest;
}

/* Try a goal: the copies are added; true if every rank got down to it. */
static bool reach(const relief *f, int64_t goal)
{
    tsr_planner *p = f->p;
    int64_t *load = p->trial_load;
    bool is_reached = true;

    memcpy(load, p->load, (size_t)p->options.ranks * sizeof *load);
    for (int i = 0; i < p->options.ranks; ++i) {
        const int rank = p->order[i];

        for (int32_t j = f->begin[rank]; j < f->begin[rank + 1] && load[rank] > goal; ++j) {
            const int e = f->parts[j].expert;
            int64_t left = f->parts[j].tokens;

            while (left > 0 && load[rank] > goal) {
                const int64_t excess = load[rank] - goal, need = left < excess ? left : excess;
                const int to = choose(f, load, e, rank, goal, need);

                if (to < 0) {
                    break;
                }
                const int64_t tokens = need < goal - load[to] ? need : goal - load[to];
                holders_add(p, e, to);
                load[to] += tokens;
                load[rank] -= tokens;
                left -= tokens;
            }
        }
        is_reached = is_reached && load[rank] <= goal;
    }
    return is_reached;
}

/* The parts by rank, each rank's by falling tokens; begin [P+1] is p->rank_begin. */
static void sort_parts(tsr_planner *p, plan_part *parts, int count, plan_part *sorted)
{
    const int ranks = p->options.ranks;

    for (int i = 0; i < count; ++i) {
        p->items[i] = (plan_item){.key = -parts[i].tokens, .id = i};
    }
    plan_sort(p, count);
    memset(p->rank_begin, 0, (size_t)(ranks + 1) * sizeof *p->rank_begin);
    for (int i = 0; i < count; ++i) {
        ++p->rank_begin[parts[i].rank + 1];
    }
    for (int r = 0; r < ranks; ++r) {
        p->rank_begin[r + 1] += p->rank_begin[r];
        p->rank_parent[r] = p->rank_begin[r];
    }
    for (int i = 0; i < count; ++i) {
        const plan_part *part = &parts[p->items[i].id];

        sorted[p->rank_parent[part->rank]++] = *part;
    }
}

int64_t relieve(tsr_planner *p, int part_count, int64_t goal, int slots, relief_choice choice)
{
    const int64_t kept = p->added_count;
    const relief f = {
        .p = p, .parts = p->parts_sorted, .begin = p->rank_begin, .slots = slots, .choice = choice};
    int64_t missed = goal, reached = 0;

    sort_parts(p, p->parts, part_count, p->parts_sorted);
    plan_order(p, p->load, p->options.ranks);
    reached = p->load[p->order[0]];
    if (reach(&f, goal)) {
        return reached < goal ? reached : goal;
    }
    /* one part in 256 is less than what counts drift by between two steps */
    while (reached - missed > 1 + missed / 256) {
        const int64_t middle = missed + (reached - missed) / 2;

        holders_undo(p, kept);
        *(reach(&f, middle) ? &reached : &missed) = middle;
    }
    holders_undo(p, kept);
    (void)reach(&f, reached);
    return reached;
}
