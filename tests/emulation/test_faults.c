/* Tests of the tests: what the emulator must do right, and every planted fault that it must
 * find. */
#include "tests/emulation/fake_cudart.h"
#include "tests/emulation/planted.h"
#include "tests/support/unit_test.h"

#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define assert_cuda(call) assert_int_equal(call, cudaSuccess)

enum { ORDERS = 3 };

static cudaStream_t stream;

static int in_order(int order)
{
    fake_set_order((fake_order)order, 4711);
    return order;
}

static int setup(void **state)
{
    (void)state;
    fake_clear_fault();
    (void)in_order(FAKE_FORWARD);
    return cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
}

static int teardown(void **state)
{
    (void)state;
    fake_clear_fault();
    return cudaStreamDestroy(stream);
}

static void *device_block(size_t bytes)
{
    void *at = NULL;

    assert_cuda(cudaMalloc(&at, bytes));
    return at;
}

static void fetch(void *to, const void *from, size_t bytes)
{
    assert_cuda(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream));
    assert_cuda(cudaStreamSynchronize(stream));
}

/* ---- what must work ------------------------------------------------------------------------- */

static void warp_operations_give_what_cuda_documents(void **state)
{
    int got[PLANTED_THREADS][PLANTED_RESULTS];
    int *out = device_block(sizeof got);

    (void)state;
    for (int order = 0; in_order(order) < ORDERS; ++order) {
        assert_cuda(planted_warp(out, stream));
        fetch(got, out, sizeof got);
        for (int me = 0; me < PLANTED_THREADS; ++me) {
            const int lane = me % 32, warp = me - lane;
            const int *const mine = got[me];

            assert_int_equal(mine[0], warp + 3);
            assert_int_equal(mine[1], warp + (lane + 1) % 32);
            assert_int_equal(mine[2], me / 8 * 8 + 1);
            assert_int_equal(mine[3], me ^ 5);
            assert_int_equal(mine[4], lane % 16 + 4 < 16 ? me + 4 : me);
            assert_int_equal(mine[5], lane % 16 >= 4 ? me - 4 : me);
            assert_int_equal((unsigned)mine[6], 0x49249249u); /* bits 0, 3, 6, ... 30 */
            assert_int_equal(mine[7], lane >= 16);
            assert_int_equal(mine[8], lane < 16);
            assert_int_equal((unsigned)mine[9], 0xfu << (lane / 4 * 4));
            assert_int_equal(mine[10], lane < 16 ? (me ^ 1) + (me ^ 2) + (me ^ 4) : warp + 17);
            assert_int_equal(mine[11], warp + 31 - lane);
        }
    }
    assert_cuda(cudaFree(out));
}

static void blocks_and_atomics_are_complete(void **state)
{
    int counts[3];
    int *at = device_block(sizeof counts);

    (void)state;
    for (int order = 0; in_order(order) < ORDERS; ++order) {
        const int start[3] = {0, 0, 1 << 30};

        assert_cuda(cudaMemcpyAsync(at, start, sizeof start, cudaMemcpyHostToDevice, stream));
        assert_cuda(planted_atomics(at, 11, stream));
        fetch(counts, at, sizeof counts);
        assert_int_equal(counts[0], 11 * PLANTED_THREADS);
        assert_int_equal(counts[1], 11 * PLANTED_THREADS);
        assert_int_equal(counts[2], 1);
    }
    assert_cuda(cudaFree(at));
}

static void barriers_hold_for_the_largest_block(void **state)
{
    enum { BLOCKS = 3 };
    int sums[BLOCKS];
    int *at = device_block(sizeof sums);

    (void)state;
    for (int order = 0; in_order(order) < ORDERS; ++order) {
        for (unsigned threads = 1; threads <= 1024; threads *= 32) {
            assert_cuda(planted_tree(at, BLOCKS, threads, stream));
            fetch(sums, at, sizeof sums);
            for (unsigned b = 0; b < BLOCKS; ++b) {
                assert_int_equal(sums[b], b * threads * threads + threads * (threads - 1) / 2);
            }
        }
    }
    assert_cuda(cudaFree(at));
}

/* ---- faults inside a kernel ----------------------------------------------------------------- */

