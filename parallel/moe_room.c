/* Room for what dispatch brings: planned as a multiple of what even loads need, layer by layer, and
 * taken before it is needed; where more comes, the blocks grow.
 *
 * What a rank needs grows with the rows that come to it, and by less with the units that these are
 * copies of: r times the rows of even loads need at most r times their memory. */
#include "parallel/moe_impl.h"
#include "parallel/stage_impl.h"

#include <math.h>

void moe_arena_add(moe_arena *at, const tsr_model_config *config, tsr_dtype dtype, int64_t units,
                   int64_t rows)
{
    const size_t element = tsr_dtype_bytes(dtype);
    const int64_t d = config->hidden_size, f = config->moe_intermediate_size;
    size_t *kept = &at->kept_bytes, *scratch = &at->scratch_bytes;

    at->x = tsr_place(kept, units * d, element);
    at->gate_up = tsr_place(kept, rows * 2 * f, element);
    at->copies = tsr_place(scratch, rows * d, element);
    at->h = tsr_place(scratch, rows * f, element);
    at->dy = tsr_place(scratch, rows * d, element);
    at->dh = tsr_place(scratch, rows * f, element);
    at->drow_weight = tsr_place(scratch, rows, sizeof(float));
    at->unit = tsr_place(scratch, units * d, element);
    at->sum = dtype == TSR_F32 ? at->unit : tsr_place(scratch, units * d, sizeof(float));
    at->numbers = tsr_place(scratch, units * config->num_experts_per_tok, sizeof(float));
}

/* ---- even loads ------------------------------------------------------------------------------ */

/* Of the tokens of `ranks` ranks, those that have one of their experts among `places` of them. */
static int64_t units_at(const tsr_stage_options *options, int64_t ranks, int64_t places)
{
    const int64_t tokens = options->micro_batch * options->seq_len * ranks;
    const int64_t experts = options->config->num_experts;
    double missed = 1.0;

    for (int64_t i = 0; i < options->config->num_experts_per_tok; ++i) {
        const double left = (double)(experts - i);

        missed *= left > (double)places ? 1.0 - (double)places / left : 0.0;
    }
    return (int64_t)((double)tokens * (1.0 - missed));
}

/* Experts of the rank that has most. */
static int64_t most_places(const tsr_stage_options *options)
{
    return (options->config->num_experts + options->expert_ranks - 1) / options->expert_ranks;
}

static int64_t chunks_of(const tsr_stage_options *options)
{
    return options->dispatch_chunks > 1 ? options->dispatch_chunks : 1;
}

moe_arena moe_room_even(const tsr_stage_options *options)
{
    const tsr_model_config *config = options->config;
    const int64_t ranks = options->expert_ranks, places = most_places(options);
    const int64_t chunks = chunks_of(options), units = units_at(options, ranks, places);
    const int64_t tokens = options->micro_batch * options->seq_len * ranks;
    const int64_t rows = tokens * config->num_experts_per_tok * places / config->num_experts;
    moe_arena at = {0};

    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        /* an expert's rows are padded by half a block in the mean */
        moe_arena_add(&at, config, options->dtype, units / chunks,
                      rows / chunks + places * (TSR_ROW_ALIGN - 1) / 2);
    }
    return at;
}

/* ---- planned loads --------------------------------------------------------------------------- */

static double room_of(const tsr_stage_options *options, int64_t layer)
{
    return options->room != NULL && options->room[layer] > 1.0 ? options->room[layer] : 1.0;
}

static size_t times(size_t bytes, double ratio)
{
    return (size_t)ceil((double)bytes * ratio);
}

static double largest_room(const tsr_stage_options *options)
{
    double largest = 1.0;

    for (int64_t l = options->config->first_k_dense_replace; l < options->config->num_hidden_layers;
         ++l) {
        largest = fmax(largest, room_of(options, l));
    }
    return largest;
}

/* Dispatch gathers what it sends, a chunk at a time. In one stage that is up to K rows a token,
 * whatever the loads, with nothing to spare; in two, what came over the rail goes on, more to and
 * on fuller nodes. */
