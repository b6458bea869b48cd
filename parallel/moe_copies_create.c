/* Memory and threads that copies of experts need: taken with the stage, for all its layers. */
#include "parallel/moe_impl.h"

/* Where owners change places instead, there are no copies. */
static int64_t slots_of(const tsr_stage_options *options, int ranks)
{
    const int64_t experts = options->config->num_experts;
    const int64_t half = experts / ranks / 2 > 0 ? experts / ranks / 2 : 1;
    const int64_t wanted = options->copies->slots > 0 ? options->copies->slots : half;

    if (options->placement == TSR_PLACEMENT_SWAP) {
        return 0;
    }
    return wanted < experts ? wanted : experts;
}

/* Slots of weights: one set, or one a layer. */
static size_t set_bytes(const tsr_stage_options *options, int64_t slots)
{
    const tsr_model_config *config = options->config;

    return (size_t)(3 * slots * config->hidden_size * config->moe_intermediate_size) *
           tsr_dtype_bytes(options->dtype);
}

static size_t weight_bytes(const tsr_stage_options *options, int64_t slots)
{
    const int64_t sets = options->copies->rematerialize ? 1 : tsr_model_moe_layers(options->config);

    return (size_t)sets * set_bytes(options, slots);
}

/* ... and of gradients: in f32, one set. */
static size_t gradient_bytes(const tsr_stage_options *options, int64_t slots)
{
    return set_bytes(options, slots) / tsr_dtype_bytes(options->dtype) * sizeof(float);
}

void tsr_stage_copies_bytes(const tsr_stage_options *options, size_t *weights_out,
                            size_t *gradients_out)
{
    const bool are_copied = options->expert_ranks > 1 && options->placement != TSR_PLACEMENT_EP;
    const int64_t slots = are_copied ? slots_of(options, options->expert_ranks) : 0;

    *weights_out = are_copied ? weight_bytes(options, slots) : 0;
    *gradients_out = are_copied && options->train ? gradient_bytes(options, slots) : 0;
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
        .window = (int)options->copies->window,
        .calibrates = options->copies->calibrate,
        .fill_tokens = fill_tokens(c, options)};
    const tsr_status st = tsr_planner_create(&plan, &c->planner);
    tsr_mem_free(node);
    return st;
}

static tsr_status create_transport(moe_copies *c, const tsr_stage_options *options)
{
    const bool on_device = !tsr_device_is_host(options->device);
    const tsr_sparse_options sparse = {.max_chunks = c->experts,
                                       .max_parts = MOE_PARTS,
                                       .device = on_device ? options->device : NULL};

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

static tsr_status create_slots(moe_copies *c, const tsr_stage_options *options)
{
    c->set_bytes = set_bytes(options, c->slots);
    TSR_TRY(tsr_device_alloc(options->device, TSR_MEM_WEIGHTS, weight_bytes(options, c->slots),
                             &c->weights));
    return options->train
               ? tsr_device_alloc(options->device, TSR_MEM_GRADIENTS,
                                  gradient_bytes(options, c->slots), (void **)&c->gradients)
               : TSR_OK;
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
        TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, (int64_t)MOE_PARTS * c->experts,
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
    c->shares = options->shares > 0 ? options->shares : 1;
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

/* ---- one layer's own ----------------------------------------------------------------------- */

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
