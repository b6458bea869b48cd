#include "runtime/model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { PARAMS_PER_LAYER = 12 }; /* at most: 2 norms, 4 of attention, 3 routed, 3 shared */

/* Where a tensor starts: aligned, or right behind the one before it in its group. */
typedef enum placing { ALIGNED, JOINED } placing;

static void add(tsr_param_table *table, int layer, const char *name, placing where,
                const tsr_param *model)
{
    tsr_param *param = &table->params[table->count++];
    int64_t *end = &table->group_elements[model->group];

    *param = *model;
    if (layer < 0) {
        (void)snprintf(param->name, sizeof param->name, "%s", name);
    } else {
        (void)snprintf(param->name, sizeof param->name, "model.layers.%d.%s", layer, name);
    }
    param->layer = layer;
    param->width = param->shape[param->dims - 1];
    param->rows = 1;
    for (int i = 0; i + 1 < param->dims; ++i) {
        param->rows *= param->shape[i];
    }
    if (where == ALIGNED) {
        *end = tsr_param_align(*end);
    }
    param->offset = *end;
    *end += param->rows * param->width;
}

static void add_norm(tsr_param_table *table, int layer, const char *name, int64_t width)
{
    add(table, layer, name, ALIGNED,
        &(tsr_param){.dims = 1, .shape = {width}, .group = TSR_GROUP_FLOAT, .init_std = 0.0});
}

static void add_matrix(tsr_param_table *table, int layer, const char *name, placing where,
                       tsr_param_group group, int64_t out, int64_t in, double std)
{
    add(table, layer, name, where,
        &(tsr_param){
            .dims = 2, .shape = {out, in}, .group = group, .init_std = std, .has_decay = true});
}

static void add_experts(tsr_param_table *table, int layer, const char *name, int64_t experts,
                        int64_t out, int64_t in, double std)
{
    add(table, layer, name, ALIGNED,
        &(tsr_param){.dims = 3,
                     .shape = {experts, out, in},
                     .group = TSR_GROUP_EXPERT,
                     .init_std = std,
                     .has_decay = true});
}

static void add_feed_forward(tsr_param_table *table, int layer, const char *prefix, int64_t width,
                             int64_t hidden, double std, double out_std)
{
    char name[64];

    (void)snprintf(name, sizeof name, "%sgate_proj.weight", prefix);
    add_matrix(table, layer, name, ALIGNED, TSR_GROUP_DENSE, width, hidden, std);
    (void)snprintf(name, sizeof name, "%sup_proj.weight", prefix);
    add_matrix(table, layer, name, JOINED, TSR_GROUP_DENSE, width, hidden, std);
    (void)snprintf(name, sizeof name, "%sdown_proj.weight", prefix);
    add_matrix(table, layer, name, ALIGNED, TSR_GROUP_DENSE, hidden, width, out_std);
}

static void add_layer(tsr_param_table *table, int layer, const tsr_model_config *c)
{
    const int64_t d = c->hidden_size, q = c->num_attention_heads * c->head_dim;
    const int64_t kv = c->num_key_value_heads * c->head_dim, f = c->moe_intermediate_size;
    const double std = c->initializer_range;
    /* What is added to the residual 2 L times starts smaller (Radford et al. 2019, GPT-2, 2.3). */
    const double out_std = std / sqrt(2.0 * (double)c->num_hidden_layers);

    add_norm(table, layer, "input_layernorm.weight", d);
    add_matrix(table, layer, "self_attn.q_proj.weight", ALIGNED, TSR_GROUP_DENSE, q, d, std);
    add_matrix(table, layer, "self_attn.k_proj.weight", JOINED, TSR_GROUP_DENSE, kv, d, std);
    add_matrix(table, layer, "self_attn.v_proj.weight", JOINED, TSR_GROUP_DENSE, kv, d, std);
    add_matrix(table, layer, "self_attn.o_proj.weight", ALIGNED, TSR_GROUP_DENSE, d, q, out_std);
    add_norm(table, layer, "post_attention_layernorm.weight", d);
    if (tsr_model_layer_is_dense(c, layer)) {
        add_feed_forward(table, layer, "mlp.", c->intermediate_size, d, std, out_std);
        return;
    }
    add_matrix(table, layer, "mlp.gate.weight", ALIGNED, TSR_GROUP_FLOAT, c->num_experts, d, std);
    add_experts(table, layer, "mlp.experts.gate_up_proj", c->num_experts, 2 * f, d, std);
    add_experts(table, layer, "mlp.experts.down_proj", c->num_experts, d, f, out_std);
    if (c->n_shared_experts > 0) {
        add_feed_forward(table, layer, "mlp.shared_experts.", c->n_shared_experts * f, d, std,
                         out_std);
    }
}

tsr_status tsr_param_table_create(const tsr_model_config *config, tsr_param_table *table_out)
{
    tsr_param_table table = {0};
    void *params = NULL;
    const int64_t v = config->vocab_size, d = config->hidden_size;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, PARAMS_PER_LAYER * config->num_hidden_layers + 3,
                                sizeof(tsr_param), &params));
    table.params = params;
    add_matrix(&table, -1, "model.embed_tokens.weight", ALIGNED, TSR_GROUP_DENSE, v, d,
               config->initializer_range);
    for (int layer = 0; layer < config->num_hidden_layers; ++layer) {
        add_layer(&table, layer, config);
    }
    add_norm(&table, -1, "model.norm.weight", d);
    if (!config->tie_word_embeddings) {
        add_matrix(&table, -1, "lm_head.weight", ALIGNED, TSR_GROUP_DENSE, v, d,
                   config->initializer_range);
    }
    for (int g = 0; g < TSR_GROUPS; ++g) {
        table.group_elements[g] = tsr_param_align(table.group_elements[g]);
    }
    *table_out = table;
    return TSR_OK;
}

void tsr_param_table_destroy(tsr_param_table *table)
{
    tsr_mem_free(table->params);
    tsr_mem_free(table->experts);
    *table = (tsr_param_table){0};
}

int tsr_param_find(const tsr_param_table *table, const char *name)
{
    for (int i = 0; i < table->count; ++i) {
        if (strcmp(table->params[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

int tsr_param_find_in_layer(const tsr_param_table *table, int layer, const char *name)
{
    char full[sizeof table->params->name];

    (void)snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    return tsr_param_find(table, full);
}

int64_t tsr_shard_cut(const tsr_param_table *table, tsr_param_group group, int parts, int part)
{
    const int64_t total = table->group_elements[group];
    const int64_t even = total / parts * part + total % parts * part / parts;
    int64_t cut = 0;

    if (part >= parts) {
        return total;
    }
    for (int i = 0; i < table->count; ++i) {
        const tsr_param *p = &table->params[i];

        if (p->group == group && p->offset <= even) {
            const int64_t rows = (even - p->offset) / p->width;
            cut = p->offset + (rows < p->rows ? rows : p->rows) * p->width;
        }
    }
    return cut;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

void tsr_param_rows_between(const tsr_param *param, int64_t cut_begin, int64_t cut_end,
                            int64_t *begin, int64_t *end)
{
    const int64_t elements = param->rows * param->width;

    /* Cuts lie on row boundaries, so the divisions are exact inside the tensor. */
    *begin = clamp(cut_begin - param->offset, 0, elements) / param->width;
    *end = clamp(cut_end - param->offset, 0, elements) / param->width;
}
