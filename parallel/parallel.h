/* parallel: the mesh of ranks, the MoE layer, and the stage: the layers this rank runs.
 *
 * Pipelines get their place here; today a stage is the whole model. Optimizer and checkpoints are
 * siblings and stay out. */
#ifndef TSR_PARALLEL_H
#define TSR_PARALLEL_H

#include "collectives/collectives.h"
#include "parallel/cost_model.h"
#include "parallel/experts.h"
#include "parallel/loads.h"
#include "parallel/placement.h"
#include "parallel/topology.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Values of section [parallel]; 0 is filled in. */
typedef struct tsr_parallel_config {
    int64_t pp, dp, ep;
    int placement;   /* 0: ep, each expert where its owner is */
    int collectives; /* tsr_collectives_choice */
    int dispatch;    /* tsr_dispatch_choice */
    int64_t dispatch_chunks;
} tsr_parallel_config;

enum { TSR_DISPATCH_CHUNKS_MAX = 16 };

/** What moves gradients and weights between ranks. */
typedef enum tsr_collectives_choice {
    TSR_COLLECTIVES_AUTO = 0, /* nccl between GPUs, mpi between CPUs */
    TSR_COLLECTIVES_MPI,      /* device memory is staged through the host */
    TSR_COLLECTIVES_NCCL
} tsr_collectives_choice;

/** How tokens travel to the ranks of their experts. */
typedef enum tsr_dispatch_choice {
    TSR_DISPATCH_AUTO = 0,  /* two_stage where the expert group has a rail, else flat */
    TSR_DISPATCH_TWO_STAGE, /* once to each node, inside the node to the ranks */
    TSR_DISPATCH_FLAT       /* once to each rank */
} tsr_dispatch_choice;

tsr_option_table tsr_parallel_options(tsr_parallel_config *config);

/* ---- mesh ----------------------------------------------------------------------------------- */

/** Communicators over one set of ranks. */
typedef struct tsr_routes {
    tsr_comm *all;  /* all of them; along the planes where there are node and rail */
    tsr_comm *node; /* those on this node, in order; NULL unless nodes hold several ranks each */
    tsr_comm *rail; /* on every node the one at this rank's place, by node; NULL likewise */
} tsr_routes;

/** Some ranks of the world, in order of their position. */
typedef struct tsr_group {
    tsr_comm *flat;    /* all of them, each pair directly */
    tsr_routes host;   /* for host memory; host.all is flat where nothing goes along planes */
    tsr_routes device; /* for what the device holds: NCCL's, else host's (then it is staged) */
} tsr_group;

/**
 * This rank's coordinates, and the groups it belongs to.
 *
 * Positions number the ranks by node, then by place on the node; position = (pp_rank * dp +
 * dp_rank) * ep + ep_rank, so that expert groups fill nodes first. A rank's number in a group is
 * its place there by position; in world it is launch's. Zeroed is empty.
 */
typedef struct tsr_mesh {
    int pp, dp, ep;                /* sizes; pp * dp * ep = ranks */
    int pp_rank, dp_rank, ep_rank; /* coordinates */
    tsr_group world;               /* flat is borrowed */
    tsr_group dense;               /* holds the same dense parameters: dp * ep ranks */
    tsr_group expert;              /* holds one copy of all experts together: ep ranks */
    tsr_group replica;             /* holds the same experts: dp ranks; with ep = 1 it is dense */
    tsr_comm *copies;        /* the expert group's ranks once more, for copies of experts beside the
                                computation; NULL with placement ep */
    tsr_comm *copies_device; /* the same by NCCL, if that is used */
} tsr_mesh;

/**
 * Fill in sizes and coordinates, make the groups' communicators.
 *
 * A group whose nodes differ in ranks or planes stays flat, with one warning.
 * Collective: on world (borrowed), which outlives the mesh.
 * Errors: TSR_ERR_ARG when the sizes do not multiply to the ranks (the valid ones are named);
 *         TSR_ERR_UNSUPPORTED for pp > 1, by name; those of tsr_comm_split().
 */
TSR_NODISCARD tsr_status tsr_mesh_create(const tsr_parallel_config *config, tsr_comm *world,
                                         tsr_mesh *mesh_out);

/**
 * Let NCCL move what the device holds in all groups of several ranks but world.
 *
 * Collective: on world. device (borrowed) outlives the mesh.
 * Errors: those of tsr_comm_create_nccl().
 */
TSR_NODISCARD tsr_status tsr_mesh_use_nccl(tsr_mesh *mesh, tsr_device *device,
                                           const tsr_nccl_options *options);

/** Collective; where one communicator is dead all leak on purpose: peers are not there to agree. */
void tsr_mesh_destroy(tsr_mesh *mesh);

/** What moves copies of experts: by NCCL if that is used; NULL with placement ep. Borrowed. */
tsr_comm *tsr_mesh_copies(const tsr_mesh *mesh);

/** Ways of dispatch over a group; in_stages only where it has rails. Sizes and device are left to
 *  the caller. Communicators are borrowed. */
