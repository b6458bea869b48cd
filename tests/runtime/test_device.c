/* Opening devices, their memory, streams and events, the completeness check, and the profile. */
#include "tests/runtime/op_test.h"

#include "runtime/device_impl.h"

static void names_are_resolved_or_refused(void **state)
{
    tsr_device *device = NULL;

    (void)state;
    assert_refused(tsr_device_open("gpu", 1, &device), "device = gpu");
    assert_refused(tsr_device_open("cpu:mmx", 1, &device), "device = cpu:mmx");
    assert_refused(tsr_device_open("cpu", 0, &device), "threads = 0");
    assert_refused(tsr_device_open(NULL, 1, &device), "NULL");
    assert_null(device);
    tsr_device_close(&device);
    tsr_device_close(NULL);

    assert_ok(tsr_device_open("cpu", 2, &device));
    assert_int_equal(strncmp(tsr_device_name(device), "cpu:", 4), 0);
    assert_string_not_equal(tsr_device_name(device), "cpu:plain");
    assert_int_equal(tsr_device_threads(device), 2);
    assert_true(strlen(tsr_device_description(device)) > 0);
    assert_true(tsr_device_is_host(device));
    tsr_device_close(&device);
    assert_null(device);
}

static void scratch_of_operators_is_counted(void **state)
{
    const tsr_grouped_gemm_args args = {.pass = TSR_GROUPED_FORWARD,
                                        .max_rows = 4096,
                                        .n = 64,
                                        .k = 32,
                                        .experts = 4,
                                        .dtype = TSR_F32};
    static const char *const names[] = {"cpu", "cpu:generic", "cpu:plain"};

    (void)state;
    for (int i = 0; i < 3; ++i) {
        const size_t before = tsr_mem_live_bytes(TSR_MEM_WORKSPACE);
        tsr_device *device = NULL;

        assert_ok(tsr_device_open(names[i], 2, &device));
        assert_int_equal(tsr_device_scratch_bytes(device), 0);
        assert_ok(tsr_op_grouped_gemm_reserve(device, &args));
        assert_int_equal(tsr_device_scratch_bytes(device),
                         tsr_mem_live_bytes(TSR_MEM_WORKSPACE) - before);
        assert_true(i == 2 || tsr_device_scratch_bytes(device) > 0);
        tsr_device_close(&device);
    }
}

static void a_named_instruction_set_is_never_replaced(void **state)
{
    static const char *const names[] = {"cpu:generic",    "cpu:avx2", "cpu:avx512",
                                        "cpu:avx512bf16", "cpu:amx",  "cpu:plain"};

    (void)state;
    for (int i = 0; i < 6; ++i) {
        tsr_device *device = NULL;
        const tsr_status st = tsr_device_open(names[i], 1, &device);

        if (st == TSR_OK) {
            assert_string_equal(tsr_device_name(device), names[i]);
            tsr_device_close(&device);
        } else {
            assert_int_equal(st, TSR_ERR_UNSUPPORTED);
            assert_in_range(i, 1, 4);
        }
    }
}

static void gpu_names_are_checked_first(void **state)
{
    static const char *const bad[] = {"cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999"};
    char folders[5000];
    tsr_device *device = NULL;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
        assert_refused(tsr_device_open(bad[i], 1, &device), bad[i]);
    }
    assert_null(device);
    memset(folders, 'x', sizeof folders - 1);
    folders[sizeof folders - 1] = '\0';
    assert_refused(tsr_cuda_module_search(folders), "4999 characters");
    assert_ok(tsr_cuda_module_search("/nowhere:/work/*/none"));
}

