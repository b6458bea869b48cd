#include "collectives/worker.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

struct tsr_worker {
    pthread_t thread;
    pthread_mutex_t lock; /* of all that follows, and of the calls' last four fields */
    pthread_cond_t submitted, done;
    tsr_worker_call *first, *last; /* not yet begun */
    bool is_ending;
};

/* The oldest call, taken off the queue; NULL at the end. Held: lock. */
static tsr_worker_call *take(tsr_worker *worker)
{
    while (worker->first == NULL && !worker->is_ending) {
        (void)pthread_cond_wait(&worker->submitted, &worker->lock);
    }
    tsr_worker_call *call = worker->first;
    if (call != NULL) {
        worker->first = call->next;
    }
    return call;
}

static void *work(void *argument)
{
    tsr_worker *worker = argument;

    (void)pthread_mutex_lock(&worker->lock);
    for (tsr_worker_call *call = take(worker); call != NULL; call = take(worker)) {
        (void)pthread_mutex_unlock(&worker->lock);
        const int64_t begin = tsr_trace_begin();
        const tsr_status st = call->run(call->argument);
        tsr_trace_end(TSR_TRACE_BACKGROUND, call->name, call->number, begin);

        (void)pthread_mutex_lock(&worker->lock);
        call->status = st;
        if (st != TSR_OK) {
            (void)snprintf(call->message, sizeof call->message, "%s", tsr_error_message());
        }
        call->is_done = true;
        (void)pthread_cond_broadcast(&worker->done);
    }
    (void)pthread_mutex_unlock(&worker->lock);
    return NULL;
}

tsr_status tsr_worker_create(tsr_worker **worker_out)
{
    void *block = NULL;
    sigset_t all, before;

    *worker_out = NULL;
    TSR_TRY(tsr_mem_alloc(TSR_MEM_COMM, sizeof(tsr_worker), &block));
    tsr_worker *worker = block;
    (void)pthread_mutex_init(&worker->lock, NULL);
    (void)pthread_cond_init(&worker->submitted, NULL);
    (void)pthread_cond_init(&worker->done, NULL);
    /* Signals are for the thread that started the program. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    const int rc = pthread_create(&worker->thread, NULL, work, worker);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        tsr_mem_free(worker);
        return TSR_FAIL(TSR_ERR_NOMEM, "no thread for calls in the background: %s", strerror(rc));
    }
    *worker_out = worker;
    return TSR_OK;
}

void tsr_worker_destroy(tsr_worker **worker_p)
{
    tsr_worker *worker = *worker_p;

    if (worker == NULL) {
        return;
    }
    (void)pthread_mutex_lock(&worker->lock);
    worker->is_ending = true;
    (void)pthread_cond_signal(&worker->submitted);
    (void)pthread_mutex_unlock(&worker->lock);
    (void)pthread_join(worker->thread, NULL);
    (void)pthread_cond_destroy(&worker->done);
    (void)pthread_cond_destroy(&worker->submitted);
    (void)pthread_mutex_destroy(&worker->lock);
    tsr_mem_free(worker);
    *worker_p = NULL;
}

tsr_status tsr_worker_submit(tsr_worker *worker, tsr_worker_call *call)
{
    (void)pthread_mutex_lock(&worker->lock);
    if (call->is_submitted) {
        (void)pthread_mutex_unlock(&worker->lock);
        return TSR_FAIL(TSR_ERR_STATE, "%s is under way: wait for it before it is submitted again",
                        call->name);
    }
    call->is_submitted = true;
    call->is_done = false;
    call->next = NULL;
    if (worker->first == NULL) {
        worker->first = call;
    } else {
        worker->last->next = call;
    }
    worker->last = call;
    (void)pthread_cond_signal(&worker->submitted);
    (void)pthread_mutex_unlock(&worker->lock);
    return TSR_OK;
}

bool tsr_worker_is_done(tsr_worker *worker, const tsr_worker_call *call)
{
    (void)pthread_mutex_lock(&worker->lock);
    const bool is_done = !call->is_submitted || call->is_done;
    (void)pthread_mutex_unlock(&worker->lock);
    return is_done;
}

tsr_status tsr_worker_wait(tsr_worker *worker, tsr_worker_call *call)
{
    (void)pthread_mutex_lock(&worker->lock);
    if (!call->is_submitted) {
        (void)pthread_mutex_unlock(&worker->lock);
        return TSR_OK;
    }
    while (!call->is_done) {
        (void)pthread_cond_wait(&worker->done, &worker->lock);
    }
    call->is_submitted = false;
    (void)pthread_mutex_unlock(&worker->lock);
    return call->status == TSR_OK ? TSR_OK : TSR_FAIL(call->status, "%s", call->message);
}
