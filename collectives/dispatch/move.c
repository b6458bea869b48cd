/* Rows and numbers on the ways of a plan, out and home. */
#include "collectives/dispatch/dispatch_impl.h"

#include <string.h>

/* Copies of units' rows in the order that they are sent in. */
static tsr_status gather_sends(tsr_dispatch *d, const way *w, const void *units, bool from_f32,
                               tsr_stream *stream)
{
    const tsr_permute_args args = {.tokens = units,
                                   .rows = d->sent.memory,
                                   .token_of = mirror_on_device(&w->send_unit),
                                   .offsets = mirror_on_device(&w->bounds),
                                   .experts = 1,
                                   .width = d->options.width,
                                   .from_f32 = from_f32,
                                   .dtype = d->options.dtype};

    return w->sends == 0 ? TSR_OK : tsr_op_permute(d->options.device, &args, stream);
}

tsr_status tsr_dispatch_rows(tsr_dispatch *dispatch, tsr_dispatch_plan *plan, const void *tokens,
                             bool from_f32, void *units_out, tsr_stream *stream)
{
    tsr_dispatch *d = dispatch;
    const void *rows = tokens;

    for (int i = 0; i < d->stages; ++i) {
        void *to = i + 1 < d->stages ? d->met.memory : units_out;

        TSR_TRY(gather_sends(d, &plan->way[i], rows, from_f32 && i == 0, stream));
        TSR_TRY(move_rows(d, &d->stage[i], &plan->way[i], d->sent.memory, to, false,
                          TSR_TRAFFIC_DISPATCH, stream));
        rows = to;
    }
    return TSR_OK;
}

/* out [units,D] f32 = base + what has come back for each unit, in the order of destinations. */
static tsr_status sum_sends(tsr_dispatch *d, const way *w, const float *base, float *out,
                            tsr_stream *stream)
{
    const tsr_unpermute_args args = {.rows = d->sent.memory,
                                     .row_of = mirror_on_device(&w->fan),
                                     .base = base,
                                     .out = out,
                                     .tokens = w->units,
                                     .width = d->options.width,
                                     .top_k = w->fan_width,
                                     .dtype = d->options.dtype};

    return w->units == 0 ? TSR_OK : tsr_op_unpermute(d->options.device, &args, stream);
}

tsr_status tsr_dispatch_combine(tsr_dispatch *dispatch, tsr_dispatch_plan *plan, const void *units,
                                const float *base, float *out, tsr_stream *stream)
{
    tsr_dispatch *d = dispatch;
    const bool is_f32 = d->options.dtype == TSR_F32;
    const void *rows = units;

    for (int i = d->stages - 1; i >= 0; --i) {
        const way *w = &plan->way[i];

        TSR_TRY(
            move_rows(d, &d->stage[i], w, rows, d->sent.memory, true, TSR_TRAFFIC_COMBINE, stream));
        if (i == 0) {
            return sum_sends(d, w, base, out, stream);
        }
        TSR_TRY(sum_sends(d, w, NULL, is_f32 ? d->met.memory : d->sum.memory, stream));
        if (!is_f32) {
            TSR_TRY(tsr_op_convert(d->options.device, d->sum.memory, TSR_F32, d->met.memory,
                                   d->options.dtype, w->units * d->options.width, stream));
        }
        rows = d->met.memory;
    }
    return TSR_OK;
}

/* Each lane's number has come back with the send to that lane's destination. */
static void pick_numbers(const tsr_dispatch *d, const stage *s, const way *w, const slot *slots,
                         const float *sent, float *out)
{
    const int top_k = d->options.top_k;
    const int32_t *fan = w->fan.host.memory;
    int32_t to[TSR_TOP_K_MAX];

    for (int64_t u = 0; u < w->units; ++u, fan += w->fan_width) {
        const int count = way_destinations(s->destination, slots + u * top_k, top_k, to);

        for (int k = 0; k < top_k; ++k) {
            const int32_t lane = slots[u * top_k + k].lane;
            const int32_t want = lane < 0 ? -1 : s->destination[lane / TSR_LANE_PLACES];

            out[u * top_k + k] = 0.0f;
            for (int i = 0; i < count && want >= 0; ++i) {
                if (to[i] == want) {
                    out[u * top_k + k] = sent[(int64_t)fan[i] * top_k + k];
                }
            }
        }
    }
}

tsr_status tsr_dispatch_return(tsr_dispatch *dispatch, tsr_dispatch_plan *plan, const float *values,
                               float *out)
{
    tsr_dispatch *d = dispatch;
    const size_t unit_bytes = (size_t)d->options.top_k * sizeof *values;

    for (int i = d->stages - 1; i >= 0; --i) {
        const way *w = &plan->way[i];
        const slot *slots = i == 0 ? plan->first.memory : plan->way[i - 1].slots.memory;
        float *to = out;

        TSR_TRY(host_room(d->options.device, &d->sent_slots, (size_t)w->sends * unit_bytes));
        TSR_TRY(move_on_host(&d->stage[i], w, values, d->sent_slots.memory, unit_bytes, true,
                             TSR_TRAFFIC_COMBINE));
        if (i > 0) {
            TSR_TRY(host_room(d->options.device, &d->passing, (size_t)w->units * unit_bytes));
            to = d->passing.memory;
        }
        pick_numbers(d, &d->stage[i], w, slots, d->sent_slots.memory, to);
        values = to;
    }
    return TSR_OK;
}