/* How many of the results of the rotation are wrong? */
static int wrong_after_rotation(bool has_barrier)
{
    float x[PLANTED_THREADS], y[PLANTED_THREADS];
    float *dx = device_block(sizeof x), *dy = device_block(sizeof y);
    int wrong = 0;

    for (int i = 0; i < PLANTED_THREADS; ++i) {
        x[i] = (float)i;
    }
    assert_cuda(cudaMemcpyAsync(dx, x, sizeof x, cudaMemcpyHostToDevice, stream));
    assert_cuda(planted_rotate(dx, dy, has_barrier, stream));
    fetch(y, dy, sizeof y);
    for (int i = 0; i < PLANTED_THREADS; ++i) {
        wrong += !(y[i] == x[(i + 1) % PLANTED_THREADS]);
    }
    assert_cuda(cudaFree(dx));
    assert_cuda(cudaFree(dy));
    return wrong;
}

static void a_missing_barrier_shows_in_some_order(void **state)
{
    int wrong = 0;

    (void)state;
    for (int order = 0; in_order(order) < ORDERS; ++order) {
        assert_int_equal(wrong_after_rotation(true), 0);
        wrong += wrong_after_rotation(false);
    }
    assert_true(wrong > 0);
}

static int wrong_after_ring(int slots)
{
    enum { COUNT = PLANTED_TILES * PLANTED_THREADS };
    float x[COUNT], y[PLANTED_THREADS];
    float *dx = device_block(sizeof x), *dy = device_block(sizeof y);
    int wrong = 0;

    for (int i = 0; i < COUNT; ++i) {
        x[i] = (float)i;
    }
    assert_cuda(cudaMemcpyAsync(dx, x, sizeof x, cudaMemcpyHostToDevice, stream));
    assert_cuda(planted_ring(dx, dy, slots, stream));
    fetch(y, dy, sizeof y);
    for (int t = 0; t < PLANTED_THREADS; ++t) {
        float want = 0.0f;
        for (int tile = 0; tile < PLANTED_TILES; ++tile) {
            want += x[tile * PLANTED_THREADS + (t + 32) % PLANTED_THREADS];
        }
        wrong += y[t] != want;
    }
    assert_cuda(cudaFree(dx));
    assert_cuda(cudaFree(dy));
    return wrong;
}

/* Only a warp that stays behind by a whole tile is hurt: in forward and reverse order none does. */
static void a_missing_barrier_shows_when_a_warp_stays_behind(void **state)
{
    enum { SEEDS = 8 };
    int wrong = 0;

    (void)state;
    for (uint64_t seed = 1; seed <= SEEDS; ++seed) {
        fake_set_order(FAKE_RANDOM, seed);
        assert_int_equal(wrong_after_ring(3), 0);
        wrong += wrong_after_ring(2) != 0;
    }
    assert_int_equal(wrong, SEEDS); /* once in 4^5 launches no warp stays behind in any tile */
}

static void a_race_gives_different_results_in_different_orders(void **state)
{
    float *at = device_block(sizeof(float));
    float forward, reverse;

    (void)state;
    (void)in_order(FAKE_FORWARD);
    assert_cuda(planted_race(at, stream));
    fetch(&forward, at, sizeof forward);
    (void)in_order(FAKE_REVERSE);
    assert_cuda(planted_race(at, stream));
    fetch(&reverse, at, sizeof reverse);
    assert_true(forward == (float)(PLANTED_THREADS - 1) && reverse == 0.0f);
    assert_cuda(cudaFree(at));
}