static tsr_dispatch_room dispatch_room(const tsr_stage_options *options)
{
    const tsr_group *group = options->experts;
    const int64_t ranks = options->expert_ranks, places = most_places(options);
    const int64_t k = options->config->num_experts_per_tok, chunks = chunks_of(options);
    const int64_t tokens = (options->micro_batch * options->seq_len + chunks - 1) / chunks;
    const double most = largest_room(options) / (double)chunks;

    if (group == NULL || group->host.rail == NULL || options->dispatch == TSR_DISPATCH_FLAT) {
        const int64_t whole = tokens * (k < ranks ? k : ranks), spare = TSR_GROWING_SPARE;

        return (tsr_dispatch_room){.sent = (spare * whole + spare) / (spare + 1)};
    }
    const int64_t nodes = tsr_comm_size(group->host.rail), on_node = places * (ranks / nodes);

    return (tsr_dispatch_room){.sent = (int64_t)(most * (double)units_at(options, ranks, places)),
                               .met = (int64_t)(most * (double)units_at(options, nodes, on_node))};
}

size_t moe_spread_bytes(const tsr_stage_options *options)
{
    const tsr_model_config *config = options->config;
    const moe_arena even = moe_room_even(options);
    size_t bytes = tsr_growing_room(times(even.scratch_bytes, largest_room(options))) +
                   tsr_dispatch_bytes(config->hidden_size, options->dtype, dispatch_room(options));

    for (int64_t l = config->first_k_dense_replace; l < config->num_hidden_layers; ++l) {
        bytes += tsr_growing_room(times(even.kept_bytes, room_of(options, l)));
    }
    return bytes;
}

tsr_status tsr_stage_make_room(tsr_stage *stage)
{
    const tsr_stage_options *options = &stage->options;
    tsr_moe_spread *spread = stage->spread;

    if (spread == NULL) {
        return TSR_OK;
    }
    TSR_TRY(tsr_dispatch_reserve(spread->dispatch, dispatch_room(options)));
    TSR_TRY(tsr_growing_fit(options->device, TSR_MEM_WORKSPACE,
                            times(spread->even.scratch_bytes, largest_room(options)),
                            &spread->scratch));
    for (int64_t l = options->config->first_k_dense_replace; l < options->config->num_hidden_layers;
         ++l) {
        moe_layer *self = (moe_layer *)stage->layers[2 * l + 1];

        TSR_TRY(tsr_growing_fit(options->device, TSR_MEM_ACTIVATIONS,
                                times(spread->even.kept_bytes, room_of(options, l)), &self->kept));
    }
    return TSR_OK;
}

/* ---- loads that came ------------------------------------------------------------------------- */

void moe_room_note(moe_layer *self, const moe_arena *at)
{
    const moe_arena *even = &self->spread->even;
    const double kept = (double)at->kept_bytes / (double)even->kept_bytes;
    const double scratch = (double)at->scratch_bytes / (double)even->scratch_bytes;

    self->met = fmax(self->met, fmax(kept, scratch));
}

bool tsr_stage_has_outgrown(const tsr_stage *stage)
{
    const tsr_stage_options *options = &stage->options;
    const tsr_moe_spread *spread = stage->spread;

    if (spread == NULL) {
        return false;
    }
    bool has = spread->scratch.room >
               tsr_growing_room(times(spread->even.scratch_bytes, largest_room(options)));
    for (int64_t l = options->config->first_k_dense_replace; l < options->config->num_hidden_layers;
         ++l) {
        const moe_layer *self = (const moe_layer *)stage->layers[2 * l + 1];

        has = has || self->kept.room >
                         tsr_growing_room(times(spread->even.kept_bytes, room_of(options, l)));
    }
    return has;
}

void tsr_stage_met(tsr_stage *stage, double *ratios_out)
{
    const tsr_model_config *config = stage->options.config;

    for (int64_t l = 0; l < config->num_hidden_layers; ++l) {
        ratios_out[l] = 0.0;
        if (stage->spread != NULL && l >= config->first_k_dense_replace) {
            moe_layer *self = (moe_layer *)stage->layers[2 * l + 1];

            ratios_out[l] = self->met;
            self->met = 0.0;
        }
    }
}
