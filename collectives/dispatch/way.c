/* One stage's plan: which units go where, and where their copies lie. No communication. */
#include "collectives/dispatch/dispatch_impl.h"

#include <inttypes.h>
#include <string.h>

int way_destinations(const int32_t *destination, const slot *slots, int top_k, int32_t *out)
{
    int count = 0;

    for (int k = 0; k < top_k; ++k) {
        const int32_t to = slots[k].lane < 0 ? -1 : destination[slots[k].lane / TSR_LANE_PLACES];
        int at = count;

        while (at > 0 && out[at - 1] >= to) {
            --at;
        }
        if (to < 0 || (at < count && out[at] == to)) {
            continue;
        }
        memmove(out + at + 1, out + at, (size_t)(count - at) * sizeof *out);
        out[at] = to;
        ++count;
    }
    return count;
}

static void count_sends(const stage *s, way *w, const slot *slots, int top_k)
{
    int32_t to[TSR_TOP_K_MAX];

    memset(s->next, 0, (size_t)s->size * sizeof *s->next);
    for (int64_t u = 0; u < w->units; ++u) {
        const int count = way_destinations(s->destination, slots + u * top_k, top_k, to);

        for (int i = 0; i < count; ++i) {
            ++s->next[to[i]];
        }
    }
    w->send_begin[0] = 0;
    for (int peer = 0; peer < s->size; ++peer) {
        w->send_begin[peer + 1] = w->send_begin[peer] + s->next[peer];
        s->next[peer] = w->send_begin[peer];
    }
    w->sends = w->send_begin[s->size];
}

tsr_status way_plan(tsr_device *device, const stage *s, way *w, const slot *slots, int64_t units,
                    int top_k)
{
    int32_t to[TSR_TOP_K_MAX];

    w->units = units;
    w->fan_width = top_k < s->size ? top_k : s->size;
    count_sends(s, w, slots, top_k);
    TSR_CHECK(w->sends <= INT32_MAX && units <= INT32_MAX / w->fan_width, TSR_ERR_ARG,
              "%" PRId64 " units to send of %" PRId64
              ", at most %d: make train.micro_batch smaller",
              w->sends, units, INT32_MAX);
    TSR_TRY(mirror_reserve(device, &w->send_unit, (size_t)w->sends * sizeof(int32_t)));
    TSR_TRY(mirror_reserve(device, &w->fan, (size_t)(units * w->fan_width) * sizeof(int32_t)));
    TSR_TRY(mirror_reserve(device, &w->bounds, 2 * sizeof(int64_t)));
    int32_t *send_unit = w->send_unit.host.memory, *fan = w->fan.host.memory;
    int64_t *bounds = w->bounds.host.memory;
    bounds[0] = 0;
    bounds[1] = w->sends;
    for (int64_t u = 0; u < units; ++u, fan += w->fan_width) {
        const int count = way_destinations(s->destination, slots + u * top_k, top_k, to);

        for (int i = 0; i < w->fan_width; ++i) {
            fan[i] = -1;
            if (i < count) {
                fan[i] = (int32_t)s->next[to[i]]++;
                send_unit[fan[i]] = (int32_t)u;
            }
        }
    }
    return TSR_OK;
}
