/* Collectives on device memory against the same on host memory by MPI: equal to the bit. The GPU
 * and NCCL are emulated; what is wrong on purpose is found in time, on every rank. */
#include "tests/support/mpi_test.h"

#include "collectives/mpi_bridge.h"
#include "tests/emulation/fake_cudart.h"
#include "tests/emulation/fake_nccl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MOST = 700,            /* elements of a vector */
    BUFFER_BYTES = 1 << 16 /* little memory to fence: fast */
};

typedef struct fixture {
    tsr_comm *host, *comm;
    tsr_device *device;
    tsr_stream *stream;
    float *far;       /* device memory [MOST] */
    float near[MOST]; /* what has become of it */
    float want[MOST]; /* what MPI makes of it */
    int64_t cuts[TSR_TEST_MAX_RANKS + 1];
} fixture;

static bool ok_or_say(tsr_status st)
{
    if (st != TSR_OK) {
        (void)fprintf(stderr, "%s\n", tsr_error_message());
    }
    return st == TSR_OK;
}

static tsr_status set_up(fixture *f, double timeout_s, const tsr_nccl_options *options)
{
    *f = (fixture){0};
    TSR_TRY(tsr_comm_create_mpi(MPI_COMM_WORLD, timeout_s, 0, &f->host));
    TSR_TRY(tsr_device_open("cuda:emulated", 1, &f->device));
    TSR_TRY(tsr_stream_create(f->device, &f->stream));
    TSR_TRY(tsr_device_alloc(f->device, TSR_MEM_OTHER, sizeof f->near, (void **)&f->far));
    return tsr_comm_create_nccl(f->host, f->device, options, &f->comm);
}

static void tear_down(fixture *f)
{
    fake_clear_fault(); /* of a planted mistake */
    tsr_comm_destroy(&f->comm);
    tsr_device_free(f->device, f->far);
    tsr_stream_destroy(&f->stream);
    tsr_device_close(&f->device);
    tsr_comm_destroy(&f->host);
    fake_set_order(FAKE_FORWARD, 0);
    fake_nccl_set_deadline(20.0);
}

static void fill(fixture *f, uint64_t seed)
{
    const uint64_t key = seed * 100 + (uint64_t)tsr_comm_rank(f->host);

    for (int i = 0; i < MOST; ++i) {
        f->near[i] = (float)(tsr_rng_uniform(key, (uint64_t)i) - 0.5);
    }
    memcpy(f->want, f->near, sizeof f->near);
}

enum { EVEN, UNEVEN, SOME_EMPTY, ONE_OWNER, NOTHING, CUTS };

/* Each kind begins behind the vector's first element but EVEN, and ends before its last. */
static void make_cuts(fixture *f, int kind)
{
    const int size = tsr_comm_size(f->host);

    f->cuts[0] = kind == EVEN ? 0 : 3;
    for (int part = 0; part < size; ++part) {
        const int64_t lengths[CUTS] = {
            [EVEN] = 96,
            [UNEVEN] = 17 + 31 * part,
            [SOME_EMPTY] = part % 2 == 0 ? 0 : 129,
            [ONE_OWNER] = part == size - 1 ? 333 : 0,
            [NOTHING] = 0,
        };
        f->cuts[part + 1] = f->cuts[part] + lengths[kind];
    }
}

static tsr_status bring(fixture *f)
{
    return tsr_device_copy(f->device, f->far, f->near, sizeof f->near, TSR_COPY_HOST_TO_DEVICE,
                           f->stream);
}

static tsr_status fetch(fixture *f)
{
    TSR_TRY(tsr_comm_stream_wait(f->comm, f->stream));
    TSR_TRY(tsr_device_copy(f->device, f->near, f->far, sizeof f->near, TSR_COPY_DEVICE_TO_HOST,
                            f->stream));
    return tsr_stream_wait(f->stream);
}

static bool equal_part(const fixture *f, int64_t from, int64_t to)
{
    return memcmp(f->near + from, f->want + from, (size_t)(to - from) * sizeof(float)) == 0;
}

static bool reduce_scatter_equals(fixture *f)
{
    const int rank = tsr_comm_rank(f->comm);

    fill(f, 1);
    return ok_or_say(tsr_comm_reduce_scatter_f32(f->host, f->want, f->cuts)) &&
           ok_or_say(bring(f)) &&
           ok_or_say(tsr_comm_reduce_scatter_f32_on(f->comm, f->far, f->cuts, f->stream)) &&
           ok_or_say(fetch(f)) && equal_part(f, f->cuts[rank], f->cuts[rank + 1]);
}

