/* `tessera bench imbalance`: one policy under one load, through the cost model. */
#ifndef TSR_LAUNCH_IMBALANCE_H
#define TSR_LAUNCH_IMBALANCE_H

#include "parallel/parallel.h"

/** Clusters and models by name. */
typedef struct imbalance_cluster {
    const char *name, *about;
    tsr_cluster cluster; /* ranks: one node */
} imbalance_cluster;
typedef struct imbalance_shape {
    const char *name, *about;
    tsr_moe_shape shape;
} imbalance_shape;

/** Errors: TSR_ERR_ARG naming those there are. */
TSR_NODISCARD tsr_status imbalance_find_cluster(const char *name, const imbalance_cluster **out);
TSR_NODISCARD tsr_status imbalance_find_shape(const char *name, const imbalance_shape **out);

/** Set those that a word names: one policy, or "all". Errors: TSR_ERR_ARG. */
TSR_NODISCARD tsr_status imbalance_find_policies(const char *word,
                                                 bool is_wanted[TSR_PLACEMENT_POLICIES]);

typedef struct imbalance_case {
    tsr_cluster cluster; /* ranks: the expert group */
    tsr_moe_shape shape;
    tsr_load_options load;
    int slots; /* room for copies on a rank */
} imbalance_case;

/** Means over layers and steps of a policy, times of one layer. */
typedef struct imbalance_result {
    double ratio;                  /* max/mean of the ranks' loads */
    double worst_ratio;            /* the largest of them */
    double copies, spilled, moved; /* copies of a layer, of them spilled; experts re-sharded, all */
    double step_s, hidden_s, exposed_s, exchange_s, compute_s, dense_s;
    double node_bytes, network_bytes; /* of one dispatch, by rank */
    double weight_bytes;              /* of one sparse all-gather, by rank */
    double memory_bytes;              /* of the experts, by rank */
} imbalance_result;

/** Errors: TSR_ERR_ARG and those of the parts. */
TSR_NODISCARD tsr_status imbalance_run(const imbalance_case *c, tsr_placement_policy policy,
                                       imbalance_result *out);

#endif
