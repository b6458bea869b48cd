/* The cuda device itself: opening, memory and its count, streams, events, the shared workspace. */
#include "tests/emulation/fake_cudart.h"
#include "tests/runtime/op_test.h"

#include "runtime/cuda/cuda_impl.h"

enum { COUNT = 1000 };

static rig open_emulated(void)
{
    rig r;

    assert_true(open_named("cuda:emulated", 3, &r));
    return r;
}

static void it_says_what_it_is(void **state)
{
    char files[4096];
    rig r = open_emulated();

    (void)state;
    assert_string_equal(tsr_device_name(r.device), "cuda:emulated");
    assert_int_equal(tsr_device_threads(r.device), 3);
    assert_non_null(strstr(tsr_device_description(r.device), "emulated"));
    assert_true(tsr_device_has_fast_bf16(r.device));
    assert_false(tsr_device_is_host(r.device));
    tsr_cuda_module_files(files, sizeof files);
    assert_non_null(strstr(files, "/libtessera_cuda_emulated.so"));
    tsr_cuda_module_files(files, 10); /* cut, not overrun */
    assert_true(strlen(files) < 10);
    close_rig(&r);
}

static void the_peak_is_of_device_memory_alone(void **state)
{
    rig r = open_emulated();
    const size_t before = tsr_device_peak_bytes(r.device);
    void *first = NULL, *second = NULL, *staging = NULL;

    (void)state;
    assert_ok(tsr_device_alloc(r.device, TSR_MEM_GRADIENTS, before + 1000, &first));
    tsr_device_free(r.device, first);
    const size_t peak = tsr_device_peak_bytes(r.device);
    assert_true(peak >= before + 1000);
    assert_ok(tsr_device_alloc_staging(r.device, TSR_MEM_GRADIENTS, 2 * peak, &staging));
    assert_ok(tsr_device_alloc(r.device, TSR_MEM_GRADIENTS, 500, &first));
    assert_int_equal(tsr_device_peak_bytes(r.device), peak);
    assert_ok(tsr_device_alloc(r.device, TSR_MEM_GRADIENTS, peak, &second));
    assert_true(tsr_device_peak_bytes(r.device) >= peak + 500);
    tsr_device_free(r.device, second);
    tsr_device_free(r.device, first);
    tsr_device_free_staging(r.device, staging);
    close_rig(&r);
}

static void memory_is_zero_aligned_and_counted(void **state)
{
    rig r = open_emulated();
    const size_t before = tsr_mem_live_bytes(TSR_MEM_GRADIENTS);
    const int64_t blocks = tsr_mem_live_blocks();
    void *block = NULL, *empty = NULL, *staging = NULL;
    float host[COUNT];

    (void)state;
    assert_ok(tsr_device_alloc(r.device, TSR_MEM_GRADIENTS, sizeof host, &block));
    assert_int_equal((uintptr_t)block % 64, 0);
    assert_true(tsr_mem_live_bytes(TSR_MEM_GRADIENTS) >= before + sizeof host);
    assert_int_equal(tsr_mem_live_blocks(), blocks + 1);
    assert_ok(tsr_device_alloc_staging(r.device, TSR_MEM_GRADIENTS, sizeof host, &staging));
    assert_ok(tsr_device_alloc(r.device, TSR_MEM_GRADIENTS, 0, &empty));
    assert_non_null(empty);
    assert_int_equal(tsr_mem_live_blocks(), blocks + 3);

    memset(staging, 1, sizeof host);
    assert_ok(
        tsr_device_copy(r.device, staging, block, sizeof host, TSR_COPY_DEVICE_TO_HOST, r.stream));
    assert_ok(tsr_stream_wait(r.stream));
    memset(host, 0, sizeof host);
    assert_memory_equal(staging, host, sizeof host);

    tsr_device_free(r.device, empty);
    tsr_device_free_staging(r.device, staging);
    tsr_device_free(r.device, block);
    assert_int_equal(tsr_mem_live_bytes(TSR_MEM_GRADIENTS), before);
    assert_int_equal(tsr_mem_live_blocks(), blocks);
    close_rig(&r);
}

static void too_much_memory_is_refused_with_figures(void **state)
{
    rig r = open_emulated();
    void *block = &r;

    (void)state;
    assert_int_equal(tsr_device_alloc(r.device, TSR_MEM_WEIGHTS, (size_t)1 << 40, &block),
                     TSR_ERR_NOMEM);
    assert_null(block);
    assert_non_null(strstr(tsr_error_message(), "1048576.00 MiB for weights"));
    assert_ok(tsr_device_alloc(r.device, TSR_MEM_WEIGHTS, 64, &block)); /* and it goes on */
    tsr_device_free(r.device, block);
    close_rig(&r);
}