static bool all_gather_equals(fixture *f, size_t element_bytes)
{
    fill(f, 2);
    return ok_or_say(tsr_comm_all_gather_parts(f->host, f->want, element_bytes, f->cuts)) &&
           ok_or_say(bring(f)) &&
           ok_or_say(
               tsr_comm_all_gather_parts_on(f->comm, f->far, element_bytes, f->cuts, f->stream)) &&
           ok_or_say(fetch(f)) && equal_part(f, 0, MOST);
}

static bool broadcast_equals(fixture *f, int root, size_t bytes)
{
    fill(f, 3);
    return ok_or_say(tsr_comm_broadcast(f->host, f->want, bytes, root)) && ok_or_say(bring(f)) &&
           ok_or_say(tsr_comm_broadcast_on(f->comm, f->far, bytes, root, f->stream)) &&
           ok_or_say(fetch(f)) && equal_part(f, 0, MOST);
}

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

/* ---- exchange ------------------------------------------------------------------------------- */

enum { MOST_SEGMENTS = 5, MOST_LENGTH = 20 }; /* between two ranks; of four bytes */

typedef struct plan {
    tsr_segment send[TSR_TEST_MAX_RANKS * MOST_SEGMENTS];
    tsr_segment receive[TSR_TEST_MAX_RANKS * MOST_SEGMENTS];
    int64_t send_begin[TSR_TEST_MAX_RANKS + 1], receive_begin[TSR_TEST_MAX_RANKS + 1];
} plan;

static int64_t draw(uint64_t key, uint64_t at, int64_t below)
{
    return (int64_t)(tsr_rng_uniform(key, at) * (double)below);
}

/* What one rank sends to another: from the lower half of its vector, any bytes if they are copied.
 * Every rank can tell for all. Some pairs have nothing, some segments are empty. */
static int64_t draw_pair(uint64_t seed, int from, int to, bool sums, tsr_segment *out)
{
    const uint64_t key = (seed * 100 + (uint64_t)from) * 100 + (uint64_t)to;
    const int64_t unit = sums ? 4 : 1, half = MOST / 2 * 4;
    const int64_t count = from == to ? 0 : draw(key, 0, MOST_SEGMENTS + 1);

    for (int64_t i = 0; i < count; ++i) {
        const int64_t bytes = draw(key, (uint64_t)(2 * i + 1), MOST_LENGTH * 4 / unit + 1) * unit;
        out[i] =
            (tsr_segment){draw(key, (uint64_t)(2 * i + 2), (half - bytes) / unit) * unit, bytes};
    }
    return count;
}

/* Received copies go to the upper half, one behind the other; what is summed meets there. */
static void make_plan(const fixture *f, uint64_t seed, bool sums, plan *p)
{
    const int size = tsr_comm_size(f->host), rank = tsr_comm_rank(f->host);
    const int64_t half = MOST / 2 * 4;
    int64_t next = half;

    *p = (plan){0};
    for (int peer = 0; peer < size; ++peer) {
        const int64_t begin = p->receive_begin[peer];

        p->send_begin[peer + 1] =
            p->send_begin[peer] + draw_pair(seed, rank, peer, sums, p->send + p->send_begin[peer]);
        p->receive_begin[peer + 1] = begin + draw_pair(seed, peer, rank, sums, p->receive + begin);
        for (int64_t i = begin; i < p->receive_begin[peer + 1]; ++i) {
            p->receive[i].at = sums ? half + draw(seed, (uint64_t)i, 40) * 4 : next;
            next += p->receive[i].bytes;
        }
    }
}

