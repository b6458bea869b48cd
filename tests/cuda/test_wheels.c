/* A module finds the libraries it needs in the folders of Python wheels, and says which it misses.
 * Argument: the site-packages folder. */
#include "tests/support/unit_test.h"

#include "runtime/runtime.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

static const char *packages;
static const char module_file[] = "libtsr_wheel_module.so";

static tsr_status load(void **handle_out)
{
    return tsr_cuda_module_load("cuda:0", module_file, "-DTSR_CUDA=ON", handle_out);
}

static void a_library_that_is_nowhere_is_named(void **state)
{
    void *handle = NULL;

    (void)state;
    assert_int_equal(load(&handle), TSR_ERR_UNSUPPORTED);
    assert_non_null(strstr(tsr_error_message(), "libtsr_wheel_products.so is in none of"));
    assert_non_null(strstr(tsr_error_message(), "CUDA_HOME"));
    assert_null(handle);
}

/* The first is there, but not what it needs in turn. */
static void half_of_a_chain_is_not_enough(void **state)
{
    char folders[4096];
    void *handle = NULL;

    (void)state;
    (void)snprintf(folders, sizeof folders, "/nowhere:%.3000s/nvidia/cublas/lib", packages);
    assert_int_equal(tsr_cuda_module_search(folders), TSR_OK);
    assert_int_equal(load(&handle), TSR_ERR_UNSUPPORTED);
    assert_non_null(strstr(tsr_error_message(), "libtsr_wheel_products.so"));
}

static void wheels_are_found_by_pattern(void **state)
{
    char folders[4096];
    void *handle = NULL;
    int (*entry)(void) = NULL;

    (void)state;
    (void)snprintf(folders, sizeof folders, "/nowhere/*:%.3000s/nvidia/*/lib", packages);
    assert_int_equal(tsr_cuda_module_search(folders), TSR_OK);
    assert_int_equal(load(&handle), TSR_OK);
    void *const found = dlsym(handle, "tsr_wheel_module");
    assert_non_null(found);
    memcpy(&entry, &found, sizeof entry);
    assert_int_equal(entry(), 411);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_library_that_is_nowhere_is_named),
        cmocka_unit_test(half_of_a_chain_is_not_enough),
        cmocka_unit_test(wheels_are_found_by_pattern), /* last: what is open stays open */
    };

    if (argc != 2) {
        (void)fprintf(stderr, "usage: %s SITE_PACKAGES\n", argv[0]);
        return 1;
    }
    packages = argv[1];
    return tsr_unit_test_main("cuda wheels", tests, sizeof tests / sizeof *tests);
}
