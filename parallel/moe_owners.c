/* Owners of experts between steps: better ones, and layers that follow when they change. */
#include "parallel/moe_impl.h"
#include "parallel/stage_impl.h"

#include <string.h>

tsr_load_history *tsr_stage_history(tsr_stage *stage)
{
    return stage->spread != NULL && stage->spread->copies != NULL ? stage->spread->copies->history
                                                                  : NULL;
}

tsr_status tsr_stage_better_owners(tsr_stage *stage, int steps, double move_tokens,
                                   int32_t *owner_out, tsr_move *move_out)
{
    const tsr_model_config *config = stage->options.config;
    const int64_t experts = config->num_experts, all = config->num_hidden_layers * experts;
    const int64_t first = config->first_k_dense_replace * experts;
    const int32_t *owner = stage->options.owner;
    void *block = NULL;

    TSR_CHECK(tsr_stage_history(stage) != NULL, TSR_ERR_STATE,
              "owners are chosen by past loads, which placement ep does not keep");
    moe_copies *c = stage->spread->copies;
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, all, sizeof(int64_t), &block));
    int64_t *loads = block;
    for (int64_t l = config->first_k_dense_replace; l < config->num_hidden_layers; ++l) {
        tsr_load_history_predict(c->history, (int)l, loads + l * experts);
    }
    memcpy(owner_out, owner, (size_t)all * sizeof *owner); /* dense layers keep theirs */
    tsr_status st = tsr_plan_owners(c->planner, loads + first, owner + first, owner_out + first);
    if (st == TSR_OK) {
        st = tsr_plan_weigh(c->planner, loads + first, owner + first, owner_out + first, steps,
                            move_tokens, move_out);
    }
    tsr_mem_free(loads);
    return st;
}

tsr_status moe_layer_deal(tsr_layer *layer, const tsr_layer_spec *spec)
{
    moe_layer *self = (moe_layer *)layer;

    self->places = (int)spec->table->params[self->gate_up.param].shape[0];
    moe_spread_set_lanes(self);
    return moe_layer_reserve(self, spec);
}

tsr_status tsr_stage_deal(tsr_stage *stage)
{
    const tsr_model_config *config = stage->options.config;
    moe_copies *c = stage->spread != NULL ? stage->spread->copies : NULL;

    if (c != NULL) {
        TSR_TRY(tsr_sparse_wait(&c->fetch)); /* of a layer that was skipped; else done */
        c->held_layer = -1;
    }
    for (int64_t l = config->first_k_dense_replace;
         stage->spread != NULL && l < config->num_hidden_layers; ++l) {
        const tsr_layer_spec spec = stage_layer_spec(&stage->options, (int)l);

        TSR_TRY(moe_layer_deal(stage->layers[2 * l + 1], &spec));
    }
    return TSR_OK;
}