/* The same by hand: from everybody's vector, in the documented order. */
static bool exchange_by_hand(fixture *f, uint64_t seed, bool sums, const plan *p)
{
    static float all[TSR_TEST_MAX_RANKS][MOST];
    const int size = tsr_comm_size(f->host), rank = tsr_comm_rank(f->host);
    char *want = (char *)f->want;

    if (!ok_or_say(tsr_comm_all_gather(f->host, f->near, sizeof f->near, all))) {
        return false;
    }
    for (int distance = 1; distance < size; ++distance) {
        const int from = (rank - distance + size) % size;
        tsr_segment theirs[MOST_SEGMENTS];
        const int64_t count = draw_pair(seed, from, rank, sums, theirs);

        for (int64_t i = 0; i < count; ++i) {
            const tsr_segment *mine = &p->receive[p->receive_begin[from] + i];
            if (!sums) {
                memcpy(want + mine->at, (const char *)all[from] + theirs[i].at,
                       (size_t)mine->bytes);
            }
            for (int64_t k = 0; sums && k < mine->bytes / 4; ++k) {
                f->want[mine->at / 4 + k] += all[from][theirs[i].at / 4 + k];
            }
        }
    }
    return true;
}

static tsr_exchange exchange_of(const fixture *f, const plan *p, bool sums)
{
    return (tsr_exchange){.send = f->far,
                          .receive = f->far,
                          .send_segments = p->send,
                          .receive_segments = p->receive,
                          .send_begin = p->send_begin,
                          .receive_begin = p->receive_begin,
                          .sums = sums,
                          .purpose = TSR_TRAFFIC_DISPATCH};
}

static bool exchange_equals(fixture *f, uint64_t seed, bool sums)
{
    plan p;

    make_plan(f, seed, sums, &p);
    fill(f, seed);
    const tsr_exchange exchange = exchange_of(f, &p, sums);
    return exchange_by_hand(f, seed, sums, &p) && ok_or_say(bring(f)) &&
           ok_or_say(tsr_comm_exchange_on(f->comm, &exchange, f->stream)) && ok_or_say(fetch(f)) &&
           equal_part(f, 0, MOST);
}

static void exchanges_equal_those_by_hand(void **state)
{
    static const fake_order orders[] = {FAKE_FORWARD, FAKE_REVERSE, FAKE_RANDOM};
    static const size_t buffers[] = {BUFFER_BYTES, 48};
    bool ok = true;

    (void)state;
    for (int i = 0; i < 2; ++i) {
        const tsr_nccl_options options = {.buffer_bytes = buffers[i], .checks_order = i == 1};
        fixture f;
        ok = ok_or_say(set_up(&f, 20.0, &options)) && ok;
        for (uint64_t seed = 1; seed <= 6 && ok; ++seed) {
            fake_set_order(orders[seed % 3], seed);
            ok = exchange_equals(&f, seed, false) && ok;
            ok = exchange_equals(&f, seed, true) && ok;
        }
        tear_down(&f);
    }
    assert_all_ranks(tsr_test_comm(), ok);
}

/* More than fit a group, to the next rank alone: everybody else's list is empty. */
static void long_lists_go_in_several_groups(void **state)
{
    enum { SEGMENTS = 2 * MOST };
    static tsr_segment segments[SEGMENTS];
    const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES};
    int64_t send_begin[TSR_TEST_MAX_RANKS + 1] = {0}, receive_begin[TSR_TEST_MAX_RANKS + 1] = {0};
    float *other = NULL;
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 20.0, &options));
    const int size = tsr_comm_size(f.host), rank = tsr_comm_rank(f.host);
    ok = ok && ok_or_say(tsr_device_alloc(f.device, TSR_MEM_OTHER, sizeof f.near, (void **)&other));
    for (int i = 0; i < SEGMENTS; ++i) {
        segments[i] = (tsr_segment){(SEGMENTS - 1 - i) * 2, 2};
    }
    for (int peer = 0; size > 1 && peer < size; ++peer) {
        send_begin[peer + 1] = send_begin[peer] + (peer == (rank + 1) % size ? SEGMENTS : 0);
        receive_begin[peer + 1] =
            receive_begin[peer] + (peer == (rank + size - 1) % size ? SEGMENTS : 0);
    }
    fill(&f, 9);
    const tsr_exchange exchange = {.send = f.far,
                                   .receive = other,
                                   .send_segments = segments,
                                   .receive_segments = segments,
                                   .send_begin = send_begin,
                                   .receive_begin = receive_begin};
    ok = ok && ok_or_say(bring(&f)) &&
         ok_or_say(tsr_comm_exchange_on(f.comm, &exchange, f.stream)) &&
         ok_or_say(tsr_comm_stream_wait(f.comm, f.stream)) &&
         ok_or_say(tsr_device_copy(f.device, f.near, other, sizeof f.near, TSR_COPY_DEVICE_TO_HOST,
                                   f.stream)) &&
         ok_or_say(tsr_stream_wait(f.stream));
    const uint64_t key = 9 * 100 + (uint64_t)((rank + size - 1) % size);
    for (int i = 0; size > 1 && i < MOST; ++i) {
        ok = ok && f.near[i] == (float)(tsr_rng_uniform(key, (uint64_t)i) - 0.5);
    }
    tsr_device_free(f.device, other);
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
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

