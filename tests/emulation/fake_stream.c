/* Streams, events, copies. Nothing that is queued runs until somebody waits for it, and then either
 * nothing more than that (forward), or everything else first (reverse), or a random mixture: each
 * of them is an order that a GPU may choose, and a missing wait shows as wrong data in one of
 * them. */
#include "tests/emulation/fake_impl.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { STREAM_MAGIC = 0x5712ea, EVENT_MAGIC = 0xe7e27 };

/* One recording of an event: what a wait queued after it waits for. */
typedef struct ticket {
    int references;
    bool is_done;
    double time_s;
    cudaStream_t stream;
} ticket;

typedef struct entry {
    struct entry *next;
    cudaError_t (*run)(const void *arg); /* or NULL: */
    ticket *record, *wait;               /* one of them */
    _Alignas(16) unsigned char arg[];
} entry;

struct CUstream_st {
    int magic;
    entry *first, *last;
    cudaStream_t next; /* in the list of all, newest first */
};

struct CUevent_st {
    int magic;
    bool has_timing;
    ticket *last; /* NULL before the first recording */
};

static cudaStream_t all_streams;

static void ticket_release(ticket *t)
{
    if (t != NULL && --t->references == 0) {
        free(t);
    }
}

static bool is_stream(cudaStream_t stream)
{
    for (cudaStream_t s = all_streams; s != NULL; s = s->next) {
        if (s == stream) {
            return s->magic == STREAM_MAGIC;
        }
    }
    return false;
}

static entry *entry_append(cudaStream_t stream, size_t arg_bytes)
{
    entry *const made = calloc(1, sizeof *made + arg_bytes);

    if (made == NULL) {
        return NULL;
    }
    if (stream->last != NULL) {
        stream->last->next = made;
    } else {
        stream->first = made;
    }
    stream->last = made;
    return made;
}

/* ---- running
 * ---------------------------------------------------------------------------------- */

/* The first entry of a stream, or of the one that it waits for. One that is not ready stays: it
 * waits for something outside, and is run again. */
static void step(cudaStream_t stream)
{
    entry *const e = stream->first;

    if (e->wait != NULL && !e->wait->is_done) {
        step(e->wait->stream);
        return;
    }
    if (fake_fault() == cudaSuccess && e->run != NULL &&
        fake_guarded(e->run, e->arg) == cudaErrorNotReady) {
        return;
    }
    if (e->record != NULL) {
        struct timespec now;
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        e->record->is_done = true;
        e->record->time_s = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    }
    stream->first = e->next;
    if (stream->first == NULL) {
        stream->last = NULL;
    }
    ticket_release(e->record);
    ticket_release(e->wait);
    free(e);
}

static void run_until(cudaStream_t stream, const ticket *target)
{
    while (stream->first != NULL && (target == NULL || !target->is_done)) {
        step(stream);
    }
}

static bool is_reached(cudaStream_t stream, const ticket *target)
{
    return target != NULL ? target->is_done : stream->first == NULL;
}

static cudaStream_t random_busy_stream(void)
{
    uint32_t count = 0;

    for (cudaStream_t s = all_streams; s != NULL; s = s->next) {
        count += s->first != NULL;
    }
    uint32_t skip = fake_random(count);
    for (cudaStream_t s = all_streams; s != NULL; s = s->next) {
        if (s->first != NULL && skip-- == 0) {
            return s;
        }
    }
    return NULL;
}

/* Wait for target, or for all of stream. */
static cudaError_t wait_for(cudaStream_t stream, const ticket *target)
{
    fake_memory_open();
    if (fake_get_order() == FAKE_REVERSE && !is_reached(stream, target)) {
        for (cudaStream_t s = all_streams; s != NULL; s = s->next) {
            if (s != stream) {
                run_until(s, NULL);
            }
        }
    }
    while (!is_reached(stream, target)) {
        step(fake_get_order() == FAKE_RANDOM ? random_busy_stream() : stream);
    }
    fake_memory_close();
    return fake_fault();
}

cudaError_t fake_drain_all(void)
{
    for (cudaStream_t s = all_streams; s != NULL; s = s->next) {
        if (s->first != NULL) {
            (void)wait_for(s, NULL);
        }
    }
    return fake_fault();
}

/* ---- queueing ------------------------------------------------------------------------------- */

