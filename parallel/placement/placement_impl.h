/* Inside of the planner: holders being chosen, the flow, and the table of policies. */
#ifndef TSR_PARALLEL_PLACEMENT_IMPL_H
#define TSR_PARALLEL_PLACEMENT_IMPL_H

#include "parallel/placement.h"

/** What a policy does; entries without a fallback are required. */
typedef struct placement_ops {
    const char *name;
    /* predicted loads, p->past -> copies, by holders_add(); NULL: none */
    void (*holdings)(tsr_planner *p, const int64_t *predicted);
    /* tokens of each holder, p->amount, from p->expert_load and counts */
    void (*amounts)(tsr_planner *p, const int64_t *counts, const tsr_holding *holding);
    /* more copies for exact loads, by holders_add(); leaves p->load as it is; NULL: none */
    void (*spill)(tsr_planner *p, const int64_t *counts, const tsr_holding *holding);
    /* better owners; NULL: they stay */
    void (*owners)(tsr_planner *p, const int64_t *loads, const int32_t *owner, int32_t *owner_out);
} placement_ops;

extern const placement_ops placement_ep, placement_shadow, placement_swap, placement_eplb,
    placement_fssdp, placement_quota;

/** For sorting: by key, then by id. */
typedef struct plan_item {
    int64_t key;
    int32_t id;
} plan_item;

/** A piece of an expert's load on a rank. */
typedef struct plan_part {
    int64_t tokens;
    int32_t expert, rank;
} plan_part;

struct tsr_planner {
    tsr_plan_options options; /* node points to the own copy */
    const placement_ops *ops;
    void *memory; /* what all pointers below point into */
    int nodes;
    int hidden_slots; /* copies a rank may get before the gate: min(m - spill_slots, t) */
    int64_t capacity; /* holders of all experts, at most */
    int32_t *node;
    int32_t *node_begin; /* [N+1] */

    /* holders being chosen */
    int32_t *owner;        /* [E] */
    uint8_t *holds;        /* [E,P] 0: no, 1: yes, 2: since holders_from...() */
    int32_t *copies;       /* [P] copies on each rank, without what it owns */
    int32_t *node_holders; /* [E,N] holders of an expert in a node */
    int32_t *imports;      /* [N] experts that a node holds and does not own */
    plan_part *added;      /* [capacity] what holders_add() did, in order */
    int64_t added_count;
    int32_t *node_free;                /* [N] slots */
    int32_t *node_holding, *node_seen; /* [N] holders of the expert at hand, in all and so far */

    /* what is known of the load; the result of the last quotas */
    tsr_load_past past;   /* borrowed while holdings are chosen */
    int64_t *alone;       /* [P, window] in past steps, of experts that only their owner holds */
    int64_t *expert_load; /* [E] */
    int64_t *load;        /* [P] */
    int64_t *amount;      /* [capacity] tokens of each holder */
    int64_t total, max_load;
    const tsr_plan *quoted; /* whose quotas these are; NULL: none */
    tsr_plan trial;         /* for looking at other holders */
    int64_t *even_counts;   /* [P,E] */

    /* owners */
    int64_t *layer_key;   /* [L] */
    int32_t *layer_order; /* [L] */

    /* the flow */
    int64_t *node_count;    /* [N,E] tokens that a node's ranks have for an expert */
    int64_t *fixed_load;    /* [P] of experts with one holder */
    int64_t *unplaced;      /* [E] */
    int32_t *shared;        /* [E] experts with several holders, fewest first */
    int32_t *entry_expert;  /* [capacity] */
    int32_t *rank_begin;    /* [P+1] entries of shared experts by rank */
    int32_t *rank_entry;    /* [capacity] */
    int32_t *rank_parent;   /* [P] entry by which the search came, -1: not yet */
    int32_t *expert_parent; /* [E] likewise; -2: where it began */
    int32_t *queue;         /* [E + P] experts, then E + ranks */

    /* scratch */
    plan_item *items, *items_scratch; /* [max(capacity, P, L)] */
    int32_t *order;                   /* likewise */
    plan_part *parts, *parts_sorted;  /* [capacity] */
    int64_t *trial_load;              /* [P] */
    int64_t *left;                    /* [P] */
    int64_t *room;                    /* [capacity] */
    int32_t *at;                      /* [P] */