/* One stream adds, another copies the sum out once an event says so. */
static void events_order_streams(void **state)
{
    (void)state;
    for (int order = 0; order < 3; ++order) {
        rig r = open_emulated();
        tsr_stream *second = NULL;
        tsr_event *added = NULL;
        float *x = NULL, *sum = NULL, *staging = NULL;

        fake_set_order((fake_order)order, 5);
        assert_ok(tsr_stream_create(r.device, &second));
        assert_ok(tsr_event_create(r.device, &added));
        assert_ok(tsr_device_alloc(r.device, TSR_MEM_OTHER, COUNT * sizeof *x, (void **)&x));
        assert_ok(tsr_device_alloc(r.device, TSR_MEM_OTHER, COUNT * sizeof *x, (void **)&sum));
        assert_ok(tsr_device_alloc_staging(r.device, TSR_MEM_OTHER, COUNT * sizeof *x,
                                           (void **)&staging));
        for (int i = 0; i < COUNT; ++i) {
            staging[i] = (float)i;
        }
        assert_ok(tsr_device_copy(r.device, x, staging, COUNT * sizeof *x, TSR_COPY_HOST_TO_DEVICE,
                                  r.stream));
        assert_ok(tsr_op_add_f32(r.device, x, sum, COUNT, r.stream));
        assert_ok(tsr_event_record(added, r.stream));
        assert_ok(tsr_stream_wait_event(second, added));
        assert_ok(tsr_device_copy(r.device, staging, sum, COUNT * sizeof *x,
                                  TSR_COPY_DEVICE_TO_HOST, second));
        assert_ok(tsr_device_zero(r.device, sum, COUNT * sizeof *x, second));
        assert_ok(tsr_event_record(added, second));
        assert_ok(tsr_event_wait(added));
        for (int i = 0; i < COUNT; ++i) {
            assert_true(staging[i] == (float)i);
        }
        tsr_device_free_staging(r.device, staging);
        tsr_device_free(r.device, sum);
        tsr_device_free(r.device, x);
        tsr_event_destroy(&added);
        tsr_stream_destroy(&second);
        close_rig(&r);
    }
    fake_set_order(FAKE_FORWARD, 0);
}

/* Users of the workspace on different streams come one after the other without being told to. */
static void the_workspace_serves_one_stream_at_a_time(void **state)
{
    (void)state;
    for (int order = 0; order < 3; ++order) {
        rig r = open_emulated();
        tsr_stream *second = NULL;
        void *first_use = NULL, *second_use = NULL, *pair[2] = {NULL, NULL};
        double got[2] = {0.0, 0.0}, *sums = NULL;

        fake_set_order((fake_order)order, 6);
        assert_ok(tsr_stream_create(r.device, &second));
        assert_ok(tsr_device_alloc(r.device, TSR_MEM_OTHER, sizeof got, (void **)&sums));
        for (int i = 0; i < 2; ++i) {
            const double number[1] = {1.0 + i};

            assert_ok(tsr_device_alloc(r.device, TSR_MEM_OTHER, sizeof number, &pair[i]));
            assert_ok(tsr_device_copy(r.device, pair[i], number, sizeof number,
                                      TSR_COPY_HOST_TO_DEVICE, r.stream));
        }
        assert_ok(tsr_stream_wait(r.stream));
        assert_ok(tsr_cuda_workspace(r.device, 4096, r.stream, &first_use));
        assert_ok(tsr_device_copy(r.device, first_use, pair[0], 8, TSR_COPY_ON_DEVICE, r.stream));
        assert_ok(tsr_device_copy(r.device, sums, first_use, 8, TSR_COPY_ON_DEVICE, r.stream));
        assert_ok(tsr_cuda_workspace(r.device, 4096, second, &second_use));
        assert_ptr_equal(first_use, second_use);
        assert_ok(tsr_device_copy(r.device, second_use, pair[1], 8, TSR_COPY_ON_DEVICE, second));
        assert_ok(tsr_device_copy(r.device, sums + 1, second_use, 8, TSR_COPY_ON_DEVICE, second));
        assert_ok(tsr_stream_wait(r.stream));
        assert_ok(tsr_stream_wait(second));
        assert_ok(
            tsr_device_copy(r.device, got, sums, sizeof got, TSR_COPY_DEVICE_TO_HOST, r.stream));
        assert_ok(tsr_stream_wait(r.stream));
        assert_true(got[0] == 1.0 && got[1] == 2.0);

        tsr_stream_destroy(&second); /* the last user goes away, and it grows */
        assert_ok(tsr_cuda_workspace(r.device, (size_t)64 << 20, r.stream, &first_use));
        tsr_device_free(r.device, pair[0]);
        tsr_device_free(r.device, pair[1]);
        tsr_device_free(r.device, sums);
        close_rig(&r);
    }
    fake_set_order(FAKE_FORWARD, 0);
}

static void a_fault_is_reported_where_it_is_waited_for(void **state)
{
    rig r = open_emulated();
    float *x = NULL;

    (void)state;
    assert_ok(tsr_device_alloc(r.device, TSR_MEM_OTHER, COUNT * sizeof *x, (void **)&x));
    assert_ok(tsr_op_add_f32(r.device, x, x, 100 * COUNT, r.stream)); /* far past the block */
    assert_int_equal(tsr_stream_wait(r.stream), TSR_ERR_DEVICE);
    assert_non_null(strstr(tsr_error_message(), "cudaErrorIllegalAddress"));
    fake_clear_fault();
    tsr_device_free(r.device, x);
    close_rig(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_says_what_it_is),
        cmocka_unit_test(the_peak_is_of_device_memory_alone),
        cmocka_unit_test(memory_is_zero_aligned_and_counted),
        cmocka_unit_test(too_much_memory_is_refused_with_figures),
        cmocka_unit_test(events_order_streams),
        cmocka_unit_test(the_workspace_serves_one_stream_at_a_time),
        cmocka_unit_test(a_fault_is_reported_where_it_is_waited_for),
    };

    return tsr_unit_test_main("cuda.device", tests, sizeof tests / sizeof *tests);
}
