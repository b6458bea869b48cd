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

enum { PARTS = 2 }; /* of an expert: gate and up, down */

static int64_t part_elements(const moe_layer *self, int part)
{
    const moe_matrix *matrix = part == 0 ? &self->gate_up : &self->down;

    return matrix->n * matrix->k;
}

/* ---- what all layers share ------------------------------------------------------------------ */

static int64_t slots_of(const tsr_stage_options *options, int ranks)
{
    const int64_t experts = options->config->num_experts;
    const int64_t half = experts / ranks / 2 > 0 ? experts / ranks / 2 : 1;
    const int64_t wanted = options->copies->slots > 0 ? options->copies->slots : half;

    return wanted < experts ? wanted : experts;
}

/* Tokens that must stay on a rank to be worth an expert's way there: their rows would come and go
 * twice. Counted in bytes, so that plans are the same on every run; measured times are not. */
static double fill_tokens(const moe_copies *c, const tsr_stage_options *options)
{
    const tsr_model_config *config = options->config;
    const double element = (double)tsr_dtype_bytes(options->dtype);
    const double weights =
        3.0 * (double)config->hidden_size * (double)config->moe_intermediate_size;
    const double trips = (c->rematerializes ? 2.0 : 1.0) * element + sizeof(float);

    return weights * trips / (4.0 * (double)config->hidden_size * element);
}

static tsr_status create_planner(moe_copies *c, const tsr_stage_options *options)
{
    const tsr_comm *flat = options->experts->flat;
    const tsr_seat *seats = tsr_comm_seats(flat);
    int32_t *node = NULL;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, c->ranks, sizeof *node, (void **)&node));
    for (int r = 0; r < c->ranks; ++r) {
        node[r] = seats[r].node;
    }
    const int64_t spill = options->copies->spill_slots;
    const tsr_plan_options plan = {
        .policy = c->policy,
        .layers = (int)tsr_model_moe_layers(options->config),
        .ranks = c->ranks,
        .experts = c->experts,
        .node = node,
        .slots = c->slots,
        .spill_slots = spill < c->slots ? (int)spill : c->slots,
        .budget = options->copies->budget > 0 ? (int)options->copies->budget : c->slots,
        .node_budget = c->slots,
        .target = options->copies->target,
        .calibrates = options->copies->calibrate,
        .fill_tokens = fill_tokens(c, options)};
    const tsr_status st = tsr_planner_create(&plan, &c->planner);
    tsr_mem_free(node);
    return st;
}

static tsr_status create_transport(moe_copies *c, const tsr_stage_options *options)
{
    const bool on_device = !tsr_device_is_host(options->device);
    const tsr_sparse_options sparse = {
        .max_chunks = c->experts, .max_parts = PARTS, .device = on_device ? options->device : NULL};

    TSR_CHECK(!on_device || tsr_comm_takes_device_memory(options->copies_comm), TSR_ERR_UNSUPPORTED,
              "parallel.placement = %s on a GPU moves experts by NCCL: set parallel.collectives = "
              "nccl, or placement = ep",
              tsr_placement_name(c->policy));
    if (on_device) {
        TSR_TRY(tsr_stream_create(options->device, &c->stream));
        TSR_TRY(tsr_event_create(options->device, &c->computed));
    } else {
        TSR_TRY(tsr_worker_create(&c->worker));
    }
    return tsr_sparse_create(options->copies_comm, c->worker, &sparse, &c->sparse);
}

/* Slots of weights (one set, or one a layer) and of gradients. */
static tsr_status create_slots(moe_copies *c, const tsr_stage_options *options)
{
    const tsr_model_config *config = options->config;
    const int64_t expert = 3 * config->hidden_size * config->moe_intermediate_size;
    const int64_t sets = options->copies->rematerialize ? 1 : tsr_model_moe_layers(config);

    c->set_bytes = (size_t)(c->slots * expert) * tsr_dtype_bytes(options->dtype);
    TSR_TRY(tsr_device_alloc(options->device, TSR_MEM_WEIGHTS, (size_t)sets * c->set_bytes,
                             &c->weights));
    if (options->train) {
        TSR_TRY(tsr_device_alloc(options->device, TSR_MEM_GRADIENTS,
                                 (size_t)(c->slots * expert) * sizeof(float),
                                 (void **)&c->gradients));
    }
    return TSR_OK;
}

