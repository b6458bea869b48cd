/* A rank's share of the experts: which they are, and its own parameter table. */
#include "runtime/model.h"

#include <string.h>

void tsr_expert_owners_even(int64_t layers, int64_t experts, int parts, int32_t *owner_out)
{
    const int64_t each = experts / parts, rest = experts % parts;

    for (int64_t e = 0; e < experts; ++e) {
        /* the first `rest` parts have one more than the others */
        const int64_t in_larger = rest * (each + 1);
        const int64_t part = e < in_larger ? e / (each + 1) : rest + (e - in_larger) / each;

        for (int64_t layer = 0; layer < layers; ++layer) {
            owner_out[layer * experts + e] = (int32_t)part;
        }
    }
}

/* Experts of one tensor that belong to part; returns how many. */
static int64_t choose(const tsr_param *whole, const int32_t *owner, int part, int32_t *chosen)
{
    const int64_t experts = whole->shape[0];
    int64_t count = 0;

    for (int64_t e = 0; e < experts; ++e) {
        if (owner[whole->layer * experts + e] == part) {
            chosen[count++] = (int32_t)e;
        }
    }
    return count;
}

static int64_t count_experts(const tsr_param_table *whole)
{
    int64_t count = 0;

    for (int i = 0; i < whole->count; ++i) {
        count += whole->params[i].group == TSR_GROUP_EXPERT ? whole->params[i].shape[0] : 0;
    }
    return count;
}

tsr_status tsr_param_table_share(const tsr_param_table *whole, const int32_t *owner, int part,
                                 tsr_param_table *local_out)
{
    tsr_param_table local = *whole;
    int64_t end = 0;
    void *params = NULL, *experts = NULL;
    tsr_status st = TSR_OK;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, whole->count, sizeof(tsr_param), &params));
    TSR_TRY_GOTO(
        tsr_mem_alloc_array(TSR_MEM_OTHER, count_experts(whole), sizeof(int32_t), &experts),
        err_params);
    memcpy(params, whole->params, (size_t)whole->count * sizeof(tsr_param));
    local.params = params;
    local.experts = experts;
    int32_t *next = experts;
    for (int i = 0; i < local.count; ++i) {
        tsr_param *param = &local.params[i];

        if (param->group != TSR_GROUP_EXPERT) {
            continue;
        }
        const int64_t height = param->shape[1];
        param->expert = next;
        param->shape[0] = choose(&whole->params[i], owner, part, next);
        next += param->shape[0];
        param->rows = param->shape[0] * height;
        param->offset = end;
        end = tsr_param_align(end + param->rows * param->width);
    }
    local.group_elements[TSR_GROUP_EXPERT] = end;
    *local_out = local;
    return TSR_OK;

err_params:
    tsr_mem_free(params);
    return st;
}

int64_t tsr_param_global_row(const tsr_param *param, int64_t row)
{
    const int64_t height = param->dims == 3 ? param->shape[1] : 1;

    return param->expert == NULL ? row : param->expert[row / height] * height + row % height;
}

int64_t tsr_param_run_end(const tsr_param *param, int64_t row)
{
    if (param->expert == NULL) {
        return param->rows;
    }
    int64_t place = row / param->shape[1] + 1;
    while (place < param->shape[0] && param->expert[place] == param->expert[place - 1] + 1) {
        ++place;
    }
    return place * param->shape[1];
}