tsr_dispatch_options tsr_group_dispatch(const tsr_group *group, bool in_stages);

/** Sequences [begin, end) of a step's `global` that data-parallel rank `part` of `parts` takes. */
void tsr_batch_share(int64_t global, int parts, int part, int64_t *begin, int64_t *end);

/** What a pre-norm layer of routed experts (and shared ones), dropless, did in its last forward. */
typedef struct tsr_moe_stats {
    double balance_loss; /* sum over sequences of E * sum_e f P, without coefficient */
    double z_loss;       /* sum over tokens of logsumexp^2, without coefficient; 0 when that is 0 */
    const int64_t *counts; /* [E] assignments of the last forward; host, borrowed from the layer */
    int64_t computed;      /* (token, expert) pairs that this rank computed */
    int64_t copies;        /* of experts, on all ranks of the group */
    int64_t copy_bytes;    /* moved for them by all ranks of the group since the last call */
    double exposed_ms;     /* waited for copies since the last call */
} tsr_moe_stats;
/** spread: what the layers of a stage share when their experts are on several ranks (borrowed);
 *  NULL: all experts are here. With it forward and backward are collective on the expert group, and
 *  a rank without sequences takes part with batch = 0. */
typedef struct tsr_moe_spread tsr_moe_spread;
TSR_NODISCARD tsr_status tsr_moe_layer_create(const tsr_layer_spec *spec, tsr_moe_spread *spread,
                                              tsr_layer **out);
tsr_layer_bytes tsr_moe_layer_bytes(const tsr_layer_spec *spec, bool is_spread);
/** Host copies of the last forward's figures; waits for the stream. */
TSR_NODISCARD tsr_status tsr_moe_layer_stats(tsr_layer *layer, const tsr_pass *pass,
                                             tsr_moe_stats *stats_out);

typedef enum tsr_recompute {
    TSR_RECOMPUTE_NONE = 0,
    TSR_RECOMPUTE_BLOCK /* keep only the residual between blocks; run them again in backward */
} tsr_recompute;

typedef struct tsr_stage_options {
    const tsr_model_config *config;
    const tsr_param_table *table;
    tsr_device *device;
    tsr_dtype dtype;
    int64_t micro_batch, seq_len;
    tsr_recompute recompute;
    bool train;
    /* experts on several ranks; table is this rank's share of them: */
    int expert_ranks;         /* ep; 0 or 1: all are here, and the rest is not read */
    const tsr_group *experts; /* of those ranks; may be NULL for tsr_stage_bytes() */
    const int32_t *owner;     /* [L,E] which of them has each expert */
    tsr_dispatch_choice dispatch;
    int64_t dispatch_chunks; /* parts of a pass's tokens, whose rows travel while the experts work
                                on another part; their weight gradients are added up part by part,
                                in ascending order. 0 or 1: all at once */
    const double *room; /* [L] memory for token copies, over what even loads need, and a quarter
                           more; NULL, or below 1: 1. Borrowed */
    /* experts beside their owners: */
    tsr_placement_policy placement; /* ep: none, and the rest is not read */
    const tsr_experts_config *copies;
    int64_t shares;        /* dp * micro-batches: as many forwards share a step's tokens; 0: one */
    tsr_comm *copies_comm; /* over the expert group and for this alone; takes the device's memory */
} tsr_stage_options;

/** What a stage's MoE layers share; options->experts must be there.
 *  Errors: TSR_ERR_ARG for a dispatch that the group's nodes do not allow, or more than
 *          TSR_DISPATCH_CHUNKS_MAX chunks; TSR_ERR_NOMEM. */
TSR_NODISCARD tsr_status tsr_moe_spread_create(const tsr_stage_options *options,
                                               tsr_moe_spread **out);
void tsr_moe_spread_destroy(tsr_moe_spread **spread_p);
/** Ranks of the expert group; 1 for NULL. */
int tsr_moe_spread_ranks(const tsr_moe_spread *spread);

/** Sums over what a stage has run since they were last zeroed by the caller. */
typedef struct tsr_stage_sums {
    double loss;     /* over tokens, nats, cross-entropy alone */
    double aux_loss; /* over sequences: weighted balance and z losses, mean over MoE layers */
    int64_t tokens, sequences;
    double *counts; /* [L,E] assignments; caller's memory, may be NULL */
    double *layers; /* [L, TSR_LAYER_FIGURES]; likewise */
} tsr_stage_sums;

/** Figures of a layer in tsr_stage_sums. */
enum {
    TSR_LAYER_COMPUTED = 0, /* pairs of token and expert computed on this rank */
    TSR_LAYER_COPIES,       /* of experts beyond their owners, over micro-batches */
    TSR_LAYER_COPY_BYTES,   /* moved for them, out and home */
    TSR_LAYER_EXPOSED_MS,   /* waited for copies */
    TSR_LAYER_FIGURES
};

