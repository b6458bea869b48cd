/* Experts on several ranks: lanes of the tokens, what is kept here for others, and the way home. */
#include "parallel/moe_impl.h"

#include <inttypes.h>

tsr_status tsr_moe_spread_create(const tsr_stage_options *options, tsr_moe_spread **out)
{
    const tsr_group *group = options->experts;
    const bool in_stages = options->dispatch != TSR_DISPATCH_FLAT && group->host.rail != NULL;
    tsr_dispatch_options dispatch = tsr_group_dispatch(group, in_stages);
    tsr_status st = TSR_OK;
    void *block = NULL;

    *out = NULL;
    TSR_CHECK(
        options->dispatch != TSR_DISPATCH_TWO_STAGE || in_stages, TSR_ERR_ARG,
        "parallel.dispatch = two_stage needs an expert group over several nodes with the same "
        "number of its ranks, more than one, and the same planes on each: set dispatch = auto");
    TSR_CHECK(options->dispatch_chunks <= TSR_DISPATCH_CHUNKS_MAX, TSR_ERR_ARG,
              "parallel.dispatch_chunks = %" PRId64 ", at most %d", options->dispatch_chunks,
              TSR_DISPATCH_CHUNKS_MAX);
    dispatch.width = options->config->hidden_size;
    dispatch.top_k = (int)options->config->num_experts_per_tok;
    dispatch.dtype = options->dtype;
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof(tsr_moe_spread), &block));
    tsr_moe_spread *spread = block;
    spread->device = options->device;
    spread->owner = options->owner;
    spread->experts = (int)options->config->num_experts;
    spread->ranks = tsr_comm_size(group->flat);
    spread->chunks = options->dispatch_chunks > 1 ? (int)options->dispatch_chunks : 1;
    TSR_TRY_GOTO(moe_beside_create(options, &spread->beside), err_free);
    dispatch.device = spread->beside != NULL ? spread->beside->device : options->device;
    spread->even = moe_room_even(options);
    TSR_TRY_GOTO(tsr_dispatch_create(&dispatch, &spread->dispatch), err_free);
    if (options->placement != TSR_PLACEMENT_EP) {
        TSR_TRY_GOTO(moe_copies_create(options, &spread->copies), err_free);
    }
    *out = spread;
    return TSR_OK;

err_free:
    tsr_moe_spread_destroy(&spread);
    return st;
}

int tsr_moe_spread_ranks(const tsr_moe_spread *spread)
{
    return spread != NULL ? spread->ranks : 1;
}

void tsr_moe_spread_destroy(tsr_moe_spread **spread_p)
{
    tsr_moe_spread *spread = *spread_p;

    if (spread == NULL) {
        return;
    }
    tsr_growing_free_device(spread->device, &spread->scratch);
    tsr_growing_free_staging(spread->device, &spread->chosen);
    tsr_growing_free_staging(spread->device, &spread->lanes);
    tsr_growing_free_staging(spread->device, &spread->numbers);
    tsr_growing_free_staging(spread->device, &spread->unit_numbers);
    moe_copies_destroy(&spread->copies);
    tsr_dispatch_destroy(&spread->dispatch);
    moe_beside_destroy(&spread->beside, spread->device);
    tsr_mem_free(spread);
    *spread_p = NULL;
}

void moe_spread_set_lanes(moe_layer *self)
{
    const int32_t *owner = self->spread->owner + (int64_t)self->base.index * self->experts;

    for (int e = 0; e < self->experts; ++e) {
        int place = 0; /* a rank holds its experts in ascending order */

        for (int before = 0; before < e; ++before) {
            place += owner[before] == owner[e];
        }
        self->lane_of[e] = tsr_lane(owner[e], place);
    }
}

tsr_status moe_spread_open(moe_layer *self, tsr_moe_spread *spread)
{
    void *block = NULL;

    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, self->experts, sizeof(int32_t), &block));
    self->spread = spread;
    self->lane_of = block;
    moe_spread_set_lanes(self);
    for (int chunk = 0; chunk < spread->chunks; ++chunk) {
        TSR_TRY(tsr_dispatch_plan_create(spread->dispatch, &self->plans[chunk]));
    }
    return spread->copies != NULL ? moe_copies_open(self) : TSR_OK;
}

void moe_spread_close(moe_layer *self)
{
    moe_copies_close(self);
    for (int chunk = 0; chunk < TSR_DISPATCH_CHUNKS_MAX; ++chunk) {
        tsr_dispatch_plan_destroy(&self->plans[chunk]);
    }
    tsr_growing_free_device(self->device, &self->kept);
    tsr_mem_free(self->lane_of);
}

