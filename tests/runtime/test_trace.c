#include "tests/support/unit_test.h"

#include "runtime/trace.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 4, EACH = 100 };

static void nothing_is_recorded_when_off(void **state)
{
    (void)state;
    assert_int_equal(tsr_trace_begin(), 0);
    tsr_trace_end(TSR_TRACE_STEP, "ignored", 1, 0);
    tsr_trace_stop();
}

static void *record(void *arg)
{
    for (int i = 0; i < EACH; ++i) {
        const int64_t begin = tsr_trace_begin();
        tsr_trace_end(TSR_TRACE_EXCHANGE, arg, i, begin);
    }
    return NULL;
}

static int count_of(const char *text, const char *word)
{
    int count = 0;

    for (const char *at = strstr(text, word); at != NULL; at = strstr(at + 1, word)) {
        ++count;
    }
    return count;
}

static void threads_record_and_the_rest_is_counted(void **state)
{
    (void)state;
    static char names[THREADS][8] = {"north", "east", "south", "west"};
    pthread_t threads[THREADS];
    char *text = NULL;
    size_t length = 0;

    assert_ok(tsr_trace_start(THREADS * EACH - 7));
    assert_int_equal(tsr_trace_start(1), TSR_ERR_STATE);
    for (int i = 0; i < THREADS; ++i) {
        assert_int_equal(pthread_create(&threads[i], NULL, record, names[i]), 0);
    }
    for (int i = 0; i < THREADS; ++i) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    FILE *to = open_memstream(&text, &length);
    assert_non_null(to);
    assert_ok(tsr_trace_write(to, 3, 0));
    assert_int_equal(fclose(to), 0);
    assert_int_equal(count_of(text, "\"ph\":\"X\""), THREADS * EACH - 7);
    assert_non_null(strstr(text, "\"spansLeftOut\":7"));
    assert_non_null(strstr(text, "\"pid\":3"));
    assert_non_null(strstr(text, "\"number\":99"));
    free(text);
    tsr_trace_stop();
}

static void bad_arguments_and_full_files_are_told(void **state)
{
    (void)state;
    assert_int_equal(tsr_trace_start(0), TSR_ERR_ARG);
    assert_ok(tsr_trace_start(1));
    FILE *full = fopen("/dev/full", "w");
    assert_non_null(full);
    assert_int_equal(tsr_trace_write(full, 0, 0), TSR_ERR_IO);
    (void)fclose(full);
    tsr_trace_stop();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_is_recorded_when_off),
        cmocka_unit_test(threads_record_and_the_rest_is_counted),
        cmocka_unit_test(bad_arguments_and_full_files_are_told),
    };

    return tsr_unit_test_main("trace", tests, sizeof tests / sizeof tests[0]);
}
