/* Placement: which ranks hold which experts of a layer, and how many tokens go to each of them.
 *
 * Pure functions of what all ranks know: equal on all ranks, without a message. The planner takes
 * its memory when it is made. Moving weights is the work of the sparse collectives, moving tokens
 * that of dispatch. "Tokens" are (token, chosen expert) pairs throughout: T tokens make T * K. */
#ifndef TSR_PARALLEL_PLACEMENT_H
#define TSR_PARALLEL_PLACEMENT_H

#include "collectives/collectives.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- what will the load be, and how much can be moved ---------------------------------------- */

typedef enum tsr_prediction {
    TSR_PREDICT_WINDOW = 0, /* mean of the last `window` steps */
    TSR_PREDICT_EMA         /* moving average that forgets with 2 / (window + 1) */
} tsr_prediction;

typedef struct tsr_load_history tsr_load_history;

/** Errors: TSR_ERR_ARG for sizes below 1. */
TSR_NODISCARD tsr_status tsr_load_history_create(int layers, int experts, tsr_prediction kind,
                                                 int window, tsr_load_history **out);
void tsr_load_history_destroy(tsr_load_history **history_p);

/** Take in a step's tokens [E] of one layer. */
void tsr_load_history_push(tsr_load_history *history, int layer, const int64_t *tokens);

/** Tokens [E] expected in the layer's next step; all zero before the first push. */
void tsr_load_history_predict(const tsr_load_history *history, int layer, int64_t *tokens_out);

/** The steps that a history has in full: tokens [steps, E], in any order. */
typedef struct tsr_load_past {
    const int64_t *tokens;
    int steps;
} tsr_load_past;

/** Those of a layer, at most `window`; none of a moving average. Borrowed until the next push. */
tsr_load_past tsr_load_history_past(const tsr_load_history *history, int layer);

/** All that a history knows, as numbers for a checkpoint: how many they are, and they. */
int64_t tsr_load_history_size(const tsr_load_history *history);
void tsr_load_history_export(const tsr_load_history *history, double *values_out);

/** Take over what one of the same sizes and kind gave. Errors: TSR_ERR_FORMAT for values that it
 *  cannot have given; the history stays as it was. */
TSR_NODISCARD tsr_status tsr_load_history_import(tsr_load_history *history, const double *values);

/**
 * How many experts' weights can come to a rank while it computes something else, in [0, experts].
 * Source: Hecate, arXiv:2502.02581, section 4: t = T_nonMoE * bw / expert bytes.
 */
int tsr_overlap_budget(double free_s, double bytes_per_s, double expert_bytes, int experts);

/* ---- the planner ----------------------------------------------------------------------------- */

typedef enum tsr_placement_policy {
    TSR_PLACEMENT_EP = 0, /* each expert at its owner */
    TSR_PLACEMENT_SHADOW, /* FasterMoE: the hottest experts everywhere, decided after the gate */
    TSR_PLACEMENT_SWAP,   /* SmartMoE: owners change places now and then, no copies */
    TSR_PLACEMENT_EPLB,   /* DeepSeek's EPLB: copies by load per copy, even shares */
    TSR_PLACEMENT_FSSDP,  /* Hecate: Algorithms 1 and 2 and its dispatch */
    TSR_PLACEMENT_QUOTA,  /* ours: predicted copies, exact shares, exact spill */
    TSR_PLACEMENT_POLICIES
} tsr_placement_policy;

/** Word of run files: "ep", "shadow", ... */
const char *tsr_placement_name(tsr_placement_policy policy);

/** Errors: TSR_ERR_ARG naming the valid words. */
TSR_NODISCARD tsr_status tsr_placement_find(const char *name, tsr_placement_policy *out);

/** Seconds; all zero: balance is all that counts, and copies cost nothing. */
typedef struct tsr_plan_costs {
    double token_s; /* one token through one expert, forward */
    double row_s;   /* one row less to send to another rank */
    double copy_s;  /* one expert's weights to a rank, with nothing to hide it */
    double trips;   /* of its weights in a step, gradients included, as many times the bytes */
} tsr_plan_costs;

typedef struct tsr_plan_options {
    tsr_placement_policy policy;
    int layers, ranks, experts;
    const int32_t *node; /* [P] node of each rank, ascending from 0 without gaps; copied */
    int slots;           /* m: room for copies on a rank */
    int spill_slots;     /* of them, kept for tsr_plan_spill() */
    int budget;          /* t: copies that come to a rank unnoticed */
    int node_budget;     /* experts that come to a node from others unnoticed (quota: more come
                            where the rows that need not leave the node are dearer) */
    double target;       /* max/mean load from which a spill is worth a look: >= 1 */
    int window;          /* past steps that tsr_plan_holdings() is shown, at most: >= 0 */
    bool calibrates;     /* fssdp: look again after the gate */
    double fill_tokens;  /* quota: copies that balance does not need are made of experts with more
                            than so many tokens on the ranks that would keep them; 0: of any */
    tsr_plan_costs costs;
} tsr_plan_options;

typedef struct tsr_planner tsr_planner;

