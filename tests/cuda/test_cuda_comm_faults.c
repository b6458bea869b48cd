/* What is wrong on purpose is found in time, on every rank that meets it, and said in words. Dead
 * communicators leak on purpose: this is no test for a leak checker. */
#include "tests/cuda/comm_fixture.h"

#include <stdio.h>
#include <string.h>

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

/* One communicator fails on a rank: all others of that process end with it. */
static void one_failure_ends_all_of_a_process(void **state)
{
    const tsr_nccl_options options = {.buffer_bytes = BUFFER_BYTES};
    groups g = {0};
    fixture f;

    (void)state;
    bool ok = ok_or_say(set_up(&f, 20.0, &options)) && ok_or_say(make_groups(&f, &options, &g));
    if (ok && tsr_comm_size(g.comm[0]) == 2) {
        const int root_or_bytes = tsr_comm_rank(g.comm[0]);
        fake_nccl_set_deadline(0.5);
        ok = ok_or_say(
            tsr_comm_broadcast_on(g.comm[0], f.far, root_or_bytes == 0 ? 64 : 128, 0, f.stream));
        const tsr_status st = tsr_comm_stream_wait(f.comm, f.stream);
        if (root_or_bytes == 1) {
            ok = ok && st == TSR_ERR_COMM && tsr_comm_is_dead(g.comm[0]) &&
                 tsr_comm_is_dead(g.comm[1]) && tsr_comm_is_dead(f.comm) &&
                 tsr_comm_broadcast_on(g.comm[1], f.far, 4, 0, f.stream) == TSR_ERR_COMM &&
                 strstr(tsr_error_message(), "has failed before") != NULL &&
                 strstr(tsr_error_message(), "mismatch") != NULL; /* the cause, met elsewhere */
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
            const tsr_status st = tsr_stream_wait(f.stream); /* bounded as that of f.comm is */
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
        cmocka_unit_test(checked_order_is_refused_before_it_hangs),
        cmocka_unit_test(segments_that_do_not_fit_are_found),
        cmocka_unit_test(mismatch_is_found),
        cmocka_unit_test(another_order_of_communicators_is_found),
        cmocka_unit_test(one_failure_ends_all_of_a_process),
        cmocka_unit_test(a_missing_rank_is_a_timeout),
    };

    return tsr_mpi_test_main(argc, argv, "cuda comm faults", tests, sizeof tests / sizeof *tests);
}
