/* Collectives on device memory against the same on host memory by MPI: equal to the bit. The GPU
 * and NCCL are emulated. */
#include "tests/cuda/comm_fixture.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static bool all_equal(fixture *f)
{
    bool ok = true;

    for (int kind = 0; kind < CUTS; ++kind) {
        make_cuts(f, kind);
        ok = reduce_scatter_equals(f) && ok;
        ok = all_gather_equals(f, 4) && ok;
        ok = all_gather_equals(f, 2) && ok;
    }
    for (int root = 0; root < tsr_comm_size(f->comm); ++root) {
        ok = broadcast_equals(f, root, 1013) && ok;
    }
    return broadcast_equals(f, 0, 0) && ok;
}

/* Buffers that hold all, and such that parts go in many pieces, the last one short. */
static void operations_equal_those_of_mpi(void **state)
{
    static const fake_order orders[] = {FAKE_FORWARD, FAKE_REVERSE, FAKE_RANDOM};
    static const size_t buffers[] = {BUFFER_BYTES, 960};
    bool ok = true;

    (void)state;
    for (int i = 0; i < 2; ++i) {
        const tsr_nccl_options options = {.buffer_bytes = buffers[i], .max_ctas = 8};
        fixture f;
        ok = ok_or_say(set_up(&f, 20.0, &options)) && ok;
        for (int k = 0; k < 3 && ok; ++k) {
            fake_set_order(orders[k], 7);
            ok = all_equal(&f);
        }
        tear_down(&f);
    }
    assert_all_ranks(tsr_test_comm(), ok);
}

/* NCCL's own order: |error| <= (P - 1) eps sum|x|, eps = 2^-24, here and in MPI's sum. */
static void library_sums_are_close(void **state)
{
    const tsr_nccl_options options = {
        .buffer_bytes = BUFFER_BYTES, .library_sums = true, .checks_order = true};
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 20.0, &options));
    const int size = tsr_comm_size(f.host), rank = tsr_comm_rank(f.host);
    make_cuts(&f, EVEN);
    (void)reduce_scatter_equals(&f);
    const double bound = 2.0 * (size - 1) * ldexp(1.0, -24) * 0.5 * size;
    for (int64_t i = f.cuts[rank]; i < f.cuts[rank + 1]; ++i) {
        ok = ok && fabs((double)f.near[i] - (double)f.want[i]) <= bound;
    }
    make_cuts(&f, UNEVEN); /* the documented order again */
    ok = ok && reduce_scatter_equals(&f);
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* The buffer is one: what is queued on another stream waits for it. */
static void streams_take_turns(void **state)
{
    const tsr_nccl_options options = {.buffer_bytes = 240};
    tsr_stream *other = NULL;
    fixture f;

    (void)state;
    bool ok =
        ok_or_say(set_up(&f, 20.0, &options)) && ok_or_say(tsr_stream_create(f.device, &other));
    const int rank = tsr_comm_rank(f.host);
    make_cuts(&f, UNEVEN);
    fill(&f, 4);
    fake_set_order(FAKE_REVERSE, 0);
    ok = ok && ok_or_say(bring(&f)) && ok_or_say(tsr_comm_stream_wait(f.comm, f.stream)) &&
         ok_or_say(tsr_comm_reduce_scatter_f32_on(f.comm, f.far, f.cuts, other)) &&
         ok_or_say(tsr_comm_all_gather_parts_on(f.comm, f.far, 4, f.cuts, f.stream)) &&
         ok_or_say(fetch(&f)) && ok_or_say(tsr_comm_reduce_scatter_f32(f.host, f.want, f.cuts)) &&
         ok_or_say(tsr_comm_all_gather_parts(f.host, f.want, 4, f.cuts)) &&
         equal_part(&f, f.cuts[0], f.cuts[tsr_comm_size(f.host)]) && rank >= 0;
    tsr_stream_destroy(&other);
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

static void host_memory_goes_by_mpi(void **state)
{
    const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES};
    int64_t before[TSR_LINKS], after[TSR_LINKS];
    double sum = 1.0;
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 20.0, &options));
    const int size = tsr_comm_size(f.comm);
    ok = ok && tsr_comm_takes_device_memory(f.comm) && !tsr_comm_takes_device_memory(f.host) &&
         ok_or_say(tsr_comm_all_reduce_f64(f.comm, &sum, 1, TSR_REDUCE_SUM)) && sum == size &&
         ok_or_say(tsr_comm_barrier(f.comm)) && ok_or_say(tsr_comm_agree(f.comm, TSR_OK));
    make_cuts(&f, EVEN);
    fill(&f, 1);
    tsr_comm_bytes(f.comm, before);
    ok = ok && reduce_scatter_equals(&f);
    tsr_comm_bytes(f.comm, after);
    ok = ok && after[TSR_LINK_INTRA_NODE] - before[TSR_LINK_INTRA_NODE] == (size - 1) * 96 * 4;
    ok = ok &&
         tsr_comm_reduce_scatter_f32_on(f.host, f.far, f.cuts, f.stream) == TSR_ERR_UNSUPPORTED &&
         strstr(tsr_error_message(), "mpi communicator") != NULL;
    f.cuts[1] = -1;
    ok = ok && tsr_comm_reduce_scatter_f32_on(f.comm, f.far, f.cuts, f.stream) == TSR_ERR_ARG &&
         tsr_comm_all_gather_parts_on(f.comm, f.far, 3, f.cuts, f.stream) == TSR_ERR_ARG &&
         tsr_comm_broadcast_on(f.comm, f.far, 4, size, f.stream) == TSR_ERR_ARG;
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* ---- what is refused at the start ------------------------------------------------------------ */