/**
 * A planner for one expert group; its layers take turns.
 *
 * Errors: TSR_ERR_ARG for sizes below 1 (slots, budget: 0), spill_slots > slots, target < 1, or
 *         node that is not ascending.
 */
TSR_NODISCARD tsr_status tsr_planner_create(const tsr_plan_options *options, tsr_planner **out);
void tsr_planner_destroy(tsr_planner **planner_p);

/** Change t: what was planned stays as it is. budget >= 0. */
void tsr_planner_set_budget(tsr_planner *planner, int budget);

/** Holders of a layer's experts. Made once, written by the calls below. */
typedef struct tsr_plan {
    tsr_holding holding; /* P': every copy */
    tsr_holding added;   /* owners, and what the last tsr_plan_spill() added to holding */
    int64_t copies;      /* holders beyond the owners */
    int64_t copies_added;
    int32_t *memory; /* what the holdings point to */
} tsr_plan;

TSR_NODISCARD tsr_status tsr_plan_create(const tsr_planner *planner, tsr_plan *plan_out);
void tsr_plan_destroy(tsr_plan *plan);

/**
 * Before the gate: copies for the predicted load, at most min(t, m - spill_slots) a rank.
 *
 * quota also looks at past steps, to know how far loads stray from what is predicted; NULL or none:
 * it supposes that they may grow by a third.
 *
 * Shapes: owner [E], predicted [E] tokens, all ranks' together.
 * Errors: TSR_ERR_ARG for an owner, a load or a number of past steps out of range.
 */
TSR_NODISCARD tsr_status tsr_plan_holdings(tsr_planner *planner, const int32_t *owner,
                                           const int64_t *predicted, const tsr_load_past *past,
                                           tsr_plan *plan);

/** `tokens` of rank `source` go to the holder rank[at] of the plan's holding. */
typedef struct tsr_quota {
    int32_t source, at;
    int64_t tokens; /* > 0 */
} tsr_quota;

/** Where every rank's tokens go. Borrowed from the planner until its next call; a call of
 *  tsr_plan_spill() that adds nothing leaves it as it is. */
typedef struct tsr_quotas {
    const int64_t *begin;   /* [E+1]: those of expert e are quota[begin[e]] .. */
    const tsr_quota *quota; /* no pair (source, at) twice; those of one source in the order: its
                               own copy, its node, others */
    const int64_t *load;    /* [P] tokens that each rank computes */
    int64_t max_load, total;
} tsr_quotas;

/**
 * After the gate: share out the exact counts over the holders.
 *
 * quota: the largest load is the least possible one for these holders (a flow with its cut as the
 * proof), and tokens stay on their rank, else in their node, as far as that allows. Others: by
 * their own rules.
 *
 * Shapes: counts [P,E]: tokens that rank p has for expert e.
 * Errors: TSR_ERR_ARG for a count out of range, TSR_ERR_STATE for a plan without holders.
 */
TSR_NODISCARD tsr_status tsr_plan_quotas(tsr_planner *planner, const int64_t *counts,
                                         const tsr_plan *plan, tsr_quotas *quotas_out);

/**
 * After tsr_plan_quotas() of the same counts and plan: copies that nothing hides, into free slots.
 *
 * quota: as few as bring max/mean to the target, if their costs are less than what they save;
 * shadow: the hottest experts everywhere; fssdp: calibration, where asked for. Where copies were
 * added (plan->copies_added > 0), call tsr_plan_quotas() again.
 * Errors: TSR_ERR_STATE where the last call was not tsr_plan_quotas() of this plan.
 */
TSR_NODISCARD tsr_status tsr_plan_spill(tsr_planner *planner, const int64_t *counts,
                                        tsr_plan *plan);

/* ---- owners ---------------------------------------------------------------------------------- */

/**
 * Better owners for the loads of all layers. fssdp, quota: Hecate's Algorithm 2, hot owners spread
 * evenly; swap: pairs change places while the largest load falls; others: as they are.
 *
 * A rank keeps its number of experts: over all layers (fssdp, quota), or in each (swap).
 * Shapes: loads [L,E] tokens, owner [L,E], owner_out [L,E] (not owner).
 * Errors: TSR_ERR_ARG for an owner or a load out of range.
 */
TSR_NODISCARD tsr_status tsr_plan_owners(tsr_planner *planner, const int64_t *loads,
                                         const int32_t *owner, int32_t *owner_out);

/** Does a move pay? */
typedef struct tsr_move {
    int64_t experts;       /* that change their owner */
    int64_t largest;       /* most that one rank sends, or receives */
    double gain_s, cost_s; /* over the steps; once */
    bool pays;
} tsr_move;

/**
 * Weigh better owners for the next `steps` steps. Gain: what the layers' largest loads, after
 * copies and quotas, fall by if the loads [L,E] come evenly from all ranks, at three computations
 * and four rows a token. Cost: move_s for each expert that the busiest rank sends or receives. A
 * planner whose costs are all zero counts both in tokens instead of seconds.
 */
TSR_NODISCARD tsr_status tsr_plan_weigh(tsr_planner *planner, const int64_t *loads,
                                        const int32_t *owner, const int32_t *better, int steps,
                                        double move_s, tsr_move *move_out);

#ifdef __cplusplus
}
#endif

#endif
