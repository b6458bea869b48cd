#include "runtime/model.h"

#define AT(field) offsetof(tsr_model_config, field)

/* Upper limits keep every product of dimensions far below 2^63. */
static const tsr_option options[] = {
    {"model", "family", TSR_OPTION_CHOICE, "mixtral", 0, 0, "mixtral", NULL,
     "what the layers compute and how parameters are named", AT(family)},
    {"model", "vocab_size", TSR_OPTION_INT, NULL, 2, 1 << 24, NULL, "tokens",
     "size of the vocabulary", AT(vocab_size)},
    {"model", "hidden_size", TSR_OPTION_INT, NULL, 1, 1 << 16, NULL, NULL,
     "width of the residual stream", AT(hidden_size)},
    {"model", "num_hidden_layers", TSR_OPTION_INT, NULL, 1, 1 << 10, NULL, "layers",
     "transformer layers", AT(num_hidden_layers)},
    {"model", "num_attention_heads", TSR_OPTION_INT, NULL, 1, 1 << 12, NULL, "heads", "query heads",
     AT(num_attention_heads)},
    {"model", "num_key_value_heads", TSR_OPTION_INT, "0", 0, 1 << 12, NULL, "heads",
     "key-value heads; 0: as many as query heads", AT(num_key_value_heads)},
    {"model", "head_dim", TSR_OPTION_INT, "0", 0, TSR_HEAD_DIM_MAX, NULL, NULL,
     "width of a head; 0: hidden_size / num_attention_heads", AT(head_dim)},
    {"model", "intermediate_size", TSR_OPTION_INT, "0", 0, 1 << 18, NULL, NULL,
     "width of dense feed-forward layers", AT(intermediate_size)},
    {"model", "moe_intermediate_size", TSR_OPTION_INT, NULL, 1, 1 << 18, NULL, NULL,
     "width of an expert", AT(moe_intermediate_size)},
    {"model", "num_experts", TSR_OPTION_INT, NULL, 1, TSR_EXPERTS_MAX, NULL, "experts",
     "routed experts a layer", AT(num_experts)},
    {"model", "num_experts_per_tok", TSR_OPTION_INT, "2", 1, TSR_TOP_K_MAX, NULL, "experts",
     "routed experts each token passes", AT(num_experts_per_tok)},
    {"model", "n_group", TSR_OPTION_INT, "1", 1, TSR_EXPERTS_MAX, NULL, "groups",
     "groups of neighbouring experts that a token's choice is limited to some of", AT(n_group)},
    {"model", "topk_group", TSR_OPTION_INT, "1", 1, TSR_EXPERTS_MAX, NULL, "groups",
     "groups that a token's experts may lie in, the best of n_group", AT(topk_group)},
    {"model", "n_shared_experts", TSR_OPTION_INT, "0", 0, 1 << 10, NULL, "experts",
     "experts every token passes", AT(n_shared_experts)},
    {"model", "first_k_dense_replace", TSR_OPTION_INT, "0", 0, 1 << 10, NULL, "layers",
     "the first k layers have one dense feed-forward instead of experts",
     AT(first_k_dense_replace)},
    {"model", "rms_norm_eps", TSR_OPTION_REAL, "1e-5", 1e-12, 1e-1, NULL, NULL,
     "added to the mean square inside the root", AT(rms_norm_eps)},
    {"model", "rope_theta", TSR_OPTION_REAL, "1e4", 1, 1e12, NULL, NULL,
     "base of the rotary frequencies", AT(rope_theta)},
    {"model", "initializer_range", TSR_OPTION_REAL, "0.02", 1e-8, 10, NULL, NULL,
     "standard deviation of initial weights", AT(initializer_range)},
    {"model", "tie_word_embeddings", TSR_OPTION_BOOL, "false", 0, 0, NULL, NULL,
     "the head uses the embedding's table", AT(tie_word_embeddings)},
    {"model", "scoring_func", TSR_OPTION_CHOICE, "softmax", 0, 0, "softmax sigmoid", NULL,
     "router scores from logits", AT(scoring_func)},
    {"model", "norm_topk_prob", TSR_OPTION_BOOL, "true", 0, 0, NULL, NULL,
     "divide the chosen experts' weights by their sum", AT(norm_topk_prob)},
    {"model", "routed_scaling_factor", TSR_OPTION_REAL, "1", 1e-6, 1e6, NULL, NULL,
     "factor of the chosen experts' weights", AT(routed_scaling_factor)},
    {"model", "router_aux_loss", TSR_OPTION_CHOICE, "switch", 0, 0, "switch gshard", NULL,
     "kind of balancing loss", AT(router_aux_loss)},
    {"model", "router_aux_loss_coef", TSR_OPTION_REAL, "0", 0, 1e3, NULL, NULL,
     "weight of the balancing loss; 0: off", AT(router_aux_loss_coef)},
    {"model", "router_z_loss_coef", TSR_OPTION_REAL, "0", 0, 1e3, NULL, NULL,
     "weight of the router's z-loss; 0: off", AT(router_z_loss_coef)},
    {"model", "router_bias_update_rate", TSR_OPTION_REAL, "0", 0, 1, NULL, NULL,
     "step of the router's selection bias; 0: no bias", AT(router_bias_update_rate)},
};

