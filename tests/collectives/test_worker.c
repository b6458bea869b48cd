/* Calls in the background: in order, to their end, with what went wrong in the right hands. */
#include "collectives/worker.h"
#include "tests/support/unit_test.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

enum { CALLS = 200 };

typedef struct journal {
    int order[CALLS], count;
    pthread_t thread;
} journal;

typedef struct task {
    tsr_worker_call call;
    journal *journal;
    int number;
} task;

/* Every seventh fails. */
static tsr_status note(void *argument)
{
    task *t = argument;

    t->journal->thread = pthread_self();
    t->journal->order[t->journal->count++] = t->number;
    TSR_CHECK(t->number % 7 != 0, TSR_ERR_RANGE, "number %d is a multiple of 7", t->number);
    return TSR_OK;
}

static tsr_status rest(void *argument)
{
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};

    (void)argument;
    (void)nanosleep(&pause, NULL);
    return TSR_OK;
}

static task make_task(journal *j, int number)
{
    return (task){
        .call = {.run = note, .name = "note", .number = number}, .journal = j, .number = number};
}

static void calls_run_in_order_on_one_thread(void **state)
{
    (void)state;
    static task tasks[CALLS];
    static journal j;
    tsr_worker *worker = NULL;

    j = (journal){0};
    assert_ok(tsr_worker_create(&worker));
    for (int i = 0; i < CALLS; ++i) {
        tasks[i] = make_task(&j, i + 1);
        tasks[i].call.argument = &tasks[i];
    }
    const int64_t allocations = tsr_mem_alloc_calls();
    for (int i = 0; i < CALLS; ++i) {
        assert_ok(tsr_worker_submit(worker, &tasks[i].call));
    }
    for (int i = CALLS - 1; i >= 0; --i) { /* in any order */
        const tsr_status st = tsr_worker_wait(worker, &tasks[i].call);
        char text[64];
        (void)snprintf(text, sizeof text, "number %d is a multiple of 7", i + 1);
        assert_int_equal(st, (i + 1) % 7 == 0 ? TSR_ERR_RANGE : TSR_OK);
        assert_true(st == TSR_OK || strcmp(tsr_error_message(), text) == 0);
    }
    assert_int_equal(tsr_mem_alloc_calls(), allocations);
    assert_int_equal(j.count, CALLS);
    for (int i = 0; i < CALLS; ++i) {
        assert_int_equal(j.order[i], i + 1);
    }
    assert_false(pthread_equal(j.thread, pthread_self()));
    tsr_worker_destroy(&worker);
    assert_null(worker);
}

static void a_call_is_waited_for_once_and_submitted_again(void **state)
{
    (void)state;
    journal j = {0};
    task t = make_task(&j, 14);
    tsr_worker *worker = NULL;

    t.call.argument = &t;
    assert_ok(tsr_worker_create(&worker));
    assert_true(tsr_worker_is_done(worker, &t.call)); /* never submitted */
    assert_ok(tsr_worker_wait(worker, &t.call));
    for (int round = 1; round <= 3; ++round) {
        assert_ok(tsr_worker_submit(worker, &t.call));
        assert_int_equal(tsr_worker_wait(worker, &t.call), TSR_ERR_RANGE);
        assert_ok(tsr_worker_wait(worker, &t.call));
        assert_int_equal(j.count, round);
    }
    tsr_worker_destroy(&worker);
}

static void a_call_under_way_is_refused(void **state)
{
    (void)state;
    tsr_worker_call slow = {.run = rest, .name = "rest"};
    tsr_worker *worker = NULL;

    assert_ok(tsr_worker_create(&worker));
    assert_ok(tsr_worker_submit(worker, &slow));
    assert_int_equal(tsr_worker_submit(worker, &slow), TSR_ERR_STATE);
    assert_string_equal(tsr_error_message(),
                        "rest is under way: wait for it before it is submitted again");
    while (!tsr_worker_is_done(worker, &slow)) {
    }
    assert_int_equal(tsr_worker_submit(worker, &slow), TSR_ERR_STATE); /* done, not waited for */
    assert_ok(tsr_worker_wait(worker, &slow));
    tsr_worker_destroy(&worker);
    tsr_worker_destroy(&worker); /* nothing */
}

static void the_end_comes_after_what_was_submitted(void **state)
{
    (void)state;
    journal j = {0};
    tsr_worker_call slow = {.run = rest, .name = "rest"};
    task t = make_task(&j, 1);
    tsr_worker *worker = NULL;

    t.call.argument = &t;
    assert_ok(tsr_worker_create(&worker));
    assert_ok(tsr_worker_submit(worker, &slow));
    assert_ok(tsr_worker_submit(worker, &t.call));
    tsr_worker_destroy(&worker);
    assert_int_equal(j.count, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_run_in_order_on_one_thread),
        cmocka_unit_test(a_call_is_waited_for_once_and_submitted_again),
        cmocka_unit_test(a_call_under_way_is_refused),
        cmocka_unit_test(the_end_comes_after_what_was_submitted),
    };

    return tsr_unit_test_main("worker", tests, sizeof tests / sizeof *tests);
}