/* Where there is a GPU this opens it; where there is none the message says what is missing. */
static void without_a_gpu_the_reason_is_given(void **state)
{
    tsr_device *device = NULL;
    const tsr_status st = tsr_device_open("cuda:0", 1, &device);

    (void)state;
    if (st == TSR_OK) {
        assert_string_equal(tsr_device_name(device), "cuda:0");
        tsr_device_close(&device);
        return;
    }
    assert_int_equal(st, TSR_ERR_UNSUPPORTED);
    assert_non_null(strstr(tsr_error_message(), "device = cuda:0"));
    assert_true(strstr(tsr_error_message(), "TSR_CUDA=ON") != NULL ||
                strstr(tsr_error_message(), "driver") != NULL ||
                strstr(tsr_error_message(), "compute capability") != NULL);
}

static void a_table_with_a_hole_is_refused_by_name(void **state)
{
    rig r = open_plain();
    tsr_device_ops holed = *r.device->ops;

    (void)state;
    assert_ok(tsr_device_check_table(&holed, "holed"));
    holed.gemm_reserve = NULL; /* optional */
    assert_ok(tsr_device_check_table(&holed, "holed"));
    holed.swiglu_backward = NULL;
    assert_int_equal(tsr_device_check_table(&holed, "holed"), TSR_ERR_INTERNAL);
    assert_string_equal(tsr_error_message(), "device holed has no operator swiglu_backward");
    close_rig(&r);
}

static void memory_is_zero_counted_and_copied(void **state)
{
    rig r = open_plain();
    const size_t before = tsr_mem_live_bytes(TSR_MEM_WEIGHTS);
    char *block = NULL, *staging = NULL;

    (void)state;
    assert_ok(tsr_device_alloc(r.device, TSR_MEM_WEIGHTS, 100, (void **)&block));
    assert_ok(tsr_device_alloc_staging(r.device, TSR_MEM_WEIGHTS, 100, (void **)&staging));
    assert_int_equal(tsr_mem_live_bytes(TSR_MEM_WEIGHTS), before + 200);
    memset(staging, 5, 100);
    assert_ok(tsr_device_copy(r.device, block, staging, 100, TSR_COPY_HOST_TO_DEVICE, r.stream));
    assert_ok(tsr_device_copy(r.device, block + 1, block, 50, TSR_COPY_ON_DEVICE, r.stream));
    assert_ok(tsr_device_zero(r.device, block + 90, 10, r.stream));
    assert_ok(tsr_device_copy(r.device, staging, block, 100, TSR_COPY_DEVICE_TO_HOST, r.stream));
    assert_ok(tsr_stream_wait(r.stream));
    assert_true(staging[0] == 5 && staging[89] == 5 && staging[90] == 0 && staging[99] == 0);
    assert_ok(tsr_device_copy(r.device, NULL, NULL, 0, TSR_COPY_ON_DEVICE, r.stream));
    assert_refused(tsr_device_copy(r.device, NULL, block, 1, TSR_COPY_ON_DEVICE, r.stream), "NULL");
    assert_refused(tsr_device_zero(r.device, NULL, 1, r.stream), "NULL");
    tsr_device_free(r.device, block);
    tsr_device_free_staging(r.device, staging);
    tsr_device_free(r.device, NULL);
    close_rig(&r);
}

static void events_order_streams(void **state)
{
    rig r = open_plain();
    tsr_stream *other = NULL;
    tsr_event *event = NULL;

    (void)state;
    assert_ok(tsr_stream_create(r.device, &other));
    assert_ok(tsr_event_create(r.device, &event));
    assert_ok(tsr_event_record(event, r.stream));
    assert_ok(tsr_stream_wait_event(other, event));
    assert_ok(tsr_event_wait(event));
    tsr_event_destroy(&event);
    assert_null(event);
    tsr_event_destroy(&event);
    tsr_stream_destroy(&other);
    assert_null(other);
    tsr_stream_destroy(&other);
    close_rig(&r);
}

static tsr_status wait_in_vain(tsr_stream *stream)
{
    (void)stream;
    return TSR_FAIL(TSR_ERR_TIMEOUT, "nobody came");
}