/* The gate's choice where the host can read it. */
static tsr_status fetch_choice(const moe_layer *self, const tsr_pass *pass, const moe_saved *at,
                               void *saved, const int32_t **index, const float **weight)
{
    const int64_t count = tsr_pass_tokens(pass) * self->top_k;
    const size_t bytes = (size_t)count * sizeof(int32_t);
    tsr_growing *chosen = &self->spread->chosen;

    *index = tsr_place_at(saved, at->index);
    *weight = tsr_place_at(saved, at->weight);
    if (!tsr_device_is_host(self->device) && count > 0) {
        TSR_TRY(tsr_growing_staging(self->device, TSR_MEM_OTHER, 2 * bytes, chosen));
        TSR_TRY(tsr_device_copy(self->device, chosen->memory, *index, bytes,
                                TSR_COPY_DEVICE_TO_HOST, pass->stream));
        TSR_TRY(tsr_device_copy(self->device, tsr_place_at(chosen->memory, bytes), *weight, bytes,
                                TSR_COPY_DEVICE_TO_HOST, pass->stream));
        *index = chosen->memory;
        *weight = tsr_place_at(chosen->memory, bytes);
    }
    return tsr_stream_wait(pass->stream);
}

tsr_status moe_spread_rows(moe_layer *self, const tsr_pass *pass, int chunk, moe_rows *rows_out)
{
    const tsr_dispatch_view v = tsr_dispatch_plan_view(self->plans[chunk]);
    moe_arena all = {0}, at = {0};
    void *base = NULL, *shared = NULL;

    for (int i = 0; i < moe_chunks(self); ++i) {
        const tsr_dispatch_view other = tsr_dispatch_plan_view(self->plans[i]);

        moe_arena_add(&all, self->base.config, pass->dtype, other.units, other.rows);
        at = i == chunk ? all : at;
    }
    /* the first chunk makes room for all: what grows loses what it holds */
    TSR_TRY(tsr_growing_device(self->device, TSR_MEM_ACTIVATIONS, all.kept_bytes, &self->kept));
    TSR_TRY(tsr_growing_device(self->device, TSR_MEM_WORKSPACE, all.scratch_bytes,
                               &self->spread->scratch));
    moe_room_note(self, &all);
    base = self->kept.memory;
    shared = self->spread->scratch.memory;
    *rows_out = (moe_rows){.chunk = chunk,
                           .units = v.units,
                           .rows = v.rows,
                           .x = tsr_place_at(base, at.x),
                           .offsets = v.offsets,
                           .token_of = v.token_of,
                           .row_of = v.row_of,
                           .row_weight = v.row_weight,
                           .gate_up = tsr_place_at(base, at.gate_up),
                           .copies = tsr_place_at(shared, at.copies),
                           .h = tsr_place_at(shared, at.h),
                           .dy = tsr_place_at(shared, at.dy),
                           .dh = tsr_place_at(shared, at.dh),
                           .drow_weight = tsr_place_at(shared, at.drow_weight),
                           .unit = tsr_place_at(shared, at.unit),
                           .sum = tsr_place_at(shared, at.sum),
                           .numbers = tsr_place_at(shared, at.numbers)};
    return TSR_OK;
}

/* One way a chunk: all before the first rows move, so that no memory grows beside the moves. */
static tsr_status make_ways(moe_layer *self, const tsr_pass *pass, const int32_t *lanes,
                            const float *weight)
{
    for (int chunk = 0; chunk < moe_chunks(self); ++chunk) {
        int64_t begin = 0, end = 0;

        moe_chunk_tokens(self, pass, chunk, &begin, &end);
        TSR_TRY(tsr_dispatch_make(self->spread->dispatch, self->plans[chunk],
                                  lanes + begin * self->top_k, weight + begin * self->top_k,
                                  end - begin, moe_all_places(self), pass->stream));
    }
    return TSR_OK;
}

tsr_status moe_spread_plan(moe_layer *self, const tsr_pass *pass, const moe_saved *at, void *saved)
{
    tsr_moe_spread *spread = self->spread;
    const int64_t count = tsr_pass_tokens(pass) * self->top_k;
    const int32_t *index = NULL;
    const float *weight = NULL;

    TSR_TRY(fetch_choice(self, pass, at, saved, &index, &weight));
    TSR_TRY(tsr_growing_staging(self->device, TSR_MEM_OTHER, (size_t)count * sizeof(int32_t),
                                &spread->lanes));
    int32_t *lanes = spread->lanes.memory;
    for (int64_t i = 0; i < count && spread->copies == NULL; ++i) {
        lanes[i] = self->lane_of[index[i]];
    }
    if (spread->copies != NULL) {
        TSR_TRY(moe_copies_lanes(self, pass, index, count, lanes));
    }
    return make_ways(self, pass, lanes, weight);
}

