/* What every single-process test includes: cmocka, and a main that also counts blocks. */
#ifndef TSR_UNIT_TEST_H
#define TSR_UNIT_TEST_H

/* cmocka needs these four first, in this order */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "runtime/runtime.h"

#include <stdio.h>

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        if ((call) != TSR_OK) {                                                                    \
            fail_msg("%s: %s", #call, tsr_error_message());                                        \
        }                                                                                          \
    } while (0)

/** Run the group; fails as well when a block of tsr_mem_alloc() is still live at the end. */
static inline int tsr_unit_test_main(const char *name, const struct CMUnitTest *tests, size_t count)
{
    const int failed = _cmocka_run_group_tests(name, tests, count, NULL, NULL);

    if (failed == 0 && tsr_mem_live_blocks() != 0) {
        (void)fprintf(stderr, "%s: %lld blocks were not freed\n", name,
                      (long long)tsr_mem_live_blocks());
        return 1;
    }
    return failed == 0 ? 0 : 1;
}

#endif
