/* The model's description: configuration, parameter table, flat weights, costs.
 *
 * The parameter table lists every tensor once: name, shape, group, init rule, place. Sharding,
 * optimizer, checkpoint, export and the memory estimate iterate over it and over nothing else.
 * No computation here: that is runtime/layers.h. */
#ifndef TSR_RUNTIME_MODEL_H
#define TSR_RUNTIME_MODEL_H

#include "runtime/config.h"
#include "runtime/device.h"
#include "runtime/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/** Values of section [model]; names are those of Hugging Face configs. */
typedef struct tsr_model_config {
    int family; /* 0: mixtral */
    int64_t vocab_size, hidden_size, num_hidden_layers;
    int64_t num_attention_heads, num_key_value_heads; /* 0: as many as heads */
    int64_t head_dim;                                 /* 0: hidden_size / heads */
    int64_t intermediate_size;                        /* width of dense feed-forward layers */
    int64_t moe_intermediate_size;                    /* width of an expert, F */
    int64_t num_experts, num_experts_per_tok;
    int64_t n_group, topk_group;   /* experts of a token lie in topk_group of n_group groups */
    int64_t n_shared_experts;      /* experts every token passes, one feed-forward of n * F */
    int64_t first_k_dense_replace; /* the first k layers are dense */
    double rms_norm_eps, rope_theta, initializer_range;
    bool tie_word_embeddings;
    int scoring_func;    /* tsr_gate_kind: softmax, sigmoid */
    bool norm_topk_prob; /* divide the chosen weights by their sum */
    double routed_scaling_factor;
    int router_aux_loss; /* tsr_aux_kind: switch, gshard */
    double router_aux_loss_coef, router_z_loss_coef;
    double router_bias_update_rate; /* > 0: selection bias b_e += rate * sign(mean - load) */
} tsr_model_config;

/** Option table of section [model], filling *config. */
tsr_option_table tsr_model_options(tsr_model_config *config);

/** Fill in what 0 stands for and add a line per contradiction to errors. */
void tsr_model_config_check(tsr_model_config *config, tsr_config_errors *errors);

/** Has this layer one dense feed-forward instead of routed experts? */
static inline bool tsr_model_layer_is_dense(const tsr_model_config *config, int64_t layer)
{
    return layer < config->first_k_dense_replace;
}

/** Layers with routed experts. */
static inline int64_t tsr_model_moe_layers(const tsr_model_config *config)
{
    const int64_t moe = config->num_hidden_layers - config->first_k_dense_replace;

    return moe > 0 ? moe : 0;
}

/* ---- parameter table ------------------------------------------------------------------------ */

/** Parameters that share a type, a flat buffer and a data-parallel group. */
typedef enum tsr_param_group {
    TSR_GROUP_FLOAT = 0, /* norms and gates: computed with in f32 always */
    TSR_GROUP_DENSE,     /* attention, embeddings, dense and shared feed-forwards */
    TSR_GROUP_EXPERT,    /* [E, ...] */
    TSR_GROUPS
} tsr_param_group;

typedef struct tsr_param {
    char name[96]; /* of Hugging Face's state_dict, experts stacked */
    int dims;
    int64_t shape[3];
    int64_t rows, width; /* the tensor as a matrix; shards are cut between rows; [d] is one row */
    tsr_param_group group;
    int layer;             /* -1: outside the layers */
    int64_t offset;        /* of its first element in its group's flat buffer */
    double init_std;       /* normal(0, std); 0: all ones */
    bool has_decay;        /* weight decay applies */
    const int32_t *expert; /* [shape[0]] which of the whole tensor's experts these are, ascending;
                              NULL: the tensor is whole. Borrowed from the table */
} tsr_param;

typedef struct tsr_param_table {
    tsr_param *params; /* group by group is not promised; offsets within a group ascend */
    int count;
    int64_t group_elements[TSR_GROUPS]; /* length of each flat buffer, padding included */
    int32_t *experts;                   /* what params' expert point to; own block */
} tsr_param_table;

/**
 * Make the table of a checked configuration. q, k, v of a layer lie one after another without a
 * gap, gate_proj and up_proj of a dense feed-forward too, so that each triple or pair is one
 * matrix. With tied embeddings there is no lm_head.weight.
 */
TSR_NODISCARD tsr_status tsr_param_table_create(const tsr_model_config *config,
                                                tsr_param_table *table_out);