cudaError_t fake_enqueue(cudaStream_t stream, cudaError_t (*run)(const void *), const void *arg,
                         size_t bytes)
{
    cudaError_t code = fake_fault();

    fake_lock();
    if (code == cudaSuccess && !is_stream(stream)) { /* nor the default stream, NULL: see style */
        code = cudaErrorInvalidResourceHandle;
    }
    if (code == cudaSuccess) {
        entry *const e = entry_append(stream, bytes);

        if (e != NULL) {
            e->run = run;
            memcpy(e->arg, arg, bytes);
        } else {
            code = cudaErrorMemoryAllocation;
        }
    }
    fake_unlock();
    return fake_error(code);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority)
{
    cudaStream_t made = NULL;

    (void)priority;
    if (fake_fault() != cudaSuccess) {
        return fake_error(fake_fault());
    }
    if (out == NULL || flags > cudaStreamNonBlocking) {
        return fake_error(cudaErrorInvalidValue);
    }
    made = calloc(1, sizeof *made);
    if (made == NULL) {
        return fake_error(cudaErrorMemoryAllocation);
    }
    made->magic = STREAM_MAGIC;
    fake_lock();
    made->next = all_streams;
    all_streams = made;
    fake_unlock();
    *out = made;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    return cudaStreamCreateWithPriority(out, flags, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaError_t code = cudaErrorInvalidResourceHandle;

    fake_lock();
    if (is_stream(stream)) {
        cudaStream_t *link = &all_streams;

        code = stream->first != NULL ? wait_for(stream, NULL) : fake_fault();
        while (*link != stream) {
            link = &(*link)->next;
        }
        *link = stream->next;
        stream->magic = 0;
        free(stream);
    }
    fake_unlock();
    return fake_error(code);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    cudaError_t code = cudaErrorInvalidResourceHandle;

    fake_lock();
    if (is_stream(stream)) {
        code = wait_for(stream, NULL);
    }
    fake_unlock();
    return fake_error(code);
}

cudaError_t cudaDeviceSynchronize(void)
{
    fake_lock();
    const cudaError_t code = fake_drain_all();
    fake_unlock();
    return fake_error(code);
}

/* Asking moves the queue on by one entry, so that a loop that polls comes to an end. */
static cudaError_t poll(cudaStream_t stream, const ticket *target)
{
    if (is_reached(stream, target)) {
        return fake_fault();
    }
    fake_memory_open();
    step(stream);
    fake_memory_close();
    return fake_fault() != cudaSuccess ? fake_fault() : cudaErrorNotReady;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    cudaError_t code = cudaErrorInvalidResourceHandle;

    fake_lock();
    if (is_stream(stream)) {
        code = poll(stream, NULL);
    }
    fake_unlock();
    return code == cudaErrorNotReady ? code : fake_error(code);
}

/* ---- events --------------------------------------------------------------------------------- */

static bool is_event(cudaEvent_t event)
{
    return event != NULL && event->magic == EVENT_MAGIC;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    cudaEvent_t made = NULL;

    if (fake_fault() != cudaSuccess) {
        return fake_error(fake_fault());
    }
    if (out == NULL || flags > 7) {
        return fake_error(cudaErrorInvalidValue);
    }
    made = calloc(1, sizeof *made);
    if (made == NULL) {
        return fake_error(cudaErrorMemoryAllocation);
    }
    made->magic = EVENT_MAGIC;
    made->has_timing = (flags & cudaEventDisableTiming) == 0;
    *out = made;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    return cudaEventCreateWithFlags(out, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    if (!is_event(event)) {
        return fake_error(cudaErrorInvalidResourceHandle);
    }
    fake_lock();
    ticket_release(event->last);
    fake_unlock();
    event->magic = 0;
    free(event);
    return fake_error(fake_fault());
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    cudaError_t code = fake_fault();

    fake_lock();
    if (code == cudaSuccess && (!is_event(event) || !is_stream(stream))) {
        code = cudaErrorInvalidResourceHandle;
    }
    if (code == cudaSuccess) {
        ticket *const t = calloc(1, sizeof *t);
        entry *const e = t != NULL ? entry_append(stream, 0) : NULL;

        if (e != NULL) {
            *t = (ticket){.references = 2, .stream = stream};
            e->record = t;
            ticket_release(event->last);
            event->last = t;
        } else {
            free(t);
            code = cudaErrorMemoryAllocation;
        }
    }
    fake_unlock();
    return fake_error(code);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    cudaError_t code = fake_fault();

    fake_lock();
    if (code == cudaSuccess && (!is_event(event) || !is_stream(stream) || flags > 1)) {
        code = cudaErrorInvalidResourceHandle;
    }
    if (code == cudaSuccess && event->last != NULL && !event->last->is_done) {
        entry *const e = entry_append(stream, 0);

        if (e != NULL) {
            e->wait = event->last;
            ++e->wait->references;
        } else {
            code = cudaErrorMemoryAllocation;
        }
    }
    fake_unlock();
    return fake_error(code);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    cudaError_t code = cudaErrorInvalidResourceHandle;

    fake_lock();
    if (is_event(event)) {
        ticket *const t = event->last;
        code = t != NULL && !t->is_done ? wait_for(t->stream, t) : fake_fault();
    }
    fake_unlock();
    return fake_error(code);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    cudaError_t code = cudaErrorInvalidResourceHandle;

    fake_lock();
    if (is_event(event)) {
        ticket *const t = event->last;
        code = t != NULL && !t->is_done ? poll(t->stream, t) : fake_fault();
    }
    fake_unlock();
    return code == cudaErrorNotReady ? code : fake_error(code);
}

cudaError_t cudaEventElapsedTime(float *ms_out, cudaEvent_t from, cudaEvent_t to)
{
    cudaError_t code = cudaErrorInvalidResourceHandle;

    fake_lock();
    if (is_event(from) && is_event(to) && from->has_timing && to->has_timing &&
        from->last != NULL && to->last != NULL) {
        code = from->last->is_done && to->last->is_done ? fake_fault() : cudaErrorNotReady;
        *ms_out = (float)((to->last->time_s - from->last->time_s) * 1e3);
    }
    fake_unlock();
    return fake_error(code);
}

/* ---- copies --------------------------------------------------------------------------------- */

typedef struct copy_work {
    void *to;
    const void *from; /* NULL: the bytes lie behind this struct */
    size_t bytes;
    int value; /* of a fill */
} copy_work;

static cudaError_t run_copy(const void *arg)
{
    const copy_work *const work = arg;
    const void *const from = work->from != NULL ? work->from : (const void *)(work + 1);

    memmove(work->to, from, work->bytes);
    return cudaSuccess;
}

static cudaError_t run_fill(const void *arg)
{
    enum { PAGE = 4096, BY_PAGES = 64 * PAGE };
    const copy_work *const work = arg;
    char *const from = work->to, *const to = from + work->bytes;

    if (work->value != 0 || work->bytes < BY_PAGES) {
        memset(from, work->value, work->bytes);
        return cudaSuccess;
    }
    /* whole pages are given back, which makes them zero and all later changes of access cheap */
    char *const first = from + (PAGE - (uintptr_t)from % PAGE) % PAGE;
    char *const last = to - (uintptr_t)to % PAGE;
    memset(from, 0, (size_t)(first - from));
    memset(last, 0, (size_t)(to - last));
    return madvise(first, (size_t)(last - first), MADV_DONTNEED) == 0 ? cudaSuccess
                                                                      : cudaErrorUnknown;
}

static bool is_copy_valid(const void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    const bool to_device = fake_is_device(to, bytes), from_device = fake_is_device(from, bytes);

    switch (kind) {
    case cudaMemcpyHostToDevice:
        return to_device && !fake_is_arena(from);
    case cudaMemcpyDeviceToHost:
        return from_device && !fake_is_arena(to);
    case cudaMemcpyDeviceToDevice:
        return to_device && from_device;
    default: /* never used: the table above always knows */
        return false;
    }
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    copy_work work = {.to = to, .from = from, .bytes = bytes};

    if (bytes == 0) {
        return fake_error(fake_fault());
    }
    if (!is_copy_valid(to, from, bytes, kind)) {
        return fake_error(cudaErrorInvalidValue);
    }
    if (kind == cudaMemcpyHostToDevice && !fake_is_pinned(from, bytes)) {
        /* pageable memory is read before the call returns */
        unsigned char *const staged = malloc(sizeof work + bytes);

        if (staged == NULL) {
            return fake_error(cudaErrorMemoryAllocation);
        }
        work.from = NULL;
        memcpy(staged, &work, sizeof work);
        memcpy(staged + sizeof work, from, bytes);
        const cudaError_t code = fake_enqueue(stream, run_copy, staged, sizeof work + bytes);
        free(staged);
        return code;
    }
    const cudaError_t code = fake_enqueue(stream, run_copy, &work, sizeof work);
    if (code == cudaSuccess && kind == cudaMemcpyDeviceToHost && !fake_is_pinned(to, bytes)) {
        return cudaStreamSynchronize(stream); /* pageable memory is written before it returns */
    }
    return code;
}

cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t stream)
{
    const copy_work work = {.to = at, .bytes = bytes, .value = value};

    if (bytes == 0) {
        return fake_error(fake_fault());
    }
    if (!fake_is_device(at, bytes)) {
        return fake_error(cudaErrorInvalidValue);
    }
    return fake_enqueue(stream, run_fill, &work, sizeof work);
}