/* ---- planted faults ------------------------------------------------------------------------- */

static bool is_first(const fixture *f)
{
    return tsr_comm_rank(f->host) == 0;
}

static void checked_order_is_refused_before_it_hangs(void **state)
{
    const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES, .checks_order = true};
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 20.0, &options));
    if (tsr_comm_size(f.host) > 1) {
        make_cuts(&f, UNEVEN);
        const tsr_status st =
            is_first(&f) ? tsr_comm_reduce_scatter_f32_on(f.comm, f.far, f.cuts, f.stream)
                         : tsr_comm_all_gather_parts_on(f.comm, f.far, 4, f.cuts, f.stream);
        ok = ok && st == TSR_ERR_STATE &&
             strstr(tsr_error_message(), "rank 0 reduce-scatter (call 1 here)") != NULL &&
             strstr(tsr_error_message(), "rank 1 all-gather") != NULL;
        ok = ok &&
             tsr_comm_broadcast_on(f.comm, f.far, is_first(&f) ? 8 : 16, 0, f.stream) ==
                 TSR_ERR_STATE &&
             strstr(tsr_error_message(), "of other sizes") != NULL;
    }
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* Rank 0 sends less than rank 1 expects: refused if it is checked, else found by the library. */
static void segments_that_do_not_fit_are_found(void **state)
{
    bool ok = true;

    (void)state;
    for (int is_checked = 0; is_checked <= 1; ++is_checked) {
        const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES,
                                          .checks_order = is_checked != 0};
        tsr_segment segment = {.at = 0, .bytes = 64};
        int64_t send_begin[TSR_TEST_MAX_RANKS + 1] = {0},
                                                receive_begin[TSR_TEST_MAX_RANKS + 1] = {0};
        fixture f;

        ok = ok_or_say(set_up(&f, 20.0, &options)) && ok;
        const int size = tsr_comm_size(f.host), rank = tsr_comm_rank(f.host);
        for (int peer = 0; peer < size; ++peer) {
            send_begin[peer + 1] = send_begin[peer] + (rank == 0 && peer == 1);
            receive_begin[peer + 1] = receive_begin[peer] + (rank == 1 && peer == 0);
        }
        segment.bytes -= rank == 0 ? 4 : 0;
        const tsr_exchange exchange = {.send = f.far,
                                       .receive = f.far,
                                       .send_segments = &segment,
                                       .receive_segments = &segment,
                                       .send_begin = send_begin,
                                       .receive_begin = receive_begin};
        const tsr_status st = tsr_comm_exchange_on(f.comm, &exchange, f.stream);
        if (size == 1 || !is_checked) {
            ok = ok_or_say(st) && ok;
        } else {
            ok = ok && st == TSR_ERR_STATE &&
                 strstr(tsr_error_message(), "is not what another expects") != NULL;
        }
        const bool is_hit = size > 1 && !is_checked && rank == 1;
        const tsr_status waited = tsr_comm_stream_wait(f.comm, f.stream);
        ok = ok &&
             (is_hit ? waited == TSR_ERR_COMM && strstr(tsr_error_message(), "mismatch") != NULL
                     : waited == TSR_OK);
        ok = ok_or_say(tsr_comm_barrier(f.host)) && ok;
        tear_down(&f);
    }
    assert_all_ranks(tsr_test_comm(), ok);
}