static tsr_status bring(moe_layer *self, const tsr_pass *pass, int chunk, const void *tokens,
                        bool are_gradients)
{
    const size_t element = are_gradients ? sizeof(float) : tsr_dtype_bytes(pass->dtype);
    int64_t begin = 0, end = 0;
    moe_rows r = {0};

    if (chunk >= moe_chunks(self)) {
        return TSR_OK;
    }
    moe_chunk_tokens(self, pass, chunk, &begin, &end);
    TSR_TRY(moe_spread_rows(self, pass, chunk, &r));
    const size_t before = (size_t)(begin * self->base.config->hidden_size) * element;
    const moe_move move = {.from = (const char *)tokens + before,
                           .from_f32 = are_gradients,
                           .to = are_gradients ? r.unit : r.x};
    return moe_chunk_start(self, pass, chunk, &move);
}

tsr_status moe_spread_bring(moe_layer *self, const tsr_pass *pass, int chunk, const void *x)
{
    return bring(self, pass, chunk, x, false);
}

tsr_status moe_spread_bring_gradients(moe_layer *self, const tsr_pass *pass, int chunk,
                                      const float *dh)
{
    return bring(self, pass, chunk, dh, true);
}

tsr_status moe_spread_combine(moe_layer *self, const tsr_pass *pass, const moe_rows *r,
                              const float *base, float *out)
{
    const int64_t width = self->base.config->hidden_size;
    int64_t begin = 0, end = 0;

    TSR_TRY(moe_unpermute(self, pass, r, NULL, r->sum));
    if (pass->dtype != TSR_F32) {
        TSR_TRY(tsr_op_convert(pass->device, r->sum, TSR_F32, r->unit, pass->dtype,
                               r->units * width, pass->stream));
    }
    moe_chunk_tokens(self, pass, r->chunk, &begin, &end);
    const moe_move move = {
        .is_home = true, .from = r->unit, .base = base + begin * width, .to = out + begin * width};
    return moe_chunk_start(self, pass, r->chunk, &move);
}

/* All chunks' numbers, one behind the other, where the host can read them: values [U,K] each. */
static tsr_status fetch_numbers(moe_layer *self, const tsr_pass *pass, float **values_out)
{
    tsr_growing *numbers = &self->spread->unit_numbers;
    int64_t all = 0, at = 0;

    for (int chunk = 0; chunk < moe_chunks(self); ++chunk) {
        all += tsr_dispatch_plan_view(self->plans[chunk]).units * self->top_k;
    }
    TSR_TRY(tsr_growing_staging(self->device, TSR_MEM_OTHER, (size_t)all * sizeof(float), numbers));
    *values_out = numbers->memory;
    for (int chunk = 0; chunk < moe_chunks(self); ++chunk) {
        moe_rows r = {0};

        TSR_TRY(moe_spread_rows(self, pass, chunk, &r));
        const int64_t count = r.units * self->top_k;
        TSR_TRY(tsr_op_gather_f32(pass->device, r.drow_weight, r.row_of, count, r.numbers,
                                  pass->stream));
        TSR_TRY(tsr_device_copy(self->device, *values_out + at, r.numbers,
                                (size_t)count * sizeof(float), TSR_COPY_DEVICE_TO_HOST,
                                pass->stream));
        at += count;
    }
    return tsr_stream_wait(pass->stream);
}

tsr_status moe_spread_weights(moe_layer *self, const tsr_pass *pass, float *dweight)
{
    tsr_moe_spread *spread = self->spread;
    const size_t bytes = (size_t)(tsr_pass_tokens(pass) * self->top_k) * sizeof(float);
    float *values = NULL;

    TSR_TRY(fetch_numbers(self, pass, &values));
    TSR_TRY(tsr_growing_staging(self->device, TSR_MEM_OTHER, bytes, &spread->numbers));
    float *numbers = spread->numbers.memory;
    for (int chunk = 0; chunk < moe_chunks(self); ++chunk) {
        int64_t begin = 0, end = 0;

        moe_chunk_tokens(self, pass, chunk, &begin, &end);
        TSR_TRY(tsr_dispatch_return(spread->dispatch, self->plans[chunk], values,
                                    numbers + begin * self->top_k));
        values += tsr_dispatch_plan_view(self->plans[chunk]).units * self->top_k;
    }
    /* the staging memory is next written in another layer's turn, after a wait */
    return tsr_device_copy(self->device, dweight, numbers, bytes, TSR_COPY_HOST_TO_DEVICE,
                           pass->stream);
}