tsr_option_table tsr_model_options(tsr_model_config *config)
{
    return (tsr_option_table){options, (int)(sizeof options / sizeof options[0]), config};
}

static void check_heads(tsr_model_config *config, tsr_config_errors *errors)
{
    const int64_t heads = config->num_attention_heads;

    if (config->num_key_value_heads == 0) {
        config->num_key_value_heads = heads;
    }
    if (heads > 0 && heads % config->num_key_value_heads != 0) {
        tsr_config_error(errors,
                         "[model] num_attention_heads = %lld, must be a multiple of "
                         "num_key_value_heads = %lld",
                         (long long)heads, (long long)config->num_key_value_heads);
    }
    if (config->head_dim == 0 && heads > 0) {
        if (config->hidden_size % heads != 0) {
            tsr_config_error(errors,
                             "[model] hidden_size = %lld is no multiple of num_attention_heads = "
                             "%lld; set head_dim",
                             (long long)config->hidden_size, (long long)heads);
            return;
        }
        config->head_dim = config->hidden_size / heads;
    }
    if (config->head_dim % 2 != 0) {
        tsr_config_error(errors, "[model] head_dim = %lld, must be even for rotary positions",
                         (long long)config->head_dim);
    }
}

static void check_groups(tsr_model_config *config, tsr_config_errors *errors)
{
    config->n_group = config->n_group == 0 ? 1 : config->n_group;
    config->topk_group = config->topk_group == 0 ? 1 : config->topk_group;
    const int64_t experts = config->num_experts, groups = config->n_group;

    if (experts % groups != 0) {
        tsr_config_error(errors, "[model] n_group = %lld, must divide num_experts = %lld",
                         (long long)groups, (long long)experts);
        return;
    }
    if (config->topk_group > groups) {
        tsr_config_error(errors, "[model] topk_group = %lld, at most n_group = %lld",
                         (long long)config->topk_group, (long long)groups);
        return;
    }
    const int64_t kept = experts / groups * config->topk_group;
    if (config->num_experts_per_tok <= experts && config->num_experts_per_tok > kept) {
        tsr_config_error(errors,
                         "[model] num_experts_per_tok = %lld, at most the %lld experts of "
                         "topk_group = %lld groups",
                         (long long)config->num_experts_per_tok, (long long)kept,
                         (long long)config->topk_group);
    }
}

void tsr_model_config_check(tsr_model_config *config, tsr_config_errors *errors)
{
    check_heads(config, errors);
    check_groups(config, errors);
    if (config->num_experts_per_tok > config->num_experts) {
        tsr_config_error(errors, "[model] num_experts_per_tok = %lld, at most num_experts = %lld",
                         (long long)config->num_experts_per_tok, (long long)config->num_experts);
    }
    if (config->first_k_dense_replace > config->num_hidden_layers) {
        tsr_config_error(
            errors, "[model] first_k_dense_replace = %lld, at most num_hidden_layers = %lld",
            (long long)config->first_k_dense_replace, (long long)config->num_hidden_layers);
    }
    if (config->first_k_dense_replace > 0 && config->intermediate_size == 0) {
        tsr_config_error(errors, "[model] first_k_dense_replace = %lld needs intermediate_size > 0",
                         (long long)config->first_k_dense_replace);
    }
}
