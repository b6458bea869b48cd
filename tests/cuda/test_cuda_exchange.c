/* Exchanges on device memory, by NCCL on the emulated GPU, and groups of ranks that use their
 * communicators each in its own order. */
#include "tests/cuda/comm_fixture.h"

#include <string.h>

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

/* ---- several communicators ------------------------------------------------------------------ */

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
    groups g = {0};
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

/* Two nodes of two ranks, each place on a plane of its own; other sizes: nodes of one rank. The
 * composite on device memory does what the one on host memory does, to the bit. */
static void planes_equal_those_on_the_host(void **state)
{
    const tsr_nccl_options options = {.buffer_bytes = 96, .checks_order = true};
    tsr_comm *host[2] = {NULL}, *comm[2] = {NULL}, *near = NULL, *far = NULL;
    tsr_seat seats[TSR_TEST_MAX_RANKS];
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 20.0, &options));
    const int size = tsr_comm_size(f.host), rank = tsr_comm_rank(f.host);
    const int places = size == 4 ? 2 : 1;
    for (int r = 0; r < size; ++r) {
        seats[r] = (tsr_seat){.node = r / places, .plane = r % places};
    }
    tsr_comm_set_seats(f.host, seats);
    for (int i = 0; i < 2 && ok; ++i) {
        const int color = i == 0 ? rank / places : rank % places;
        ok = ok_or_say(tsr_comm_split(f.host, color, rank, &host[i])) &&
             ok_or_say(tsr_comm_create_nccl(host[i], f.device, &options, &comm[i]));
    }
    ok = ok && ok_or_say(tsr_comm_create_planes(f.host, host[0], host[1], &near)) &&
         ok_or_say(tsr_comm_create_planes(f.host, comm[0], comm[1], &far)) &&
         tsr_comm_takes_device_memory(far) && !tsr_comm_takes_device_memory(near);
    tsr_comm *const plain_host = f.host, *const plain = f.comm;
    f.host = near;
    f.comm = far;
    for (int kind = 0; kind < CUTS && ok; ++kind) {
        make_cuts(&f, kind);
        ok = reduce_scatter_equals(&f) && all_gather_equals(&f, 4) && all_gather_equals(&f, 2) &&
             broadcast_equals(&f, kind % size, 1013);
    }
    f.host = plain_host;
    f.comm = plain;
    tsr_comm_destroy(&far);
    tsr_comm_destroy(&near);
    for (int i = 0; i < 2; ++i) {
        tsr_comm_destroy(&comm[i]);
        tsr_comm_destroy(&host[i]);
    }
    tear_down(&f);
    assert_all_ranks(tsr_test_comm(), ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exchanges_equal_those_by_hand),
        cmocka_unit_test(long_lists_go_in_several_groups),
        cmocka_unit_test(planes_equal_those_on_the_host),
        cmocka_unit_test(groups_of_other_ranks_keep_their_own_order),
    };

    return tsr_mpi_test_main(argc, argv, "cuda exchange", tests, sizeof tests / sizeof *tests);
}