void tsr_param_table_destroy(tsr_param_table *table);

/** Deal E experts of each of L layers out to parts, in order and as evenly as E allows: 6 experts
 *  on 4 parts are 2, 2, 1, 1. Shapes: owner_out [L,E]. */
void tsr_expert_owners_even(int64_t layers, int64_t experts, int parts, int32_t *owner_out);

/**
 * The table of one part of the experts: same names, same indices, own offsets; expert tensors hold
 * those that owner gives to `part`, ascending, and may be empty (shape[0] = rows = 0).
 *
 * Shapes: owner [L,E], any deal; E is that of whole's expert tensors.
 * Owns:   the caller gets a table of its own; nothing of whole is kept.
 */
TSR_NODISCARD tsr_status tsr_param_table_share(const tsr_param_table *whole, const int32_t *owner,
                                               int part, tsr_param_table *local_out);

/** Row in the whole tensor of row `row` of param. */
int64_t tsr_param_global_row(const tsr_param *param, int64_t row);
/** End of the run of rows from `row` on that follow one another in the whole tensor too. */
int64_t tsr_param_run_end(const tsr_param *param, int64_t row);

/** Where a tensor may begin in its group's flat buffer: at elements of a cache line of f32. */
static inline int64_t tsr_param_align(int64_t elements)
{
    return (elements + 15) / 16 * 16;
}

/** Index of a name, -1 if there is none. */
int tsr_param_find(const tsr_param_table *table, const char *name);
/** As above for "model.layers.<layer>.<name>". */
int tsr_param_find_in_layer(const tsr_param_table *table, int layer, const char *name);

/**
 * First element of shard `part` of `parts` in a group's flat buffer; part = parts gives the end.
 * Cuts lie at the row boundary nearest below an even cut, so shards are in order, cover all and
 * differ by less than one row from even; some may be empty.
 */
int64_t tsr_shard_cut(const tsr_param_table *table, tsr_param_group group, int parts, int part);

/** Rows [*begin, *end) of param that lie in elements [cut_begin, cut_end) of its group. */
void tsr_param_rows_between(const tsr_param *param, int64_t cut_begin, int64_t cut_end,
                            int64_t *begin, int64_t *end);

/* ---- weights on a device -------------------------------------------------------------------- */

/** Working copies and gradients of a whole model, one flat buffer each a group. */
typedef struct tsr_weights {
    const tsr_param_table *table; /* borrowed */
    tsr_device *device;           /* borrowed */
    tsr_dtype dtype[TSR_GROUPS];  /* of value; f32 for TSR_GROUP_FLOAT */
    void *value[TSR_GROUPS];      /* device memory */
    float *gradient[TSR_GROUPS];  /* device memory; NULL where only inference is wanted */
    float *router_bias;           /* [L,E] device memory, zero at first; NULL without MoE layers */
    int64_t layers, experts;
} tsr_weights;

/** Take the memory; values are zero. compute is the type of the dense and expert groups. The table
 *  may be a share: layers, experts and the router bias are those of the whole model still. */
TSR_NODISCARD tsr_status tsr_weights_create(const tsr_model_config *config,
                                            const tsr_param_table *table, tsr_device *device,
                                            tsr_dtype compute, bool with_gradients,
                                            tsr_weights *out);
void tsr_weights_destroy(tsr_weights *weights);

/** Working copy and gradient of parameter `index`; device memory, valid until destroy. */
void *tsr_weights_value(const tsr_weights *weights, int index);
float *tsr_weights_gradient(const tsr_weights *weights, int index);

/** Initial values of elements [first, first + count) of one whole parameter: a function of seed,
 *  name and the element's index only. Host memory. */
void tsr_param_init(const tsr_param *param, uint64_t seed, int64_t first, int64_t count,
                    float *out);

/* ---- costs ---------------------------------------------------------------------------------- */

/** Parameters in all, and those one token uses (head included, embedding look-up not); of a whole
 *  table. */
int64_t tsr_model_parameters(const tsr_param_table *table);
int64_t tsr_model_active_parameters(const tsr_model_config *config, const tsr_param_table *table);

/** Multiply-add work of forward and backward for one token, causal attention counted as half. */
double tsr_model_train_flops_per_token(const tsr_model_config *config, const tsr_param_table *table,
                                       int64_t seq_len);

#ifdef __cplusplus
}
#endif

#endif