/* Every rank that meets a call that is not its own fails; none hangs. */
static void mismatch_is_found(void **state)
{
    const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES};
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 20.0, &options));
    if (tsr_comm_size(f.host) > 1) {
        fake_nccl_set_deadline(0.5);
        make_cuts(&f, EVEN);
        tsr_status st = is_first(&f)
                            ? tsr_comm_broadcast_on(f.comm, f.far, 64, 0, f.stream)
                            : tsr_comm_all_gather_parts_on(f.comm, f.far, 4, f.cuts, f.stream);
        ok = ok && ok_or_say(st);
        st = tsr_comm_stream_wait(f.comm, f.stream);
        ok = ok && st == TSR_ERR_COMM && strstr(tsr_error_message(), "mismatch") != NULL &&
             tsr_comm_is_dead(f.comm) && tsr_comm_stream_wait(f.comm, f.stream) == TSR_ERR_COMM;
        ok = ok_or_say(tsr_comm_barrier(f.host)) && ok;
    }
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* Two communicators, used by rank 0 in one order and by the others in the other one. */
static void another_order_of_communicators_is_found(void **state)
{
    const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES};
    tsr_comm *second = NULL;
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 20.0, &options)) &&
              ok_or_say(tsr_comm_create_nccl(f.host, f.device, &options, &second));
    if (tsr_comm_size(f.host) > 1) {
        fake_nccl_set_deadline(0.5);
        make_cuts(&f, UNEVEN);
        for (int turn = 0; turn < 2; ++turn) {
            tsr_comm *const comm = is_first(&f) == (turn == 0) ? f.comm : second;
            ok = ok_or_say(tsr_comm_all_gather_parts_on(comm, f.far, 4, f.cuts, f.stream)) && ok;
        }
        const tsr_status st = tsr_comm_stream_wait(f.comm, f.stream);
        ok = ok && st == TSR_ERR_COMM && strstr(tsr_error_message(), "deadlock") != NULL &&
             strstr(tsr_error_message(), "communicators are used in different orders") != NULL &&
             tsr_comm_is_dead(f.comm) && tsr_comm_is_dead(second);
        ok = ok_or_say(tsr_comm_barrier(f.host)) && ok;
    }
    tsr_comm_destroy(&second);
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* ---- several communicators ------------------------------------------------------------------ */

/* Pairs of neighbours, and those with the same place in their pair: as experts and replicas. */
typedef struct groups {
    tsr_comm *host[2], *comm[2];
} groups;

static tsr_status make_groups(fixture *f, const tsr_nccl_options *options, groups *g)
{
    const int rank = tsr_comm_rank(f->host);

    *g = (groups){0};
    for (int i = 0; i < 2; ++i) {
        TSR_TRY(tsr_comm_split(f->host, i == 0 ? rank / 2 : rank % 2, rank, &g->host[i]));
        TSR_TRY(tsr_comm_create_nccl(g->host[i], f->device, options, &g->comm[i]));
    }
    return TSR_OK;
}

static void end_groups(groups *g)
{
    for (int i = 0; i < 2; ++i) {
        tsr_comm_destroy(&g->comm[i]);
        tsr_comm_destroy(&g->host[i]);
    }
}

/* Each of the pair gets what the other has: rank + 1, from element 0 to element 1. */
static bool swap_in_pair(fixture *f, groups *g)
{
    static const tsr_segment out = {0, 4}, in = {4, 4};
    const int size = tsr_comm_size(g->comm[0]), rank = tsr_comm_rank(g->comm[0]);
    const int64_t begin[3] = {0, rank == 1 && size == 2, size == 2};
    const tsr_exchange exchange = {.send = f->far,
                                   .receive = f->far,
                                   .send_segments = &out,
                                   .receive_segments = &in,
                                   .send_begin = begin,
                                   .receive_begin = begin};

    f->near[0] = (float)(tsr_comm_rank(f->host) + 1);
    f->near[1] = 0.0f;
    const float want = size == 2 ? (float)((tsr_comm_rank(f->host) ^ 1) + 1) : 0.0f;
    return ok_or_say(bring(f)) &&
           ok_or_say(tsr_comm_exchange_on(g->comm[0], &exchange, f->stream)) &&
           ok_or_say(fetch(f)) && f->near[1] == want;
}

