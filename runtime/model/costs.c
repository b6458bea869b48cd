#include "runtime/model.h"

#include <string.h>

static int64_t elements(const tsr_param *param)
{
    return param->rows * param->width;
}

/* Elements of one tensor that one token computes with. An untied embedding is only looked up. */
static int64_t active_elements(const tsr_model_config *config, const tsr_param *param)
{
    if (param->group == TSR_GROUP_EXPERT) {
        return elements(param) / config->num_experts * config->num_experts_per_tok;
    }
    if (!config->tie_word_embeddings && strcmp(param->name, "model.embed_tokens.weight") == 0) {
        return 0;
    }
    return elements(param);
}

int64_t tsr_model_parameters(const tsr_param_table *table)
{
    int64_t sum = 0;

    for (int i = 0; i < table->count; ++i) {
        sum += elements(&table->params[i]);
    }
    return sum;
}

int64_t tsr_model_active_parameters(const tsr_model_config *config, const tsr_param_table *table)
{
    int64_t sum = 0;

    for (int i = 0; i < table->count; ++i) {
        sum += active_elements(config, &table->params[i]);
    }
    return sum;
}

double tsr_model_train_flops_per_token(const tsr_model_config *config, const tsr_param_table *table,
                                       int64_t seq_len)
{
    int64_t matrices = 0;

    for (int i = 0; i < table->count; ++i) {
        if (table->params[i].dims > 1) {
            matrices += active_elements(config, &table->params[i]);
        }
    }
    /* Forward is one product, backward two. Scores and their use are a product each, with
     * (S + 1) / 2 keys a query on average. */
    const double keys = (double)(seq_len + 1) / 2.0;
    const double width = (double)(config->num_attention_heads * config->head_dim);

    return 3.0 *
           (2.0 * (double)matrices + (double)config->num_hidden_layers * 2.0 * 2.0 * keys * width);
}
