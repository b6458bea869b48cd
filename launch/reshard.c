/* State of experts from old owners to new ones: what a checkpoint on another layout does, in
 * memory. */
#include "launch/reshard_impl.h"
#include "launch/trainer_impl.h"

#include <string.h>

/* ---- the state, kept ------------------------------------------------------------------------- */

static void free_deal(reshard_state *d)
{
    tsr_mem_free(d->before.runs);
    tsr_mem_free(d->after.runs);
    tsr_mem_free(d->kept);
    for (int kind = 0; kind < RESHARD_KINDS; ++kind) {
        tsr_mem_free(d->block[kind]);
    }
    tsr_mem_free(d->pieces);
}

char *reshard_values(const tsr_state_slice *slice, int kind)
{
    void *const values[RESHARD_KINDS] = {slice->master, slice->m, slice->v};

    return values[kind];
}

size_t reshard_element_bytes(const trainer *t, int kind)
{
    return kind == 0 ? sizeof(float) : tsr_dtype_bytes((tsr_dtype)t->s->optim.moments);
}

static int64_t elements_of(const trainer *t, const tsr_state_slice *slice)
{
    return (slice->row_end - slice->row_begin) * t->table.params[slice->param].width;
}

bool reshard_is_expert(const trainer *t, const tsr_state_slice *slice)
{
    return t->table.params[slice->param].group == TSR_GROUP_EXPERT;
}

static tsr_status keep_slices(trainer *t, reshard_state *d)
{
    const tsr_state_slice *slices = NULL;
    int64_t all = 0, at = 0;

    TSR_TRY(tsr_optimizer_slices(t->optimizer, &slices, &d->count));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OPTIMIZER, d->count, sizeof *d->kept, (void **)&d->kept));
    for (int i = 0; i < d->count; ++i) {
        all += elements_of(t, &slices[i]);
    }
    for (int kind = 0; kind < RESHARD_KINDS; ++kind) {
        TSR_TRY(tsr_mem_alloc(TSR_MEM_OPTIMIZER, (size_t)all * reshard_element_bytes(t, kind),
                              (void **)&d->block[kind]));
    }
    for (int i = 0; i < d->count; ++i) {
        const int64_t count = elements_of(t, &slices[i]);
        char *to[RESHARD_KINDS];

        for (int kind = 0; kind < RESHARD_KINDS; ++kind) {
            const size_t size = reshard_element_bytes(t, kind);

            to[kind] = d->block[kind] + (size_t)at * size;
            memcpy(to[kind], reshard_values(&slices[i], kind), (size_t)count * size);
        }
        d->kept[i] = slices[i];
        d->kept[i].master = (float *)(void *)to[0];
        d->kept[i].m = to[1];
        d->kept[i].v = to[2];
        at += count;
    }
    return TSR_OK;
}

/* What is no expert's stays where it is. */
static void put_back(const trainer *t, const reshard_state *d, const tsr_state_slice *slices,
                     int count)
{
    int old = 0;

    for (int i = 0; i < count; ++i) {
        if (reshard_is_expert(t, &slices[i])) {
            continue;
        }
        while (reshard_is_expert(t, &d->kept[old])) {
            ++old;
        }
        for (int kind = 0; kind < RESHARD_KINDS; ++kind) {
            memcpy(reshard_values(&slices[i], kind), reshard_values(&d->kept[old], kind),
                   (size_t)elements_of(t, &slices[i]) * reshard_element_bytes(t, kind));
        }
        ++old;
    }
}

/* Kept values to the slices as they are now. */
static tsr_status hand_out(trainer *t, reshard_state *d)
{
    const tsr_state_slice *slices = NULL;
    int count = 0;

    TSR_TRY(tsr_comm_agree(t->comm, tsr_optimizer_slices(t->optimizer, &slices, &count)));
    put_back(t, d, slices, count);
    TSR_TRY(reshard_move_rows(t, d, slices, count));
    return tsr_optimizer_refresh(t->optimizer, t->stream);
}

/* ---- the deal -------------------------------------------------------------------------------- */

static tsr_status make_anew(trainer *t, const int32_t *owner)
{
    tsr_optimizer_destroy(&t->optimizer);
    tsr_weights_destroy(&t->weights);
    tsr_param_table_destroy(&t->local);
    memcpy(t->owner, owner,
           (size_t)(t->s->model.num_hidden_layers * t->s->model.num_experts) * sizeof *owner);
    tsr_status st = tsr_param_table_share(&t->table, t->owner, t->mesh.ep_rank, &t->local);
    st = st != TSR_OK
             ? st
             : tsr_weights_create(&t->s->model, &t->local, t->device, t->dtype, true, &t->weights);
    st = st != TSR_OK ? st : tsr_stage_deal(t->stage);
    TSR_TRY(tsr_comm_agree(t->comm, st));
    return trainer_create_optimizer(t);
}