static void threads_that_do_not_meet_end_the_launch(void **state)
{
    float *at = device_block(PLANTED_THREADS * sizeof(float));

    (void)state;
    for (int order = 0; in_order(order) < ORDERS; ++order) {
        for (int how = PLANTED_BRANCHES; how <= PLANTED_WRONG_MASK; ++how) {
            assert_cuda(planted_meet((planted_meeting)how, at, stream));
            assert_int_equal(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
            /* as on a GPU, nothing works any more */
            assert_int_equal(planted_race(at, stream), cudaErrorLaunchFailure);
            assert_int_equal(cudaGetLastError(), cudaErrorLaunchFailure);
            assert_int_equal(cudaGetLastError(), cudaErrorLaunchFailure);
            fake_clear_fault();
        }
    }
    assert_cuda(cudaFree(at));
}

static void shared_memory_is_fenced(void **state)
{
    float *at = device_block(sizeof(float));

    (void)state;
    assert_cuda(planted_shared_write(7, at, stream));
    assert_cuda(cudaStreamSynchronize(stream));
    assert_cuda(planted_shared_write(8, at, stream));
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
    fake_clear_fault();
    assert_cuda(cudaFree(at));
}

/* ---- device memory -------------------------------------------------------------------------- */

static void expect_illegal_address(cudaError_t queued)
{
    assert_cuda(queued);
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
    fake_clear_fault();
}

static void writes_outside_a_block_are_found(void **state)
{
    (void)state;
    for (int64_t count = 1; count < 3000; count = count * 3 + 1) {
        float *at = device_block((size_t)count * sizeof(float));

        assert_cuda(planted_count(at, count, stream));
        assert_cuda(cudaStreamSynchronize(stream));
        expect_illegal_address(planted_count(at, count + 1, stream)); /* one element past it */
        assert_cuda(cudaFree(at)); /* the bytes behind it stay damaged, and noticed, until then */
        at = device_block((size_t)count * sizeof(float));
        expect_illegal_address(planted_write(at, count + 5000, 1.0f, stream));
        expect_illegal_address(planted_write(at, -5000, 1.0f, stream));
        assert_cuda(planted_count(at, count, stream));
        assert_cuda(cudaStreamSynchronize(stream));
        assert_cuda(cudaFree(at));
    }
}

static void reads_outside_a_block_fault_or_give_nan(void **state)
{
    float *at = device_block(1024 * sizeof(float)), *to = device_block(sizeof(float));
    float got = 0.0f;

    (void)state;
    expect_illegal_address(planted_read(at, 1024, to, stream));
    expect_illegal_address(planted_read(at, -1, to, stream));
    assert_cuda(planted_read(at, 1023, to, stream)); /* fresh memory */
    fetch(&got, to, sizeof got);
    assert_true(isnan(got));
    assert_cuda(cudaFree(at));
    expect_illegal_address(planted_read(at, 0, to, stream)); /* freed memory */
    assert_cuda(cudaFree(to));
}

static void a_misaligned_access_is_a_fault(void **state)
{
    float *at = device_block(64 * sizeof(float)), *to = device_block(sizeof(float));

    (void)state;
    assert_cuda(planted_read4(at, 4, to, stream));
    assert_cuda(cudaStreamSynchronize(stream));
    assert_cuda(planted_read4(at, 5, to, stream));
    assert_int_equal(cudaStreamSynchronize(stream), cudaErrorMisalignedAddress);
    fake_clear_fault();
    assert_cuda(cudaFree(at));
    assert_cuda(cudaFree(to));
}

static void host_memory_as_argument_of_a_kernel_is_refused(void **state)
{
    /* an address that ends in 00 or 01 is passed over, as it may be a bool with its padding */
    _Alignas(256) float on_stack[8] = {0};
    float *to = device_block(sizeof(float)), *pinned = NULL;
    float got = 0.0f;

    (void)state;
    assert_int_equal(planted_read(on_stack + 4, 0, to, stream), cudaErrorIllegalAddress);
    assert_int_equal(cudaGetLastError(), cudaErrorIllegalAddress);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_cuda(cudaHostAlloc((void **)&pinned, sizeof *pinned, cudaHostAllocDefault));
    *pinned = 3.0f;
    assert_cuda(planted_read(pinned, 0, to, stream)); /* the GPU reaches that one */
    fetch(&got, to, sizeof got);
    assert_true(got == 3.0f);
    assert_cuda(cudaFreeHost(pinned));
    assert_cuda(cudaFree(to));
}

/* In a process of its own: does this access kill it? */
static void expect_death(const float *at)
{
    const pid_t child = fork();
    int status = 0;

    if (child == 0) {
        const struct rlimit none = {0, 0};
        volatile float sink;

        (void)setrlimit(RLIMIT_CORE, &none);
        (void)signal(SIGSEGV, SIG_DFL);
        sink = *at;
        (void)sink;
        _exit(0);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

static void the_host_cannot_touch_device_memory(void **state)
{
    float *at = device_block(sizeof(float));

    (void)state;
    expect_death(at);
    assert_cuda(planted_write(at, 0, 1.0f, stream));
    assert_cuda(cudaStreamSynchronize(stream));
    expect_death(at); /* nor after work has run */
    assert_cuda(cudaFree(at));
}

/* ---- order of queued work ------------------------------------------------------------------- */

static void nothing_is_there_before_it_was_waited_for(void **state)
{
    float *at = device_block(sizeof(float)), *pinned = NULL;

    (void)state;
    assert_cuda(cudaHostAlloc((void **)&pinned, sizeof *pinned, cudaHostAllocDefault));
    *pinned = 5.0f;
    assert_cuda(planted_write(at, 0, 7.0f, stream));
    assert_cuda(cudaMemcpyAsync(pinned, at, sizeof *pinned, cudaMemcpyDeviceToHost, stream));
    assert_true(*pinned == 5.0f);
    assert_cuda(cudaStreamSynchronize(stream));
    assert_true(*pinned == 7.0f);
    assert_cuda(cudaFreeHost(pinned));
    assert_cuda(cudaFree(at));
}

/* A second stream writes 1, then 2 over it once `stream` has read the 1: what arrives? */
static float value_between_streams(bool waits_for_write, bool waits_for_read)
{
    cudaStream_t writer = NULL;
    cudaEvent_t written = NULL, read = NULL;
    float *at = device_block(sizeof(float)), *copy = device_block(sizeof(float));
    float got = 0.0f;

    assert_cuda(cudaStreamCreateWithFlags(&writer, cudaStreamNonBlocking));
    assert_cuda(cudaEventCreateWithFlags(&written, cudaEventDisableTiming));
    assert_cuda(cudaEventCreateWithFlags(&read, cudaEventDisableTiming));
    assert_cuda(planted_write(at, 0, 1.0f, writer));
    assert_cuda(cudaEventRecord(written, writer));
    if (waits_for_write) {
        assert_cuda(cudaStreamWaitEvent(stream, written, 0));
    }
    assert_cuda(planted_read(at, 0, copy, stream));
    assert_cuda(cudaEventRecord(read, stream));
    if (waits_for_read) {
        assert_cuda(cudaStreamWaitEvent(writer, read, 0));
    }
    assert_cuda(planted_write(at, 0, 2.0f, writer));
    fetch(&got, copy, sizeof got);
    assert_cuda(cudaStreamDestroy(writer));
    assert_cuda(cudaEventDestroy(written));
    assert_cuda(cudaEventDestroy(read));
    assert_cuda(cudaFree(at));
    assert_cuda(cudaFree(copy));
    return got;
}

static void a_missing_wait_between_streams_shows_in_some_order(void **state)
{
    int without_first = 0, without_second = 0;

    (void)state;
    for (int order = 0; in_order(order) < ORDERS; ++order) {
        for (int i = 0; i < 4; ++i) { /* the random order goes on from one to the next */
            assert_true(value_between_streams(true, true) == 1.0f);
            without_first += !(value_between_streams(false, true) == 1.0f);
            without_second += !(value_between_streams(true, false) == 1.0f);
        }
    }
    assert_true(without_first > 0);
    assert_true(without_second > 0);
}

static void events_are_polled_and_timed(void **state)
{
    cudaEvent_t from = NULL, to = NULL;
    float *at = device_block(sizeof(float));
    float ms = -1.0f;
    int polls = 0;

    (void)state;
    assert_cuda(cudaEventCreateWithFlags(&from, cudaEventDefault));
    assert_cuda(cudaEventCreateWithFlags(&to, cudaEventDefault));
    assert_cuda(cudaEventQuery(from)); /* never recorded */
    assert_cuda(cudaEventRecord(from, stream));
    assert_cuda(planted_write(at, 0, 1.0f, stream));
    assert_cuda(cudaEventRecord(to, stream));
    assert_int_equal(cudaStreamQuery(stream), cudaErrorNotReady);
    while (cudaEventQuery(to) == cudaErrorNotReady) {
        ++polls;
    }
    assert_in_range(polls, 1, 4);
    assert_cuda(cudaEventElapsedTime(&ms, from, to));
    assert_true(ms >= 0.0f);
    assert_cuda(cudaStreamQuery(stream));
    assert_cuda(cudaEventDestroy(from));
    assert_cuda(cudaEventDestroy(to));
    assert_cuda(cudaFree(at));
}

/* ---- calls that the real runtime refuses
 * ------------------------------------------------------ */

static void launches_of_impossible_shape_are_refused(void **state)
{
    static const struct shape {
        unsigned grid[3], block[3];
    } bad[] = {
        {{0, 1, 1}, {1, 1, 1}},     {{1, 0, 1}, {1, 1, 1}},     {{1, 1, 1}, {0, 1, 1}},
        {{1, 1, 1}, {1025, 1, 1}},  {{1, 1, 1}, {32, 33, 1}},   {{1, 1, 1}, {1, 1, 65}},
        {{1, 65536, 1}, {1, 1, 1}}, {{1, 1, 65536}, {1, 1, 1}},
    };
    dim3 grid = {1, 1, 1}, block = {1, 1, 1};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
        dim3 g = {bad[i].grid[0], bad[i].grid[1], bad[i].grid[2]};
        dim3 b = {bad[i].block[0], bad[i].block[1], bad[i].block[2]};

        assert_int_equal(planted_shape(&g, &b, 0, stream), cudaErrorInvalidConfiguration);
    }
    assert_int_equal(planted_shape(&grid, &block, 200 << 10, stream), cudaErrorInvalidValue);
    assert_int_equal(planted_shape(&grid, &block, 0, NULL), cudaErrorInvalidResourceHandle);
    assert_cuda(planted_shape(&grid, &block, 163 << 10, stream));
    assert_cuda(cudaStreamSynchronize(stream));
}

static void wrong_copies_and_frees_are_refused(void **state)
{
    char host[64] = {0};
    char *at = device_block(64), *inside = at + 1;

    (void)state;
    assert_int_equal(cudaMemcpyAsync(at, host, 65, cudaMemcpyHostToDevice, stream),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpyAsync(inside, host, 64, cudaMemcpyHostToDevice, stream),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpyAsync(host, at, 64, cudaMemcpyHostToDevice, stream),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpyAsync(at, host, 64, cudaMemcpyDeviceToDevice, stream),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpyAsync(at, at, 64, cudaMemcpyDeviceToHost, stream),
                     cudaErrorInvalidValue);
    assert_int_equal(cudaMemsetAsync(host, 0, 64, stream), cudaErrorInvalidValue);
    assert_int_equal(cudaMemsetAsync(at, 0, 65, stream), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(inside), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(host), cudaErrorInvalidValue);
    assert_int_equal(cudaFreeHost(host), cudaErrorInvalidValue);
    assert_cuda(cudaFree(at));
    assert_int_equal(cudaFree(at), cudaErrorInvalidValue);
    assert_int_equal(cudaMalloc((void **)&at, (size_t)1 << 40), cudaErrorMemoryAllocation);
    assert_int_equal(cudaSetDevice(1), cudaErrorInvalidDevice);
    assert_int_equal(cudaStreamSynchronize(NULL), cudaErrorInvalidResourceHandle);
}

int main(void)
{
#define EMULATED(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        EMULATED(warp_operations_give_what_cuda_documents),
        EMULATED(blocks_and_atomics_are_complete),
        EMULATED(barriers_hold_for_the_largest_block),
        EMULATED(a_missing_barrier_shows_in_some_order),
        EMULATED(a_missing_barrier_shows_when_a_warp_stays_behind),
        EMULATED(a_race_gives_different_results_in_different_orders),
        EMULATED(threads_that_do_not_meet_end_the_launch),
        EMULATED(shared_memory_is_fenced),
        EMULATED(writes_outside_a_block_are_found),
        EMULATED(reads_outside_a_block_fault_or_give_nan),
        EMULATED(a_misaligned_access_is_a_fault),
        EMULATED(host_memory_as_argument_of_a_kernel_is_refused),
        EMULATED(the_host_cannot_touch_device_memory),
        EMULATED(nothing_is_there_before_it_was_waited_for),
        EMULATED(a_missing_wait_between_streams_shows_in_some_order),
        EMULATED(events_are_polled_and_timed),
        EMULATED(launches_of_impossible_shape_are_refused),
        EMULATED(wrong_copies_and_frees_are_refused),
    };

    return tsr_unit_test_main("emulation.faults", tests, sizeof tests / sizeof *tests);
}