typedef struct tsr_stage tsr_stage;
TSR_NODISCARD tsr_status tsr_stage_create(const tsr_stage_options *options,
                                          const tsr_weights *weights, tsr_stage **out);
void tsr_stage_destroy(tsr_stage **stage_p);

/**
 * Measure how many copies of a layer's experts come to a rank under its attention, from the steps
 * so far and a trial transfer, and place by that from now on.
 *
 * Not a function of the run file: a run that does this repeats itself within rounding only.
 * Collective: on the expert group, blocking; equal on its ranks.
 * Errors:     TSR_ERR_STATE with placement ep or before the first step; those of the transport.
 */
TSR_NODISCARD tsr_status tsr_stage_measure_budget(tsr_stage *stage, int *budget_out);

/** Tell the stage a finished step's tokens [L,E] of all ranks: placement goes by them. */
void tsr_stage_observe(tsr_stage *stage, const double *counts);

/** What it has been told; NULL where placement goes by nothing. Borrowed: valid until destroy. */
tsr_load_history *tsr_stage_history(tsr_stage *stage);

/**
 * Owners [L,E] that are better for the loads seen so far, if experts have any, and whether it pays
 * to move to them for `steps` steps: gain and cost in tokens (see tsr_plan_weigh()), cost being
 * move_tokens for each expert that the busiest rank sends or receives. Pure.
 *
 * Errors: TSR_ERR_STATE for a stage without history.
 */
TSR_NODISCARD tsr_status tsr_stage_better_owners(tsr_stage *stage, int steps, double move_tokens,
                                                 int32_t *owner_out, tsr_move *move_out);

/**
 * Work with other owners from now on: those behind options->owner, table and weights have changed
 * where they are. Between steps. Local.
 */
TSR_NODISCARD tsr_status tsr_stage_deal(tsr_stage *stage);

/**
 * Add bias to the logits of all gates from now on, so that a benchmark can say which experts the
 * tokens go to; NULL: no more.
 *
 * Shapes: [L, micro_batch * seq_len, E] device memory, borrowed; the same for each micro-batch.
 */
void tsr_stage_bias_gates(tsr_stage *stage, const float *bias);

/**
 * Fit memory for token copies to options->room as it is now. Between steps.
 *
 * Where more comes in a pass, memory grows by then; r times the rows of even loads need at most
 * r times their memory. Local. Errors: TSR_ERR_NOMEM.
 */
TSR_NODISCARD tsr_status tsr_stage_make_room(tsr_stage *stage);

/** Has a pass since then needed more than was made room for? Local. */
bool tsr_stage_has_outgrown(const tsr_stage *stage);

/** The most that this rank has needed in each layer [L] since the last call, in options->room's
 *  terms; 0 where nothing came. */
void tsr_stage_met(tsr_stage *stage, double *ratios_out);

/** Device bytes of activations and scratch such a stage takes; nothing is allocated. What grows
 *  with the rows that come to a rank is counted for options->room. */
TSR_NODISCARD tsr_status tsr_stage_bytes(const tsr_stage_options *options, size_t *bytes_out);
/** Likewise of its slots for copies of experts. */
void tsr_stage_copies_bytes(const tsr_stage_options *options, size_t *weights_out,
                            size_t *gradients_out);

/**
 * Forward and backward of one micro-batch: gradients of
 *   sum(token losses) * loss_scale + sum(sequence aux losses) * sequence_scale
 * are written to the weights' gradients (accumulate: added).
 *
 * Shapes: tokens [batch, seq_len + 1] host memory; batch in [1, micro_batch], or 0 to take part in
 *         the expert group's exchange without sequences (accumulate only).
 * Collective: on the expert group, if there is one.
 * Errors: TSR_ERR_ARG, TSR_ERR_DEVICE. A loss that is not finite is no error: it shows in sums.
 */
TSR_NODISCARD tsr_status tsr_stage_train(tsr_stage *stage, const int32_t *tokens, int64_t batch,
                                         bool accumulate, float loss_scale, float sequence_scale,
                                         tsr_stage_sums *sums);

/** Forward only, adding to sums. Shapes as above. */
TSR_NODISCARD tsr_status tsr_stage_evaluate(tsr_stage *stage, const int32_t *tokens, int64_t batch,
                                            tsr_stage_sums *sums);

/** For generation: room for max_len positions of one sequence. */
TSR_NODISCARD tsr_status tsr_stage_cache_create(tsr_stage *stage, int64_t max_len,
                                                tsr_kv_cache *out);
void tsr_stage_cache_destroy(tsr_stage *stage, tsr_kv_cache *cache);

/**
 * Append `count` tokens of one sequence (count <= micro_batch * seq_len, cache room checked) and
 * give the logits [V] (host memory) that follow the last of them.
 */
TSR_NODISCARD tsr_status tsr_stage_next_logits(tsr_stage *stage, tsr_kv_cache *cache,
                                               const int32_t *tokens, int64_t count,
                                               float *logits_out);

#ifdef __cplusplus
}
#endif

#endif