/* What waits for a stream that may hang may hang itself. */
static void waiters_follow_events(void **state)
{
    rig r = open_plain();
    tsr_stream *hanging = NULL;
    tsr_event *event = NULL;

    (void)state;
    assert_ok(tsr_stream_create(r.device, &hanging));
    assert_ok(tsr_event_create(r.device, &event));
    assert_ok(tsr_event_record(event, hanging));
    assert_ok(tsr_stream_wait_event(r.stream, event));
    assert_ok(tsr_stream_wait(r.stream));
    tsr_stream_set_waiter(hanging, wait_in_vain);
    assert_ok(tsr_stream_wait(r.stream)); /* its event came before that */
    assert_ok(tsr_event_record(event, hanging));
    assert_ok(tsr_stream_wait_event(r.stream, event));
    assert_int_equal(tsr_stream_wait(r.stream), TSR_ERR_TIMEOUT);
    tsr_stream_set_waiter(r.stream, NULL);
    tsr_event_destroy(&event);
    tsr_stream_destroy(&hanging);
    close_rig(&r);
}

static const tsr_op_profile *profile_of(const char *name)
{
    int count = 0;
    const tsr_op_profile *all = tsr_op_profile_get(&count);

    for (int i = 0; i < count; ++i) {
        assert_non_null(all[i].name);
        if (strcmp(all[i].name, name) == 0) {
            return &all[i];
        }
    }
    fail_msg("no operator %s in the profile", name);
    return NULL;
}

static void the_profile_counts_only_when_asked(void **state)
{
    rig r = open_plain();
    float f[16] = {0};
    const int64_t offsets[2] = {0, 2};
    const tsr_gemm_args gemm = {
        .a = f, .b = f, .c = f + 12, .m = 2, .n = 2, .k = 3, .lda = 3, .ldb = 2, .ldc = 2};
    const tsr_grouped_gemm_args grouped = {.x = f,
                                           .y = f + 4,
                                           .w = f + 8,
                                           .offsets = offsets,
                                           .max_rows = 16,
                                           .n = 2,
                                           .k = 2,
                                           .experts = 1};

    (void)state;
    tsr_op_profile_reset();
    assert_ok(tsr_op_gemm(r.device, &gemm, r.stream));
    assert_int_equal(profile_of("gemm")->calls, 0);
    tsr_op_profile_enable(true);
    assert_ok(tsr_op_gemm(r.device, &gemm, r.stream));
    assert_ok(tsr_op_gemm(r.device, &gemm, r.stream));
    assert_ok(tsr_op_grouped_gemm(r.device, &grouped, r.stream));
    tsr_op_profile_enable(false);
    assert_ok(tsr_op_gemm(r.device, &gemm, r.stream));
    assert_int_equal(profile_of("gemm")->calls, 2);
    assert_true(profile_of("gemm")->flops == 2.0 * 24);
    assert_true(profile_of("gemm")->bytes == 2.0 * 4 * (6 + 6 + 4));
    assert_true(profile_of("gemm")->seconds > 0);
    assert_true(profile_of("grouped_gemm")->flops == 16); /* two rows, as the offsets say */
    assert_int_equal(profile_of("adamw")->calls, 0);
    tsr_op_profile_reset();
    assert_int_equal(profile_of("gemm")->calls, 0);
    close_rig(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_resolved_or_refused),
        cmocka_unit_test(scratch_of_operators_is_counted),
        cmocka_unit_test(a_named_instruction_set_is_never_replaced),
        cmocka_unit_test(gpu_names_are_checked_first),
        cmocka_unit_test(without_a_gpu_the_reason_is_given),
        cmocka_unit_test(a_table_with_a_hole_is_refused_by_name),
        cmocka_unit_test(memory_is_zero_counted_and_copied),
        cmocka_unit_test(events_order_streams),
        cmocka_unit_test(waiters_follow_events),
        cmocka_unit_test(the_profile_counts_only_when_asked),
    };

    return tsr_unit_test_main("runtime.device", tests, sizeof tests / sizeof *tests);
}
