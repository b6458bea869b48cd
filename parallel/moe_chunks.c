/* Chunks of a pass's tokens, whose rows travel beside the experts' products.
 *
 *   this thread  rows 0 | experts 0     | experts 1      | experts 2 | home 2
 *   beside it           | rows 1        | home 0, rows 2 | home 1    |
 *
 * On the host a worker moves them, with a device of one thread for the copies and sums that this
 * takes; elsewhere a stream of its own. Backward has the same picture twice: gradients of the
 * outputs come under the first product, gradients of the inputs leave under the second.
 *
 * The ways of all chunks are planned, and memory is taken, before the first rows move. Weight
 * gradients are added up chunk by chunk, in ascending order: a run with chunks repeats itself bit
 * for bit, and equals one without them up to rounding. */
#include "parallel/moe_impl.h"

static tsr_status create_host(moe_beside *b, const tsr_device *device)
{
    TSR_TRY(tsr_device_open(tsr_device_name(device), 1, &b->device));
    return tsr_worker_create(&b->worker);
}

static tsr_status create_events(moe_beside *b, int chunks)
{
    TSR_TRY(tsr_event_create(b->device, &b->computed));
    for (int chunk = 0; chunk < chunks; ++chunk) {
        TSR_TRY(tsr_event_create(b->device, &b->moves[false][chunk].moved));
        TSR_TRY(tsr_event_create(b->device, &b->moves[true][chunk].moved));
    }
    return TSR_OK;
}

tsr_status moe_beside_create(const tsr_stage_options *options, moe_beside **out)
{
    tsr_status st = TSR_OK;
    void *block = NULL;

    *out = NULL;
    if (options->dispatch_chunks <= 1) {
        return TSR_OK;
    }
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, sizeof(moe_beside), &block));
    moe_beside *b = block;
    if (tsr_device_is_host(options->device)) {
        TSR_TRY_GOTO(create_host(b, options->device), err_destroy);
    } else {
        b->device = options->device;
        TSR_TRY_GOTO(create_events(b, (int)options->dispatch_chunks), err_destroy);
    }
    TSR_TRY_GOTO(tsr_stream_create(b->device, &b->stream), err_destroy);
    *out = b;
    return TSR_OK;

err_destroy:
    moe_beside_destroy(&b, options->device);
    return st;
}

void moe_beside_end(moe_beside *beside)
{
    const bool works = beside != NULL && beside->worker != NULL;

    for (int i = 0; works && i < 2 * TSR_DISPATCH_CHUNKS_MAX; ++i) {
        if (tsr_worker_wait(beside->worker, &beside->moves[i % 2][i / 2].work) != TSR_OK) {
            tsr_log(TSR_LOG_DEBUG, "rows of experts: %s", tsr_error_message());
        }
    }
}

void moe_beside_destroy(moe_beside **beside_p, const tsr_device *device)
{
    moe_beside *b = *beside_p;

    if (b == NULL) {
        return;
    }
    tsr_worker_destroy(&b->worker);
    for (int i = 0; i < 2 * TSR_DISPATCH_CHUNKS_MAX; ++i) {
        tsr_event_destroy(&b->moves[i % 2][i / 2].moved);
    }
    tsr_event_destroy(&b->computed);
    tsr_stream_destroy(&b->stream);
    if (b->device != device) {
        tsr_device_close(&b->device);
    }
    tsr_mem_free(b);
    *beside_p = NULL;
}

int moe_chunks(const moe_layer *self)
{
    return self->spread != NULL ? self->spread->chunks : 1;
}

void moe_chunk_tokens(const moe_layer *self, const tsr_pass *pass, int chunk, int64_t *begin,
                      int64_t *end)
{
    tsr_batch_share(tsr_pass_tokens(pass), moe_chunks(self), chunk, begin, end);
}

static tsr_status move_rows(const moe_move *m)
{
    tsr_dispatch *dispatch = m->spread->dispatch;

    return m->is_home
               ? tsr_dispatch_combine(dispatch, m->plan, m->from, m->base, m->to, m->stream)
               : tsr_dispatch_rows(dispatch, m->plan, m->from, m->from_f32, m->to, m->stream);
}

/* After a failure the moves behind it end at once: one time-out is enough. */
static tsr_status move_beside(void *argument)
{
    const moe_move *m = argument;
    moe_beside *b = m->spread->beside;

    TSR_CHECK(!b->has_failed, TSR_ERR_STATE, "rows of an earlier chunk did not get through");
    const tsr_status st = move_rows(m);
    b->has_failed = st != TSR_OK;
    return st;
}

/* Queue it behind what has been computed so far. */
static tsr_status queue(moe_beside *b, const tsr_pass *pass, moe_move *m)
{
    TSR_TRY(tsr_event_record(b->computed, pass->stream));
    TSR_TRY(tsr_stream_wait_event(b->stream, b->computed));
    TSR_TRY(move_beside(m));
    return tsr_event_record(m->moved, b->stream);
}

tsr_status moe_chunk_start(moe_layer *self, const tsr_pass *pass, int chunk, const moe_move *what)
{
    moe_beside *b = self->spread->beside;
    moe_move move = *what;

    move.spread = self->spread;
    move.plan = self->plans[chunk];
    move.stream = b != NULL ? b->stream : pass->stream;
    if (b == NULL) {
        return move_rows(&move);
    }
    moe_move *m = &b->moves[what->is_home][chunk];
    move.moved = m->moved;
    move.work = (tsr_worker_call){.run = move_beside,
                                  .argument = m,
                                  .name = what->is_home ? "combine beside" : "dispatch beside",
                                  .number = self->base.index};
    *m = move;
    return b->worker != NULL ? tsr_worker_submit(b->worker, &m->work) : queue(b, pass, m);
}

tsr_status moe_chunk_wait(moe_layer *self, const tsr_pass *pass, int chunk, bool is_home)
{
    moe_beside *b = self->spread->beside;

    if (b == NULL) {
        return TSR_OK;
    }
    moe_move *m = &b->moves[is_home][chunk];
    const int64_t span = tsr_trace_begin();
    const tsr_status st = b->worker != NULL ? tsr_worker_wait(b->worker, &m->work)
                                            : tsr_stream_wait_event(pass->stream, m->moved);
    tsr_trace_end(TSR_TRACE_EXCHANGE, "wait for rows", self->base.index, span);
    return st;
}