/* Pairs may make different numbers of calls: the check compares the members of each alone. */
static void groups_of_other_ranks_keep_their_own_order(void **state)
{
    const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES, .checks_order = true};
    groups g;
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 20.0, &options)) && ok_or_say(make_groups(&f, &options, &g));
    const int rank = tsr_comm_rank(f.host);
    for (int round = 0; ok && round < 3; ++round) {
        for (int i = 0; i <= rank / 2 + round; ++i) {
            ok = swap_in_pair(&f, &g) && ok;
        }
        /* sums of rank + 1 over the replicas, then over all */
        const int64_t cuts[3] = {0, 1, tsr_comm_size(g.comm[1])};
        f.near[0] = f.near[1] = (float)(rank + 1);
        ok = ok && ok_or_say(bring(&f)) &&
             ok_or_say(tsr_comm_reduce_scatter_f32_on(g.comm[1], f.far, cuts, f.stream)) &&
             ok_or_say(fetch(&f));
        float want = 0.0f;
        for (int r = rank % 2; r < tsr_comm_size(f.host); r += 2) {
            want += (float)(r + 1);
        }
        ok = ok && f.near[tsr_comm_rank(g.comm[1])] == want;
        make_cuts(&f, UNEVEN);
        ok = ok && reduce_scatter_equals(&f);
    }
    end_groups(&g);
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* One communicator fails on a rank: all others of that process end with it. */
static void one_failure_ends_all_of_a_process(void **state)
{
    const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES};
    groups g;
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 20.0, &options)) && ok_or_say(make_groups(&f, &options, &g));
    const bool is_pair = tsr_comm_size(g.comm[0]) == 2;
    if (ok && is_pair) {
        const int root_or_bytes = tsr_comm_rank(g.comm[0]);
        fake_nccl_set_deadline(0.5);
        ok = ok_or_say(
            tsr_comm_broadcast_on(g.comm[0], f.far, root_or_bytes == 0 ? 64 : 128, 0, f.stream));
        const tsr_status st = tsr_comm_stream_wait(f.comm, f.stream);
        if (root_or_bytes == 1) {
            ok = ok && st == TSR_ERR_COMM && tsr_comm_is_dead(g.comm[0]) &&
                 tsr_comm_is_dead(g.comm[1]) && tsr_comm_is_dead(f.comm) &&
                 tsr_comm_broadcast_on(g.comm[1], f.far, 4, 0, f.stream) == TSR_ERR_COMM;
        }
    }
    ok = ok_or_say(tsr_comm_barrier(f.host)) && ok;
    end_groups(&g);
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

/* The last rank does not come: the others stop NCCL after half of timeout_s and say so. */
static void a_missing_rank_is_a_timeout(void **state)
{
    const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES};
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 6.0, &options));
    const int size = tsr_comm_size(f.host);
    if (size > 1) {
        make_cuts(&f, UNEVEN);
        if (tsr_comm_rank(f.host) == size - 1) {
            ok = ok_or_say(tsr_comm_barrier(f.host)) && ok; /* it lives, as all will see */
        } else {
            const double start = MPI_Wtime();
            ok = ok_or_say(tsr_comm_reduce_scatter_f32_on(f.comm, f.far, f.cuts, f.stream)) && ok;
            const tsr_status st = tsr_comm_stream_wait(f.comm, f.stream);
            ok = ok && st == TSR_ERR_TIMEOUT && MPI_Wtime() - start < 6.0 &&
                 strstr(tsr_error_message(), "NCCL is not through within 3 s") != NULL &&
                 strstr(tsr_error_message(), "all ranks respond") != NULL &&
                 tsr_comm_is_dead(f.comm) && !tsr_comm_is_dead(f.host) &&
                 ok_or_say(tsr_stream_wait(f.stream)); /* it was aborted: the stream ends */
            if (!ok) {
                (void)fprintf(stderr, "after %g s: %s\n", MPI_Wtime() - start, tsr_error_message());
            }
        }
    }
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(operations_equal_those_of_mpi),
        cmocka_unit_test(exchanges_equal_those_by_hand),
        cmocka_unit_test(long_lists_go_in_several_groups),
        cmocka_unit_test(library_sums_are_close),
        cmocka_unit_test(streams_take_turns),
        cmocka_unit_test(host_memory_goes_by_mpi),
        cmocka_unit_test(bad_starts_are_refused_everywhere),
        cmocka_unit_test(checked_order_is_refused_before_it_hangs),
        cmocka_unit_test(segments_that_do_not_fit_are_found),
        cmocka_unit_test(mismatch_is_found),
        cmocka_unit_test(another_order_of_communicators_is_found),
        cmocka_unit_test(groups_of_other_ranks_keep_their_own_order),
        cmocka_unit_test(one_failure_ends_all_of_a_process),
        cmocka_unit_test(a_missing_rank_is_a_timeout),
    };

    return tsr_mpi_test_main(argc, argv, "cuda comm", tests, sizeof tests / sizeof *tests);
}
