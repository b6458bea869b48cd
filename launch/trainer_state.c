/* A trainer's state as checkpoints see it. */
#include "launch/trainer_impl.h"

#include <string.h>

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
    return tsr_optimizer_refresh(t->optimizer, t->stream);
}
