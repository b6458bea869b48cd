/* The same on device memory, queued on a stream: equal to the host's to the bit. The GPU and NCCL
 * are emulated, device memory is out of the host's reach. */
#include "tests/collectives/sparse_rig.h"
#include "tests/emulation/fake_cudart.h"
#include "tests/emulation/fake_nccl.h"

enum { ROUNDS = 3 };

typedef struct fixture {
    tsr_comm *host, *comm;
    tsr_device *device;
    tsr_stream *stream;
    char *far; /* what is rig.values on the host */
} fixture;

static bool ok_or_say(tsr_status st)
{
    if (st != TSR_OK) {
        (void)fprintf(stderr, "%s\n", tsr_error_message());
    }
    return st == TSR_OK;
}

static tsr_status set_up(fixture *f, rig_layout layout)
{
    const tsr_nccl_options options = {.buffer_bytes = 1 << 16, .checks_order = true};
    static rig r;

    *f = (fixture){0};
    fake_nccl_set_deadline(10.0);
    rig_make(&r, tsr_test_comm(), 1, layout, RIG_RANDOM);
    TSR_TRY(tsr_comm_create_mpi(MPI_COMM_WORLD, 20.0, 0, &f->host));
    tsr_comm_set_seats(f->host, r.seats);
    TSR_TRY(tsr_device_open("cuda:emulated", 1, &f->device));
    TSR_TRY(tsr_stream_create(f->device, &f->stream));
    TSR_TRY(tsr_device_alloc(f->device, TSR_MEM_OTHER, sizeof r.values, (void **)&f->far));
    return tsr_comm_create_nccl(f->host, f->device, &options, &f->comm);
}

static void tear_down(fixture *f)
{
    tsr_comm_destroy(&f->comm);
    tsr_device_free(f->device, f->far);
    tsr_stream_destroy(&f->stream);
    tsr_device_close(&f->device);
    tsr_comm_destroy(&f->host);
}

static tsr_status copy(fixture *f, rig *r, tsr_copy_kind kind)
{
    const bool out = kind == TSR_COPY_HOST_TO_DEVICE;

    TSR_TRY(tsr_device_copy(f->device, out ? (void *)f->far : r->values,
                            out ? (const void *)r->values : f->far, sizeof r->values, kind,
                            f->stream));
    return tsr_stream_wait(f->stream);
}

/* Rough values: sums differ in their last bits from order to order. */
static void roughen(rig *r)
{
    float *value = &r->values[0][0][0];

    for (size_t i = 0; i < sizeof r->values / sizeof(float); ++i) {
        value[i] += (float)tsr_rng_uniform((uint64_t)r->rank + 3, i);
    }
}

/* Started on the device, and at once on the host. */
static bool equals_host(fixture *f, tsr_sparse *far, tsr_sparse *near, rig *r, bool sums)
{
    static rig got;
    tsr_sparse_call call = rig_call(r);

    rig_fill(r, !sums);
    roughen(r);
    got = *r;
    bool ok = ok_or_say(copy(f, &got, TSR_COPY_HOST_TO_DEVICE)) &&
              ok_or_say(sums ? tsr_sparse_reduce_scatter(near, &call)
                             : tsr_sparse_all_gather(near, &call));
    for (int i = 0; i < r->holding.chunks * r->parts; ++i) {
        const float *at = r->memory[i];
        r->memory[i] = at == NULL ? NULL : f->far + ((const char *)at - (const char *)r->values);
    }
    call.stream = f->stream;
    ok = ok && ok_or_say(sums ? tsr_sparse_start_reduce_scatter(far, &call)
                              : tsr_sparse_start_all_gather(far, &call));
    ok = ok && (sums ? tsr_sparse_start_reduce_scatter(far, &call)
                     : tsr_sparse_start_all_gather(far, &call)) == TSR_ERR_STATE;
    ok = ok_or_say(tsr_sparse_wait(&call)) && ok;
    ok = ok_or_say(tsr_sparse_wait(&call)) && ok; /* a second time: at once */
    ok = ok && ok_or_say(copy(f, &got, TSR_COPY_DEVICE_TO_HOST));
    return ok && memcmp(got.values, r->values, sizeof got.values) == 0;
}

static void layout_is_right(rig_layout layout)
{
    static rig r;
    fixture f;
    bool ok = ok_or_say(set_up(&f, layout));

    for (uint64_t round = 0; ok && round < ROUNDS; ++round) {
        tsr_sparse_options options = {.max_chunks = RIG_MOST_CHUNKS,
                                      .max_parts = RIG_MOST_PARTS,
                                      .min_piece_bytes = round == 0 ? 256 : 1500};
        tsr_sparse *near = NULL, *far = NULL;

        rig_make(&r, f.host, 40 + round, layout, round == 2 ? RIG_ALL_HOLD_ALL : RIG_RANDOM);
        fake_set_order(round % 2 == 0 ? FAKE_REVERSE : FAKE_RANDOM, round);
        ok = ok_or_say(tsr_sparse_create(f.host, NULL, &options, &near));
        options.device = f.device;
        ok = ok_or_say(tsr_sparse_create(f.comm, NULL, &options, &far)) && ok;
        ok = ok && equals_host(&f, far, near, &r, false) && equals_host(&f, far, near, &r, true);
        tsr_sparse_destroy(&near);
        tsr_sparse_destroy(&far);
    }
    fake_set_order(FAKE_FORWARD, 0);
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

static void one_node(void **state)
{
    (void)state;
    layout_is_right(RIG_ONE_NODE);
}

static void pairs_that_relay(void **state)
{
    (void)state;
    layout_is_right(RIG_PAIRS);
}

static void a_stream_is_asked_for(void **state)
{
    (void)state;
    const tsr_sparse_options plain = {.max_chunks = 1, .max_parts = 1};
    const int32_t begin[2] = {0, 1}, rank[1] = {0};
    const tsr_holding holding = {1, begin, rank};
    const int64_t bytes = 4;
    tsr_sparse *sparse = NULL;
    fixture f;

    bool ok = ok_or_say(set_up(&f, RIG_ONE_NODE));
    void *memory = f.far;
    tsr_sparse_options options = plain;
    options.device = f.device;
    ok = ok && ok_or_say(tsr_sparse_create(f.comm, NULL, &options, &sparse));
    tsr_sparse_call call = {
        .holding = &holding, .parts = 1, .part_bytes = &bytes, .memory = &memory};
    ok = ok && tsr_sparse_all_gather(sparse, &call) == TSR_ERR_ARG &&
         strstr(tsr_error_message(), "no stream, but chunks are device memory") != NULL;
    tsr_sparse_destroy(&sparse);
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_node),
        cmocka_unit_test(pairs_that_relay),
        cmocka_unit_test(a_stream_is_asked_for),
    };

    return tsr_mpi_test_main(argc, argv, "sparse nccl", tests, sizeof tests / sizeof *tests);
}