static tsr_status run_deal(trainer *t, const int32_t *owner, reshard_state *d)
{
    tsr_status st = reshard_list_runs(t, t->owner, &d->before);

    st = st != TSR_OK ? st : reshard_list_runs(t, owner, &d->after);
    st = st != TSR_OK ? st : keep_slices(t, d);
    TSR_TRY(tsr_comm_agree(t->comm, st));
    TSR_TRY(make_anew(t, owner));
    TSR_TRY(hand_out(t, d));
    return t->router_bias != NULL ? trainer_send_router_bias(t) : TSR_OK;
}

tsr_status reshard_deal(trainer *t, const int32_t *owner, reshard_move *move_out)
{
    const int64_t cells = t->weights.layers * t->weights.experts, begin = tsr_trace_clock();
    reshard_move move = {0};
    reshard_state d = {0};

    for (int64_t i = t->s->model.first_k_dense_replace * t->weights.experts; i < cells; ++i) {
        TSR_CHECK(owner[i] >= 0 && owner[i] < t->mesh.ep, TSR_ERR_FORMAT,
                  "owner of expert %lld is rank %d, of %d", (long long)i, owner[i], t->mesh.ep);
        move.experts += owner[i] != t->owner[i];
    }
    if (move.experts > 0) {
        tsr_comm_set_phase("experts to new owners", t->step);
        const tsr_status st = run_deal(t, owner, &d);
        free_deal(&d);
        TSR_TRY(st);
        TSR_TRY(tsr_stream_wait(t->stream));
        for (int kind = 0; kind < RESHARD_KINDS; ++kind) {
            move.bytes += (double)d.moved * (double)reshard_element_bytes(t, kind);
        }
        move.seconds = 1e-9 * (double)(tsr_trace_clock() - begin);
    }
    *move_out = move;
    return TSR_OK;
}

/* Rank 0's choice: nodes may lie otherwise in another replica's group. */
static tsr_status choose(trainer *t, int32_t *owner, tsr_move *plan)
{
    const settings *s = t->s;
    const int64_t cells = t->weights.layers * t->weights.experts;
    const int64_t forwards = s->experts.reshard_every * trainer_passes(t, s->train.global_batch);

    TSR_TRY(tsr_comm_agree(
        t->comm, tsr_stage_better_owners(t->stage, forwards < INT32_MAX ? (int)forwards : INT32_MAX,
                                         s->experts.reshard_cost, owner, plan)));
    TSR_TRY(tsr_comm_broadcast(t->comm, plan, sizeof *plan, 0));
    return tsr_comm_broadcast(t->comm, owner, (size_t)cells * sizeof *owner, 0);
}

tsr_status reshard_if_due(trainer *t, reshard_move *move_out)
{
    const int64_t every = t->s->experts.reshard_every;
    int32_t *owner = NULL;
    tsr_move plan = {0};
    tsr_status st = TSR_OK;

    *move_out = (reshard_move){0};
    if (every == 0 || t->step % every != 0 || t->step >= t->s->train.steps ||
        tsr_stage_history(t->stage) == NULL) {
        return TSR_OK;
    }
    tsr_comm_set_phase("choosing owners", t->step);
    TSR_TRY(tsr_comm_agree(t->comm, tsr_mem_alloc_array(TSR_MEM_OTHER,
                                                        t->weights.layers * t->weights.experts,
                                                        sizeof *owner, (void **)&owner)));
    TSR_TRY_GOTO(choose(t, owner, &plan), done);
    if (plan.pays) {
        TSR_TRY_GOTO(reshard_deal(t, owner, move_out), done);
        tsr_log(TSR_LOG_INFO,
                "step %lld: %lld of %lld experts go to other owners, %.1f MiB in %.3f s: the "
                "fullest ranks' tokens are to fall by %.0f a step",
                (long long)t->step, (long long)move_out->experts,
                (long long)tsr_model_moe_layers(&t->s->model) * (long long)t->weights.experts,
                move_out->bytes / 1048576.0, move_out->seconds, plan.gain_s / (double)every);
    }
done:
    tsr_mem_free(owner);
    return st;
}
