/* Moving units between the ranks of a stage. */
#include "collectives/dispatch/dispatch_impl.h"

#include <string.h>

/* Byte ranges: what lies by sends is cut by send_begin, what lies by receives by receive_begin. */
static tsr_exchange list(const stage *s, const way *w, const void *from, void *to,
                         size_t item_bytes, bool is_back, tsr_traffic purpose)
{
    const int64_t *out = is_back ? w->receive_begin : w->send_begin;
    const int64_t *in = is_back ? w->send_begin : w->receive_begin;
    const int64_t bytes = (int64_t)item_bytes;
    tsr_segment *send = s->segments, *receive = s->segments + s->size;

    for (int peer = 0; peer < s->size; ++peer) {
        const int64_t factor = peer == s->rank ? 0 : bytes;

        send[peer] = (tsr_segment){out[peer] * bytes, (out[peer + 1] - out[peer]) * factor};
        receive[peer] = (tsr_segment){in[peer] * bytes, (in[peer + 1] - in[peer]) * factor};
    }
    return (tsr_exchange){.send = from,
                          .receive = to,
                          .send_segments = send,
                          .receive_segments = receive,
                          .send_begin = s->one_each,
                          .receive_begin = s->one_each,
                          .purpose = purpose};
}

/* What stays here: where from, where to, how much. */
typedef struct own_part {
    size_t from, to, bytes;
} own_part;

static own_part find_own(const stage *s, const way *w, size_t item_bytes, bool is_back)
{
    const int64_t out = (is_back ? w->receive_begin : w->send_begin)[s->rank];
    const int64_t in = (is_back ? w->send_begin : w->receive_begin)[s->rank];
    const int64_t count = w->send_begin[s->rank + 1] - w->send_begin[s->rank];

    return (own_part){(size_t)out * item_bytes, (size_t)in * item_bytes,
                      (size_t)count * item_bytes};
}

tsr_status move_on_host(const stage *s, const way *w, const void *from, void *to, size_t item_bytes,
                        bool is_back, tsr_traffic purpose)
{
    const own_part own = find_own(s, w, item_bytes, is_back);
    const tsr_exchange what = list(s, w, from, to, item_bytes, is_back, purpose);

    if (own.bytes > 0) {
        memcpy((char *)to + own.to, (const char *)from + own.from, own.bytes);
    }
    return tsr_comm_exchange(s->host, &what);
}

static tsr_status stage_rows(tsr_dispatch *d, const void *from, void *to, size_t bytes,
                             tsr_copy_kind kind, tsr_stream *stream)
{
    return bytes == 0 ? TSR_OK : tsr_device_copy(d->options.device, to, from, bytes, kind, stream);
}

tsr_status move_rows(tsr_dispatch *d, const stage *s, const way *w, const void *from, void *to,
                     bool is_back, tsr_traffic purpose, tsr_stream *stream)
{
    tsr_device *device = d->options.device;
    const size_t row = (size_t)d->options.width * tsr_dtype_bytes(d->options.dtype);
    const size_t out = (size_t)(is_back ? w->receives : w->sends) * row;
    const size_t in = (size_t)(is_back ? w->sends : w->receives) * row;
    const own_part own = find_own(s, w, row, is_back);

    tsr_traffic_add(purpose, TSR_LINK_SELF, (int64_t)own.bytes);
    if (tsr_device_is_host(device)) {
        TSR_TRY(tsr_stream_wait(stream));
        return move_on_host(s, w, from, to, row, is_back, purpose);
    }
    if (tsr_comm_takes_device_memory(s->rows)) {
        const tsr_exchange what = list(s, w, from, to, row, is_back, purpose);

        TSR_TRY(stage_rows(d, (const char *)from + own.from, (char *)to + own.to, own.bytes,
                           TSR_COPY_ON_DEVICE, stream));
        return tsr_comm_exchange_on(s->rows, &what, stream);
    }
    TSR_TRY(host_room(device, &d->staged[0], out));
    TSR_TRY(host_room(device, &d->staged[1], in));
    TSR_TRY(stage_rows(d, from, d->staged[0].memory, out, TSR_COPY_DEVICE_TO_HOST, stream));
    TSR_TRY(tsr_stream_wait(stream));
    TSR_TRY(move_on_host(s, w, d->staged[0].memory, d->staged[1].memory, row, is_back, purpose));
    TSR_TRY(stage_rows(d, d->staged[1].memory, to, in, TSR_COPY_HOST_TO_DEVICE, stream));
    return tsr_stream_wait(stream); /* the next move takes the same staging memory */
}
