/* Copies of experts beside their owners: planned from past loads, fetched under the attention
 * before the layer, shared out exactly after the gate, their gradients sent home under the
 * attention after.
 *
 *   forward   ... [fetch l ~~~~~~] gate l, shares, (spill), dispatch, experts l, combine ...
 *                 [attention l   ]
 *   backward  experts l  [gradients of copies l home ~~] [fetch l-1 ~~]  experts l-1 ...
 *                        [attention l                                 ]
 *
 * One set of slots serves all layers in turn (experts.rematerialize), or each has its own. Plans
 * are functions of counts that all ranks of the group know; nothing is agreed on.
 * Source: Hecate, arXiv:2502.02581, sections 3 and 4; spill after the gate: ours. */
#include "parallel/moe_impl.h"

#include <string.h>

static int64_t part_elements(const moe_layer *self, int part)
{
    const moe_matrix *matrix = part == 0 ? &self->gate_up : &self->down;

    return matrix->n * matrix->k;
}

/* ---- where copies lie ----------------------------------------------------------------------- */

static int32_t *place_at(const moe_layer *self, int expert, int rank)
{
    return &self->place[(int64_t)expert * self->spread->copies->ranks + rank];
}

/* Slots of a plan's copies: after the owned ones, by ascending expert; those that are there already
 * keep theirs. */
static void give_places(moe_layer *self, const tsr_holding *holding, bool is_new)
{
    moe_copies *c = self->spread->copies;

    if (is_new) {
        memset(self->place, -1, (size_t)c->experts * (size_t)c->ranks * sizeof *self->place);
        memset(c->used, 0, (size_t)c->ranks * sizeof *c->used);
        for (int e = 0; e < c->experts; ++e) { /* owned first */
            const int32_t owner = holding->rank[holding->begin[e]];
            *place_at(self, e, owner) = c->used[owner]++;
        }
    }
    for (int e = 0; e < c->experts; ++e) {
        for (int32_t i = holding->begin[e] + 1; i < holding->begin[e + 1]; ++i) {
            const int32_t rank = holding->rank[i];
            if (*place_at(self, e, rank) < 0) {
                *place_at(self, e, rank) = c->used[rank]++;
            }
        }
    }
}

/* First byte of a slot's part; set: of the layer's own slots, or of the shared ones. */
static char *slot_weights(const moe_layer *self, size_t element, int part)
{
    const moe_copies *c = self->spread->copies;
    const size_t set =
        c->rematerializes ? 0 : (size_t)(self->base.index - c->first_layer) * c->set_bytes;
    const int64_t before = part == 0 ? 0 : c->slots * part_elements(self, 0);

    return (char *)c->weights + set + (size_t)before * element;
}

static float *slot_gradients(const moe_layer *self, int part)
{
    const moe_copies *c = self->spread->copies;

    return c->gradients + (part == 0 ? 0 : c->slots * part_elements(self, 0));
}

void *moe_copies_weights(const moe_layer *self, const tsr_pass *pass, const moe_matrix *matrix)
{
    return slot_weights(self, tsr_dtype_bytes(pass->dtype), matrix == &self->gate_up ? 0 : 1);
}

float *moe_copies_gradients(const moe_layer *self, const moe_matrix *matrix)
{
    return slot_gradients(self, matrix == &self->gate_up ? 0 : 1);
}

/* Addresses of what this rank holds of each expert: weights, or gradients. */
static void list_memory(const moe_layer *self, const tsr_pass *pass, const tsr_holding *holding,
                        bool of_gradients, void **memory)
{
    const moe_copies *c = self->spread->copies;
    const size_t element = of_gradients ? sizeof(float) : tsr_dtype_bytes(pass->dtype);

    for (int e = 0; e < c->experts; ++e) {
        const int32_t place = *place_at(self, e, c->rank);
        const bool owns = holding->rank[holding->begin[e]] == c->rank;

        for (int part = 0; part < MOE_PARTS && place >= 0; ++part) {
            const moe_matrix *matrix = part == 0 ? &self->gate_up : &self->down;
            char *stack = NULL;
            int64_t at = place;

            if (owns) {
                stack = of_gradients ? (char *)tsr_weights_gradient(pass->weights, matrix->param)
                                     : (char *)tsr_weights_value(pass->weights, matrix->param);
            } else {
                stack = of_gradients ? (char *)slot_gradients(self, part)
                                     : slot_weights(self, element, part);
                at -= self->places;
            }
            memory[MOE_PARTS * e + part] =
                stack + (size_t)(at * part_elements(self, part)) * element;
        }
    }
}

