/* A trainer's state as checkpoints see it. */
#include "launch/reshard.h"
#include "launch/trainer_impl.h"

#include <string.h>

static const char owner_name[] = "expert_owner"; /* [L,E], of so many ranks: */
static const char ranks_name[] = "expert_ranks";

/* ---- placement's part ------------------------------------------------------------------------ */

static tsr_status take_array(trainer *t, const char *name, int64_t count)
{
    tsr_state_array *array = &t->arrays[t->array_count];

    TSR_TRY(
        tsr_mem_alloc_array(TSR_MEM_OTHER, count, sizeof *array->values, (void **)&array->values));
    array->name = name;
    array->count = count;
    ++t->array_count;
    return TSR_OK;
}

static const char *history_name(const trainer *t)
{
    return t->s->experts.prediction == TSR_PREDICT_EMA ? "expert_loads_ema" : "expert_loads_window";
}

tsr_status trainer_take_arrays(trainer *t)
{
    const tsr_load_history *history = tsr_stage_history(t->stage);

    if (t->mesh.ep > 1) {
        TSR_TRY(take_array(t, owner_name, t->weights.layers * t->weights.experts));
        TSR_TRY(take_array(t, ranks_name, 1));
    }
    return history != NULL ? take_array(t, history_name(t), tsr_load_history_size(history))
                           : TSR_OK;
}

static const tsr_state_array *find_array(const trainer *t, const char *name)
{
    for (int i = 0; i < t->array_count; ++i) {
        if (strcmp(t->arrays[i].name, name) == 0) {
            return &t->arrays[i];
        }
    }
    return NULL;
}

static tsr_status restore_history(trainer *t)
{
    tsr_load_history *history = tsr_stage_history(t->stage);
    const tsr_state_array *loads = find_array(t, history_name(t));

    if (history == NULL) {
        return TSR_OK;
    }
    if (!loads->is_loaded) {
        if (tsr_comm_rank(t->comm) == 0) {
            tsr_log(TSR_LOG_INFO,
                    "the checkpoint holds no loads of the last %lld steps: placement "
                    "by \"%s\" begins anew",
                    (long long)t->s->experts.window, history_name(t));
        }
        return TSR_OK;
    }
    return tsr_load_history_import(history, loads->values);
}

static void view_owners(trainer *t)
{
    const tsr_state_array *owner = find_array(t, owner_name), *ranks = find_array(t, ranks_name);

    for (int64_t i = 0; owner != NULL && i < owner->count; ++i) {
        owner->values[i] = t->owner[i];
    }
    if (ranks != NULL) {
        ranks->values[0] = t->mesh.ep;
    }
}

/* Of as many ranks, the experts go to the owners that they had; else they stay evenly dealt. */
static tsr_status restore_owners(trainer *t)
{
    const tsr_state_array *saved = find_array(t, owner_name), *ranks = find_array(t, ranks_name);
    reshard_move move;
    int32_t *owner = NULL;

    if (saved == NULL || !saved->is_loaded || !ranks->is_loaded ||
        ranks->values[0] != (double)t->mesh.ep) {
        return TSR_OK;
    }
    tsr_status st =
        tsr_mem_alloc_array(TSR_MEM_OTHER, saved->count, sizeof *owner, (void **)&owner);
    st = tsr_comm_agree(t->comm, st);
    for (int64_t i = 0; st == TSR_OK && i < saved->count; ++i) {
        const double rank = saved->values[i];

        owner[i] = rank >= 0.0 && rank < t->mesh.ep ? (int32_t)rank : -1; /* is refused */
    }
    st = st != TSR_OK ? st : reshard_deal(t, owner, &move);
    tsr_mem_free(owner);
    return st;
}

/* ---- all of it ------------------------------------------------------------------------------- */

tsr_status trainer_view(trainer *t, const char *config_text, tsr_state_view *view_out)
{
    const tsr_load_history *history = tsr_stage_history(t->stage);
    tsr_state_view view = {
        .table = &t->table,
        .router_bias = t->router_bias,
        .layers = t->weights.layers,
        .experts = t->weights.experts,
        .arrays = t->arrays,
        .array_count = t->array_count,
        .step = t->step,
        .tokens = t->tokens_seen,
        .data_position = t->data_position,
        .seed = (uint64_t)t->s->run.seed,
        .config_text = config_text,
    };

    view_owners(t);
    if (history != NULL) {
        tsr_load_history_export(history, find_array(t, history_name(t))->values);
    }
    TSR_TRY(tsr_optimizer_slices(t->optimizer, &view.slices, &view.slice_count));
    *view_out = view;
    return TSR_OK;
}

tsr_status trainer_send_router_bias(trainer *t)
{
    const size_t bytes = (size_t)(t->weights.layers * t->weights.experts) * sizeof *t->router_bias;

    return tsr_device_copy(t->device, t->weights.router_bias, t->router_bias, bytes,
                           TSR_COPY_HOST_TO_DEVICE, t->stream);
}

tsr_status trainer_restore(trainer *t, const tsr_state_view *view)
{
    t->step = view->step;
    t->tokens_seen = view->tokens;
    t->data_position = view->data_position;
    if (t->router_bias != NULL) {
        TSR_TRY(trainer_send_router_bias(t));
    }
    TSR_TRY(restore_history(t));
    TSR_TRY(tsr_optimizer_refresh(t->optimizer, t->stream));
    return restore_owners(t);
}