static bool is_refused(const tsr_nccl_options *options, const char *device, tsr_status code,
                       const char *text)
{
    tsr_device *opened = NULL;
    tsr_comm *comm = NULL;
    bool ok = ok_or_say(tsr_device_open(device, 1, &opened));

    ok = ok && tsr_comm_create_nccl(tsr_test_comm(), opened, options, &comm) == code &&
         comm == NULL && strstr(tsr_error_message(), text) != NULL;
    if (!ok) {
        (void)fprintf(stderr, "wanted \"%s\", got \"%s\"\n", text, tsr_error_message());
    }
    tsr_device_close(&opened);
    return ok;
}

static void bad_starts_are_refused_everywhere(void **state)
{
    const bool is_last = tsr_comm_rank(tsr_test_comm()) == tsr_comm_size(tsr_test_comm()) - 1;
    const bool are_many = tsr_comm_size(tsr_test_comm()) > 1;
    const tsr_nccl_options none = {0}, wide = {.max_ctas = 65}, small = {.buffer_bytes = 4},
                           own = {.max_ctas = is_last ? 4 : 8},
                           bad_here = {.max_ctas = is_last ? -1 : 0};

    (void)state;
    bool ok = is_refused(&wide, "cuda:emulated", TSR_ERR_ARG, "max_ctas = 65, must be in [0, 64]");
    ok = is_refused(&none, "cpu:plain", TSR_ERR_UNSUPPORTED, "use mpi") && ok;
    ok = is_refused(&bad_here, "cuda:emulated", is_last ? TSR_ERR_ARG : TSR_ERR_PEER,
                    "max_ctas = -1") &&
         ok;
    if (are_many) {
        ok = is_refused(&small, "cuda:emulated", TSR_ERR_ARG, "buffer_bytes = 4") && ok;
        ok = is_refused(&own, "cuda:emulated", TSR_ERR_ARG, "differ between ranks") && ok;
        fake_nccl_share_gpu(true);
        ok = is_refused(&none, "cuda:emulated", TSR_ERR_UNSUPPORTED,
                        "ranks 0 and 1 share the GPU 0000:00:00.0") &&
             ok;
        ok = strstr(tsr_error_message(), "use collectives by mpi") != NULL && ok;
        fake_nccl_share_gpu(false);
    }
    assert_all_ranks(tsr_test_comm(), ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operations_equal_those_of_mpi),
        cmocka_unit_test(library_sums_are_close),
        cmocka_unit_test(streams_take_turns),
        cmocka_unit_test(host_memory_goes_by_mpi),
        cmocka_unit_test(bad_starts_are_refused_everywhere),
    };

    return tsr_mpi_test_main(argc, argv, "cuda comm", tests, sizeof tests / sizeof *tests);
}