/* ---- moving them ---------------------------------------------------------------------------- */

static tsr_sparse_call make_call(moe_layer *self, const tsr_pass *pass, const tsr_holding *holding,
                                 bool of_gradients, void **memory)
{
    moe_copies *c = self->spread->copies;
    const int64_t copies = holding->begin[holding->chunks] - holding->chunks;
    int64_t *bytes = c->part_bytes[of_gradients];

    list_memory(self, pass, holding, of_gradients, memory);
    for (int part = 0; part < MOE_PARTS; ++part) {
        bytes[part] = part_elements(self, part) *
                      (int64_t)(of_gradients ? sizeof(float) : tsr_dtype_bytes(pass->dtype));
        self->moved_bytes += copies * bytes[part];
    }
    return (tsr_sparse_call){.holding = holding,
                             .parts = MOE_PARTS,
                             .part_bytes = bytes,
                             .memory = memory,
                             .stream = c->stream,
                             .number = self->base.index};
}

/* On a device what was queued so far comes before what the copies' stream does now. */
static tsr_status after_compute(moe_copies *c, const tsr_pass *pass)
{
    if (c->stream == NULL) {
        return TSR_OK;
    }
    TSR_TRY(tsr_event_record(c->computed, pass->stream));
    return tsr_stream_wait_event(c->stream, c->computed);
}

/* Wait, and count how long that took: what attention did not hide. */
static tsr_status wait_exposed(moe_layer *self, tsr_sparse_call *call)
{
    const int64_t begin = tsr_trace_clock(), span = tsr_trace_begin();
    const tsr_status st = tsr_sparse_wait(call);

    self->exposed_ns += tsr_trace_clock() - begin;
    tsr_trace_end(TSR_TRACE_EXCHANGE, "wait for copies", self->base.index, span);
    return st;
}

static tsr_status start_fetch(moe_layer *self, const tsr_pass *pass)
{
    moe_copies *c = self->spread->copies;

    c->fetch = make_call(self, pass, &self->holders.holding, false, c->memory[0]);
    c->held_layer = self->base.index;
    TSR_TRY(after_compute(c, pass));
    return tsr_sparse_start_all_gather(c->sparse, &c->fetch);
}

tsr_status moe_copies_prepare(moe_layer *self, const tsr_pass *pass)
{
    moe_copies *c = self->spread->copies;

    TSR_TRY(tsr_sparse_wait(&c->fetch)); /* of a layer that was skipped; else done */
    tsr_load_history_predict(c->history, self->base.index, c->predicted);
    const tsr_load_past past = tsr_load_history_past(c->history, self->base.index);
    TSR_TRY(tsr_plan_holdings(c->planner,
                              self->spread->owner + (int64_t)self->base.index * c->experts,
                              c->predicted, &past, &self->holders));
    give_places(self, &self->holders.holding, true);
    self->copies = self->holders.copies;
    c->free_from = tsr_trace_clock();
    return start_fetch(self, pass);
}

tsr_status moe_copies_prepare_backward(moe_layer *self, const tsr_pass *pass)
{
    const moe_copies *c = self->spread->copies;

    return c->rematerializes && c->held_layer != self->base.index ? start_fetch(self, pass)
                                                                  : TSR_OK;
}

tsr_status moe_copies_ready(moe_layer *self)
{
    return wait_exposed(self, &self->spread->copies->fetch);
}