static tsr_status create_lists(moe_copies *c)
{
    const int64_t cells = (int64_t)c->ranks * c->experts;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, cells, sizeof *c->counts, (void **)&c->counts));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, c->experts, sizeof *c->own, (void **)&c->own));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, c->experts, sizeof *c->predicted,
                                (void **)&c->predicted));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, c->experts, sizeof *c->next, (void **)&c->next));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, c->experts, sizeof *c->left, (void **)&c->left));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, c->ranks, sizeof *c->used, (void **)&c->used));
    for (int i = 0; i < 2; ++i) {
        TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, (int64_t)PARTS * c->experts,
                                    sizeof *c->memory[i], (void **)&c->memory[i]));
    }
    return TSR_OK;
}

tsr_status moe_copies_create(const tsr_stage_options *options, moe_copies **out)
{
    const tsr_model_config *config = options->config;
    void *block = NULL;

    *out = NULL;
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof(moe_copies), &block));
    moe_copies *c = block;
    c->device = options->device;
    c->policy = options->placement;
    c->all = options->experts->host.all;
    c->ranks = tsr_comm_size(options->experts->flat);
    c->rank = tsr_comm_rank(options->experts->flat);
    c->experts = (int)config->num_experts;
    c->first_layer = (int)config->first_k_dense_replace;
    c->slots = (int)slots_of(options, c->ranks);
    c->rematerializes = options->copies->rematerialize;
    c->held_layer = -1;
    tsr_status st = create_planner(c, options);
    if (st == TSR_OK) {
        st = tsr_load_history_create((int)config->num_hidden_layers, c->experts,
                                     (tsr_prediction)options->copies->prediction,
                                     (int)options->copies->window, &c->history);
    }
    if (st == TSR_OK) {
        st = create_transport(c, options);
    }
    if (st == TSR_OK) {
        st = create_slots(c, options);
    }
    if (st == TSR_OK) {
        st = create_lists(c);
    }
    if (st != TSR_OK) {
        moe_copies_destroy(&c);
        return st;
    }
    *out = c;
    return TSR_OK;
}

void moe_copies_destroy(moe_copies **copies_p)
{
    moe_copies *c = *copies_p;

    if (c == NULL) {
        return;
    }
    tsr_worker_destroy(&c->worker); /* runs what is left to its end */
    tsr_sparse_destroy(&c->sparse);
    tsr_event_destroy(&c->computed);
    tsr_stream_destroy(&c->stream);
    tsr_planner_destroy(&c->planner);
    tsr_load_history_destroy(&c->history);
    tsr_device_free(c->device, c->weights);
    tsr_device_free(c->device, c->gradients);
    tsr_mem_free(c->counts);
    tsr_mem_free(c->own);
    tsr_mem_free(c->predicted);
    tsr_mem_free(c->next);
    tsr_mem_free(c->left);
    tsr_mem_free(c->used);
    tsr_mem_free(c->memory[0]);
    tsr_mem_free(c->memory[1]);
    tsr_mem_free(c);
    *copies_p = NULL;
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

        for (int part = 0; part < PARTS && place >= 0; ++part) {
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
            memory[PARTS * e + part] = stack + (size_t)(at * part_elements(self, part)) * element;
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
    for (int part = 0; part < PARTS; ++part) {
        bytes[part] = part_elements(self, part) *
                      (int64_t)(of_gradients ? sizeof(float) : tsr_dtype_bytes(pass->dtype));
        self->moved_bytes += copies * bytes[part];
    }
    return (tsr_sparse_call){.holding = holding,
                             .parts = PARTS,
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
    TSR_TRY(tsr_plan_holdings(c->planner,
                              self->spread->owner + (int64_t)self->base.index * c->experts,
                              c->predicted, &self->holders));
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
            c->predicted[e] = (int64_t)counts[l * c->experts + e];
        }
        tsr_load_history_push(c->history, (int)l, c->predicted);
    }
}

tsr_status moe_copies_open(moe_layer *self)
{
    const moe_copies *c = self->spread->copies;
    void *block = NULL;

    TSR_TRY(tsr_plan_create(c->planner, &self->holders));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, (int64_t)c->experts * c->ranks, sizeof *self->place,
                                &block));
    self->place = block;
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, c->experts, sizeof *self->turn, &block));
    self->turn = block;
    return TSR_OK;
}

void moe_copies_close(moe_layer *self)
{
    tsr_plan_destroy(&self->holders);
    tsr_mem_free(self->place);
    tsr_mem_free(self->turn);
}
