/* Memory that a rank takes: planned before the run for loads that are assumed, and again for those
 * that have come, after each window of steps and as soon as they outgrow the plan. Buffers follow
 * it. Before there is a past to place by, and before owners move, loads are worse than they stay:
 * one window later the plan may shrink, once. */
#include "launch/trainer_impl.h"

#include <math.h>

/* ---- before the run -------------------------------------------------------------------------- */

/* Ranks that share each group of parameters. */
static void group_sizes(const tsr_mesh *mesh, int sizes_out[TSR_GROUPS])
{
    sizes_out[TSR_GROUP_FLOAT] = sizes_out[TSR_GROUP_DENSE] = mesh->dp * mesh->ep;
    sizes_out[TSR_GROUP_EXPERT] = mesh->dp;
}

static tsr_status take_room(const settings *s, double **room_out)
{
    const int64_t layers = s->model.num_hidden_layers;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, layers, sizeof **room_out, (void **)room_out));
    for (int64_t l = 0; l < layers; ++l) {
        (*room_out)[l] = s->experts.room;
    }
    return TSR_OK;
}

static void add_up(trainer_plan *plan)
{
    plan->model = plan->weights + plan->gradients + plan->optimizer + plan->activations;
    plan->total = plan->model + plan->staging;
}

tsr_status trainer_estimate(const settings *s, const tsr_mesh *mesh, trainer_plan *plan_out)
{
    const tsr_dtype compute = (tsr_dtype)s->precision.compute;
    const int first[TSR_GROUPS] = {0};
    int sizes[TSR_GROUPS];
    tsr_param_table table = {0}, local = {0};
    int32_t *owner = NULL;
    double *room = NULL;
    tsr_device *device = NULL;
    trainer_plan plan = {0};
    tsr_status st = TSR_OK;

    group_sizes(mesh, sizes);
    TSR_TRY_GOTO(trainer_make_tables(s, mesh->ep, 0, &table, &owner, &local), done);
    TSR_TRY_GOTO(take_room(s, &room), done);
    TSR_TRY_GOTO(tsr_device_open("cpu", 1, &device), done);
    const tsr_stage_options options = trainer_stage_options(s, &local, device, mesh, room);
    TSR_TRY_GOTO(tsr_stage_bytes(&options, &plan.activations), done);
    tsr_stage_copies_bytes(&options, &plan.weights, &plan.gradients);
    for (int g = 0; g < TSR_GROUPS; ++g) {
        const size_t elements = (size_t)local.group_elements[g];
        plan.weights += elements * tsr_dtype_bytes(g == TSR_GROUP_FLOAT ? TSR_F32 : compute);
        plan.gradients += elements * sizeof(float);
        plan.staging += elements / (size_t)sizes[g] * 3 * sizeof(float);
    }
    plan.optimizer = tsr_optimizer_bytes(&s->optim, &local, compute, sizes, first);
    add_up(&plan);
    *plan_out = plan;
done:
    tsr_device_close(&device);
    tsr_mem_free(room);
    tsr_param_table_destroy(&local);
    tsr_mem_free(owner);
    tsr_param_table_destroy(&table);
    return st;
}

tsr_status trainer_take_room(trainer *t)
{
    TSR_TRY(take_room(t->s, &t->room));
    return take_room(t->s, &t->met);
}

/* ---- as the loads are ------------------------------------------------------------------------ */

/* By what the device has prepared and by the room that there is to be. */
static tsr_status plan_activations(trainer *t)
{
    const tsr_stage_options options =
        trainer_stage_options(t->s, &t->local, t->device, &t->mesh, t->room);

    TSR_TRY(tsr_stage_bytes(&options, &t->plan.activations));
    t->plan.activations += t->scratch_bytes;
    add_up(&t->plan);
    return TSR_OK;
}

tsr_status trainer_plan_start(trainer *t)
{
    TSR_TRY(trainer_estimate(t->s, &t->mesh, &t->plan));
    t->scratch_bytes = tsr_device_scratch_bytes(t->device);
    return plan_activations(t);
}

size_t trainer_held_bytes(void)
{
    return tsr_mem_live_bytes(TSR_MEM_WEIGHTS) + tsr_mem_live_bytes(TSR_MEM_GRADIENTS) +
           tsr_mem_live_bytes(TSR_MEM_OPTIMIZER) + tsr_mem_live_bytes(TSR_MEM_ACTIVATIONS) +
           tsr_mem_live_bytes(TSR_MEM_WORKSPACE);
}

/* Of the quarter that is taken beyond the plan, a tenth may be used before it is planned anew. What
 * is a quarter too much is given back where that is wanted. */
static bool change_room(trainer *t, bool gives_back)
{
    bool has_changed = false;

    for (int64_t l = 0; l < t->s->model.num_hidden_layers; ++l) {
        const double need = fmax(t->met[l], t->s->experts.room);

        if (need > 1.1 * t->room[l] || (gives_back && 1.25 * need < t->room[l])) {
            t->room[l] = need;
            has_changed = true;
        }
    }
    return has_changed;
}

tsr_status trainer_plan_anew(trainer *t, step_result *result)
{
    const bool ends_window = t->steps_here % t->s->experts.window == 0;

    if (t->mesh.ep == 1 || !(ends_window || result->has_outgrown)) {
        return TSR_OK;
    }
    tsr_comm_set_phase("planning memory", t->step);
    tsr_stage_met(t->stage, t->met);
    TSR_TRY(
        tsr_comm_all_reduce_f64(t->comm, t->met, t->s->model.num_hidden_layers, TSR_REDUCE_MAX));
    result->is_planned_anew = change_room(t, ends_window && !t->has_settled);
    t->has_settled = t->has_settled || ends_window;
    if (!result->is_planned_anew) {
        return TSR_OK;
    }
    tsr_status st = tsr_stage_make_room(t->stage);
    st = st != TSR_OK ? st : plan_activations(t);
    return tsr_comm_agree(t->comm, st);
}