tsr_status moe_copies_send_gradients(moe_layer *self, const tsr_pass *pass)
{
    moe_copies *c = self->spread->copies;

    c->reduce = make_call(self, pass, &self->holders.holding, true, c->memory[1]);
    TSR_TRY(after_compute(c, pass));
    return tsr_sparse_start_reduce_scatter(c->sparse, &c->reduce);
}

tsr_status moe_copies_gradients_sent(moe_layer *self)
{
    return wait_exposed(self, &self->spread->copies->reduce);
}

/* ---- after the gate ------------------------------------------------------------------------- */

/* Copies that nothing hides. */
static tsr_status spill(moe_layer *self, const tsr_pass *pass, tsr_quotas *quotas)
{
    moe_copies *c = self->spread->copies;

    TSR_TRY(tsr_plan_spill(c->planner, c->counts, &self->holders));
    if (self->holders.copies_added == 0) {
        return TSR_OK;
    }
    const int64_t begin = tsr_trace_clock();
    give_places(self, &self->holders.added, false);
    self->copies += self->holders.copies_added;
    tsr_sparse_call call = make_call(self, pass, &self->holders.added, false, c->memory[0]);
    TSR_TRY(after_compute(c, pass));
    TSR_TRY(tsr_sparse_start_all_gather(c->sparse, &call)); /* the worker has the communicator */
    const tsr_status st = tsr_sparse_wait(&call);
    self->exposed_ns += tsr_trace_clock() - begin;
    TSR_TRY(st);
    return tsr_plan_quotas(c->planner, c->counts, &self->holders, quotas);
}

/* This rank's tokens take the holders of their experts in turn, each as often as it may. */
static void take_turns(moe_layer *self, const tsr_quotas *quotas, const int32_t *index,
                       int64_t count, int32_t *lanes)
{
    moe_copies *c = self->spread->copies;
    const tsr_holding *holding = &self->holders.holding;

    for (int e = 0; e < c->experts; ++e) {
        c->next[e] = quotas->begin[e];
        c->left[e] = 0;
    }
    for (int64_t i = 0; i < count; ++i) {
        const int32_t e = index[i];

        while (c->left[e] == 0) { /* quotas sum to the counts: there is another one */
            const tsr_quota *q = &quotas->quota[c->next[e]++];
            if (q->source == c->rank) {
                const int32_t to = holding->rank[q->at];

                c->left[e] = q->tokens;
                self->turn[e] = tsr_lane(to, *place_at(self, e, to));
            }
        }
        --c->left[e];
        lanes[i] = self->turn[e];
    }
}

tsr_status moe_copies_lanes(moe_layer *self, const tsr_pass *pass, const int32_t *index,
                            int64_t count, int32_t *lanes)
{
    moe_copies *c = self->spread->copies;
    tsr_quotas quotas = {0};

    c->free_ns += tsr_trace_clock() - c->free_from;
    ++c->free_count;
    memset(c->own, 0, (size_t)c->experts * sizeof *c->own);
    for (int64_t i = 0; i < count; ++i) {
        ++c->own[index[i]];
    }
    TSR_TRY(moe_copies_ready(self)); /* a spill may follow, and the slots are needed anyway */
    TSR_TRY(tsr_comm_all_gather(c->all, c->own, (size_t)c->experts * sizeof *c->own, c->counts));
    TSR_TRY(tsr_plan_quotas(c->planner, c->counts, &self->holders, &quotas));
    TSR_TRY(spill(self, pass, &quotas));
    take_turns(self, &quotas, index, count, lanes);
    return TSR_OK;
}

void moe_copies_observe(moe_copies *c, const double *counts, int64_t layers)
{
    for (int64_t l = c->first_layer; l < layers; ++l) {
        for (int e = 0; e < c->experts; ++e) {
            c->predicted[e] = ((int64_t)counts[l * c->experts + e] + c->shares / 2) / c->shares;
        }
        tsr_load_history_push(c->history, (int)l, c->predicted);
    }
}
