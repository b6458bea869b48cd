#include "tests/support/unit_test.h"

#include <pthread.h>
#include <string.h>

static tsr_status fail_with(int value)
{
    TSR_CHECK(value < 3, TSR_ERR_RANGE, "value = %d, must be below 3", value);
    return TSR_OK;
}

static tsr_status pass_on(int value, bool *reached_out)
{
    TSR_TRY(fail_with(value));
    *reached_out = true;
    return TSR_OK;
}

static tsr_status undo_at_label(int value, bool *undone_out)
{
    tsr_status st = TSR_OK;

    TSR_TRY_GOTO(fail_with(value), err_undo);
    return st;

err_undo:
    *undone_out = true;
    return st;
}

static void a_failure_keeps_code_message_and_place(void **state)
{
    bool reached = false, undone = false;

    (void)state;
    assert_int_equal(pass_on(2, &reached), TSR_OK);
    assert_true(reached);
    reached = false;
    assert_int_equal(pass_on(7, &reached), TSR_ERR_RANGE);
    assert_false(reached);
    assert_string_equal(tsr_error_message(), "value = 7, must be below 3");
    assert_non_null(strstr(tsr_error_place(), "tests/runtime/test_status.c:"));
    assert_int_equal(undo_at_label(2, &undone), TSR_OK);
    assert_false(undone);
    assert_int_equal(undo_at_label(9, &undone), TSR_ERR_RANGE);
    assert_true(undone);
}

static void a_long_message_is_cut(void **state)
{
    char text[5000];

    (void)state;
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    assert_int_equal(TSR_FAIL(TSR_ERR_IO, "%s", text), TSR_ERR_IO);
    assert_true(strlen(tsr_error_message()) < sizeof text);
    assert_memory_equal(tsr_error_message(), text, strlen(tsr_error_message()));
}

static void *fail_elsewhere(void *result)
{
    *(tsr_status *)result = TSR_FAIL(TSR_ERR_IO, "elsewhere");
    return NULL;
}

static void threads_keep_their_own_message(void **state)
{
    pthread_t thread;
    tsr_status other = TSR_OK;

    (void)state;
    assert_int_equal(TSR_FAIL(TSR_ERR_ARG, "here"), TSR_ERR_ARG);
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &other), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(other, TSR_ERR_IO);
    assert_string_equal(tsr_error_message(), "here");
}

static void every_code_has_a_name_of_its_own(void **state)
{
    (void)state;
    for (int a = TSR_OK; a <= TSR_ERR_INTERNAL; ++a) {
        assert_true(strlen(tsr_status_name((tsr_status)a)) > 0);
        for (int b = TSR_OK; b < a; ++b) {
            assert_string_not_equal(tsr_status_name((tsr_status)a), tsr_status_name((tsr_status)b));
        }
    }
    assert_string_equal(tsr_status_name(TSR_ERR_TIMEOUT), "timeout");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failure_keeps_code_message_and_place),
        cmocka_unit_test(a_long_message_is_cut),
        cmocka_unit_test(threads_keep_their_own_message),
        cmocka_unit_test(every_code_has_a_name_of_its_own),
    };

    return tsr_unit_test_main("runtime.status", tests, sizeof tests / sizeof *tests);
}