    int64_t *quota_begin; /* [E+1] */
    tsr_quota *quota;     /* [E*P + capacity] */
};

/** Sort p->items[0 .. count) by key, equal ones by place. */
void plan_sort(tsr_planner *p, int count);

/** Ids 0 .. count - 1 by falling keys[id], equal ones by id, into p->order. */
void plan_order(tsr_planner *p, const int64_t *keys, int count);

/** Seconds of a step that each token less on the fullest rank saves: compute three times, rows
 *  four times. */
double plan_token_s(const tsr_planner *p);

/** Is it worth the additions, with nothing to hide their way, to lower the largest load so? */
bool plan_pays(tsr_planner *p, int64_t saved);

/** Is an owner and a load of (layer, expert) number i in range? */
TSR_NODISCARD tsr_status plan_check(const tsr_planner *p, int64_t i, int32_t owner, int64_t load);

/* holders.c: the set of holders that a plan is made of */
void holders_from_owners(tsr_planner *p, const int32_t *owner);
void holders_from(tsr_planner *p, const tsr_holding *holding);
static inline bool holders_has(const tsr_planner *p, int expert, int rank)
{
    return p->holds[(int64_t)expert * p->options.ranks + rank] != 0;
}
static inline int32_t *holders_in_node(const tsr_planner *p, int expert, int node)
{
    return &p->node_holders[(int64_t)expert * p->nodes + node];
}
/** May the node of rank take one more expert from other nodes, if this is one? */
static inline bool holders_may_import(const tsr_planner *p, int expert, int rank)
{
    return *holders_in_node(p, expert, p->node[rank]) > 0 ||
           p->imports[p->node[rank]] < p->options.node_budget;
}
void holders_add(tsr_planner *p, int expert, int rank);
/** Undo the last additions, down to count of them. */
void holders_undo(tsr_planner *p, int64_t count);
/** The holders into plan->holding. */
void holders_write(const tsr_planner *p, tsr_plan *plan);
/** Owners and the additions into plan->added. */
void holders_write_added(const tsr_planner *p, tsr_plan *plan);

/* rules.c: shares by a rule */
/** Hecate: to the own copy, else evenly to those in the node, else evenly to all. */
void amounts_nearest(tsr_planner *p, const int64_t *counts, const tsr_holding *holding);
/** The largest load that the holders being chosen would give so; p->load stays. */
int64_t try_nearest(tsr_planner *p, const int64_t *counts);
/** Evenly to all holders. */
void amounts_even(tsr_planner *p, const int64_t *counts, const tsr_holding *holding);

/* level.c: shares with the least possible largest load */
void amounts_level(tsr_planner *p, const int64_t *counts, const tsr_holding *holding);

/** Loads up to the level wherever that can be: what cannot is left with owners, above it. Sets
 *  p->load as well. */
void amounts_excess(tsr_planner *p, const int64_t *counts, const tsr_holding *holding,
                    int64_t level);

/* relief.c */
/** Whom to prefer among ranks that have room enough. */
typedef enum relief_choice {
    RELIEF_SPREADS,   /* nodes with few holders: their tokens stay there; imports are limited */
    RELIEF_STAYS_NEAR /* the node itself: nothing hides the weights' way */
} relief_choice;

/** Copies that bring the ranks' loads, p->load, made of p->parts, down to at most goal, else as low
 *  as free slots allow: a rank ends with at most `slots` copies. Gives the largest load then;
 *  p->trial_load are all of them. */
int64_t relieve(tsr_planner *p, int part_count, int64_t goal, int slots, relief_choice choice);

/* owners.c */
/** Hecate's Algorithm 2. */
void owners_heterogeneous(tsr_planner *p, const int64_t *loads, const int32_t *owner,
                          int32_t *owner_out);
/** SmartMoE's swaps. */
void owners_swapped(tsr_planner *p, const int64_t *loads, const int32_t *owner, int32_t *owner_out);

/* shares.c: amounts of holders -> p->quota, p->quota_begin */
void quotas_write(tsr_planner *p, const int64_t *counts, const tsr_holding *holding);
/** Add up loads [P] from p->amount; gives the largest. */
int64_t loads_from_amounts(const tsr_planner *p, const tsr_holding *holding, int64_t *load);

#endif
