/* What a MoE layer's step would take on a cluster, from a plan and its quotas: a model, not a
 * measurement. Whatever prints its figures calls them modelled.
 *
 * Source: the terms are those of Hecate (arXiv:2502.02581), Pro-Prophet (arXiv:2411.10003, section
 * 4) and FasterMoE: 4 exchanges and 3 computations of the fullest rank a step, and what of the
 * weights' way the dense part does not hide. Ours: rows are counted once per token and destination,
 * links inside and between nodes are apart, and weights are read once per computation. */
#ifndef TSR_PARALLEL_COST_MODEL_H
#define TSR_PARALLEL_COST_MODEL_H

#include "parallel/placement.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Rates are what is achieved, not what is printed on the box; links count one direction. */
typedef struct tsr_cluster {
    int ranks, node_ranks;
    double flops;             /* of a rank in products */
    double memory_bytes_s;    /* of a rank's own memory */
    double node_bytes_s;      /* of a rank to others of its node */
    double network_bytes_s;   /* of a node to others, all its interfaces together */
    double node_latency_s;    /* of an exchange in a node */
    double network_latency_s; /* of one between nodes */
    double plan_s;            /* to plan with exact counts, beyond ep, for 64 ranks, 256 experts */
} tsr_cluster;

/** The model's part that matters here. */
typedef struct tsr_moe_shape {
    int layers, experts, top_k;
    int hidden, width; /* D, F */
    int matrices;      /* of an expert: 2, or 3 with a gate */
    int64_t tokens;    /* of a rank in a step */
    int seq_len;
    bool skips_masked;   /* attention computes what is not masked only */
    bool rematerializes; /* copies are dropped after forward and come again for backward */
    bool sends_once;     /* a row goes once to a node, and once to a rank; else once per expert */
    int gradient_bytes;  /* of a parameter on its way home */
} tsr_moe_shape;

double tsr_expert_bytes(const tsr_moe_shape *shape); /* weights, 2 bytes each */

/** Forward of what is not MoE in a layer: attention with its projections. */
double tsr_dense_s(const tsr_cluster *cluster, const tsr_moe_shape *shape);

/** Experts whose weights and gradients a rank and a node can move under it, forward and backward:
 *  t for fssdp is the node's. */
void tsr_cost_budgets(const tsr_cluster *cluster, const tsr_moe_shape *shape, int *rank_budget_out,
                      int *node_budget_out);

/** For the planner: what a token, its row and an expert's weights cost on this cluster. */
tsr_plan_costs tsr_cost_for_plan(const tsr_cluster *cluster, const tsr_moe_shape *shape);

/** One layer, all times of a step on the slowest rank. */
typedef struct tsr_layer_cost {
    double dense_s;    /* forward and backward of what is not MoE */
    double compute_s;  /* experts, forward and backward */
    double exchange_s; /* dispatch and combine, forward and backward */
    double hidden_s;   /* weights out and gradients home */
    double exposed_s;  /* of that, what the dense part does not hide */
    double spill_s;    /* weights of the spill */
    double plan_s;
    double step_s;                       /* all but hidden_s */
    double node_bytes, network_bytes;    /* rows of one dispatch, all ranks together */
    double weight_bytes, weight_network; /* of one sparse all-gather: in all, between nodes */
} tsr_layer_cost;

typedef struct tsr_cost_model tsr_cost_model;

/** Errors: TSR_ERR_ARG for numbers that are not above 0, or ranks that do not fill nodes. */
TSR_NODISCARD tsr_status tsr_cost_model_create(const tsr_cluster *cluster,
                                               const tsr_moe_shape *shape, tsr_cost_model **out);
void tsr_cost_model_destroy(tsr_cost_model **model_p);

/** plans_exactly: the policy looks at exact counts. Quotas are those of plan. */
tsr_layer_cost tsr_cost_layer(tsr_cost_model *model, const tsr_plan *plan, const tsr_quotas *quotas,
                              bool plans_exactly);

/** Weights, gradients and optimizer state of a rank's experts, all layers, with room for `slots`
 *  copies: 16 bytes a parameter owned; copies' weights for all layers, or for two when they are
 *  rematerialized; copies' gradients for one. */
double tsr_cost_memory(const tsr_cluster *cluster, const tsr_moe_shape *shape, int slots);

#ifdef __cplusplus
}
#endif

#endif
