#include "tests/support/unit_test.h"

#include <string.h>

static void blocks_are_zero_aligned_and_counted(void **state)
{
    static const size_t sizes[] = {0, 1, 63, 4096, (size_t)5 << 20}; /* the last one is mapped */
    const int64_t live = tsr_mem_live_blocks(), calls = tsr_mem_alloc_calls();
    const size_t bytes = tsr_mem_live_bytes(TSR_MEM_DATA);

    (void)state;
    for (int i = 0; i < 5; ++i) {
        unsigned char *block = NULL;

        assert_ok(tsr_mem_alloc(TSR_MEM_DATA, sizes[i], (void **)&block));
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 64, 0);
        for (size_t at = 0; at < sizes[i]; ++at) {
            assert_int_equal(block[at], 0);
        }
        if (sizes[i] > 0) {
            memset(block, 1, sizes[i]);
        }
        assert_int_equal(tsr_mem_live_blocks(), live + 1);
        assert_int_equal(tsr_mem_live_bytes(TSR_MEM_DATA), bytes + sizes[i]);
        tsr_mem_free(block);
        assert_int_equal(tsr_mem_live_blocks(), live);
        assert_int_equal(tsr_mem_live_bytes(TSR_MEM_DATA), bytes);
        assert_int_equal(tsr_mem_alloc_calls(), calls + i + 1);
    }
    tsr_mem_free(NULL);
    assert_int_equal(tsr_mem_live_blocks(), live);
}

static void impossible_sizes_are_named(void **state)
{
    int here = 0;
    void *block = &here;

    (void)state;
    assert_int_equal(tsr_mem_alloc(TSR_MEM_WEIGHTS, SIZE_MAX, &block), TSR_ERR_NOMEM);
    assert_null(block);
    block = &here;
    assert_int_equal(tsr_mem_alloc(TSR_MEM_WEIGHTS, SIZE_MAX / 4, &block), TSR_ERR_NOMEM);
    assert_null(block);
    assert_non_null(strstr(tsr_error_message(), "weights"));
    assert_int_equal(tsr_mem_alloc_array(TSR_MEM_DATA, INT64_MAX, 8, &block), TSR_ERR_NOMEM);
    assert_int_equal(tsr_mem_alloc_array(TSR_MEM_DATA, -1, 8, &block), TSR_ERR_NOMEM);
    assert_non_null(strstr(tsr_error_message(), "-1 elements of 8 bytes"));
    assert_int_equal(tsr_mem_live_blocks(), 0);
}

static void texts_are_copied(void **state)
{
    char text[] = "balance", *copy = NULL;

    (void)state;
    assert_ok(tsr_mem_strdup(text, &copy));
    text[0] = 'B';
    assert_string_equal(copy, "balance");
    tsr_mem_free(copy);
}

static void every_tag_has_a_name_and_the_peak_grows(void **state)
{
    const size_t bytes = (size_t)64 << 20, before = tsr_mem_peak_resident();
    void *block = NULL;

    (void)state;
    for (int tag = 0; tag < TSR_MEM_TAGS; ++tag) {
        assert_non_null(tsr_mem_tag_name((tsr_mem_tag)tag));
    }
    assert_ok(tsr_mem_alloc(TSR_MEM_OTHER, bytes, &block));
    memset(block, 1, bytes);
    assert_true(tsr_mem_peak_resident() >= bytes);
    assert_true(tsr_mem_peak_resident() >= before);
    tsr_mem_free(block);
}

/* A block grows with a quarter to spare, keeps what it has, and is made to fit when asked. */
static void growing_blocks_grow_and_fit(void **state)
{
    tsr_device *device = NULL;
    tsr_growing block = {0};

    (void)state;
    assert_ok(tsr_device_open("cpu:plain", 1, &device));
    const size_t before = tsr_mem_live_bytes(TSR_MEM_WORKSPACE);
    assert_ok(tsr_growing_device(device, TSR_MEM_WORKSPACE, 1000, &block));
    assert_int_equal(block.room, tsr_growing_room(1000));
    assert_ok(tsr_growing_device(device, TSR_MEM_WORKSPACE, 1250, &block));
    assert_int_equal(block.room, tsr_growing_room(1000));
    assert_ok(tsr_growing_device(device, TSR_MEM_WORKSPACE, 10000, &block));
    assert_int_equal(tsr_mem_live_bytes(TSR_MEM_WORKSPACE) - before, tsr_growing_room(10000));
    void *const memory = block.memory;
    assert_ok(tsr_growing_fit(device, TSR_MEM_WORKSPACE, 10000, &block));
    assert_ptr_equal(block.memory, memory);
    assert_ok(tsr_growing_fit(device, TSR_MEM_WORKSPACE, 2000, &block));
    assert_int_equal(tsr_mem_live_bytes(TSR_MEM_WORKSPACE) - before, tsr_growing_room(2000));
    tsr_growing_free_device(device, &block);
    tsr_device_close(&device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_zero_aligned_and_counted),
        cmocka_unit_test(impossible_sizes_are_named),
        cmocka_unit_test(texts_are_copied),
        cmocka_unit_test(every_tag_has_a_name_and_the_peak_grows),
        cmocka_unit_test(growing_blocks_grow_and_fit),
    };

    return tsr_unit_test_main("runtime.memory", tests, sizeof tests / sizeof *tests);
}
