/* Several ranks: what P ranks saved, any other number loads to the bit; digests do not depend on
 * the layout; a failure on one rank reaches all and leaves nothing behind. */
#include "collectives/mpi_bridge.h"
#include "tests/checkpoints/state_fixture.h"
#include "tests/support/mpi_test.h"

#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const tsr_checkpoint_config behind = {.keep = 0, .async = true};
static const tsr_checkpoint_config at_once = {.keep = 0, .async = false};

/* A folder of rank 0, known to all. */
static bool shared_folder(tsr_comm *comm, char out[TSR_TEXT_MAX])
{
    const bool ok = tsr_comm_rank(comm) != 0 || fixture_folder(NULL, out);

    return tsr_comm_broadcast(comm, out, TSR_TEXT_MAX, 0) == TSR_OK && ok;
}

static void remove_folder(tsr_comm *comm, const char *path)
{
    const tsr_status st = tsr_comm_barrier(comm);

    if (tsr_comm_rank(comm) == 0 && st == TSR_OK) {
        fixture_remove(path);
    }
}

/* The first `size` ranks among themselves; NULL on the others. */
static bool first_ranks(int size, tsr_comm **out)
{
    MPI_Comm part = MPI_COMM_NULL;
    int rank = 0;
    bool ok = true;

    *out = NULL;
    (void)MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    (void)MPI_Comm_split(MPI_COMM_WORLD, rank < size ? 0 : MPI_UNDEFINED, rank, &part);
    if (part != MPI_COMM_NULL) {
        ok = tsr_comm_create_mpi(part, 20.0, 0, out) == TSR_OK;
        (void)MPI_Comm_free(&part);
    }
    return ok;
}

static bool save_on(int size, fixture_cut cut, const char *run, const tsr_checkpoint_config *config,
                    tsr_ckpt_result *result)
{
    tsr_comm *part = NULL;
    fixture state;
    bool ok = first_ranks(size, &part);

    if (ok && part != NULL) {
        ok = fixture_make(&state, cut, tsr_comm_rank(part), size, TSR_BF16, 10, 1) &&
             fixture_save(part, run, &state, config, result) == TSR_OK && result->ended;
        fixture_free(&state);
    }
    tsr_comm_destroy(&part);
    return ok;
}

static bool load_on(int size, fixture_cut cut, const char *path)
{
    tsr_comm *part = NULL;
    fixture state;
    bool ok = first_ranks(size, &part);

    if (ok && part != NULL) {
        ok = fixture_make(&state, cut, tsr_comm_rank(part), size, TSR_F32, 1, 1);
        fixture_wipe(&state);
        ok = ok && tsr_ckpt_load(part, path, &state.view) == TSR_OK && fixture_holds(&state, 10);
        fixture_free(&state);
    }
    tsr_comm_destroy(&part);
    return ok;
}

static void any_layout_loads_any_other(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int size = tsr_comm_size(comm);
    char run[TSR_TEXT_MAX] = "";
    uint64_t digest = 0;
    bool ok = shared_folder(comm, run);

    for (int i = 0; i < size * CUTS; ++i) {
        tsr_ckpt_result result = {.ended = false};
        ok = save_on(i / CUTS + 1, (fixture_cut)(i % CUTS), run, i % 2 ? &behind : &at_once,
                     &result) &&
             ok;
        const tsr_status st = tsr_comm_broadcast(comm, &result, sizeof result, 0);
        digest = i == 0 ? result.digest : digest;
        ok = ok && st == TSR_OK && result.digest == digest;
        ok = ok && (tsr_comm_rank(comm) != 0 || tsr_ckpt_verify(result.path) == TSR_OK);
        for (int to = 1; to <= size; ++to) {
            ok = load_on(to, (fixture_cut)((i + to) % CUTS), result.path) && ok;
        }
    }
    remove_folder(comm, run);
    assert_all_ranks(comm, ok);
}

/* As a training loop does: phases ride on an exchange that every step has anyway. */
static bool steps_until_ended(tsr_comm *comm, tsr_ckpt_writer *writer, tsr_ckpt_result *result)
{
    for (int step = 0; step < 20000; ++step) {
        const tsr_ckpt_phase phase = tsr_ckpt_local_phase(writer);
        double counts[2] = {phase == TSR_CKPT_WRITTEN, phase == TSR_CKPT_FAILED};
        if (tsr_comm_rank(comm) == tsr_comm_size(comm) - 1 && step < 20) {
            counts[0] = 0.0; /* the last rank's disk is slow */
        }
        if (tsr_comm_all_reduce_f64(comm, counts, 2, TSR_REDUCE_SUM) != TSR_OK ||
            tsr_ckpt_progress(writer, (int)counts[0], (int)counts[1], result) != TSR_OK) {
            return false;
        }
        if (result->ended) {
            return step >= 20;
        }
        (void)usleep(500);
    }
    return false;
}

static void progress_waits_for_the_slowest(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int rank = tsr_comm_rank(comm), size = tsr_comm_size(comm);
    char run[TSR_TEXT_MAX] = "";
    tsr_ckpt_writer *writer = NULL;
    tsr_ckpt_result result = {.ended = false};
    fixture self;
    double staged_s = -1.0;

    bool ok = shared_folder(comm, run);
    ok = fixture_make(&self, CUT_EVEN, rank, size, TSR_F32, 10, 1) && ok;
    ok = ok && tsr_ckpt_writer_create(comm, run, &behind, &self.view, &writer) == TSR_OK;
    ok = ok && tsr_ckpt_save(writer, &self.view, &staged_s) == TSR_OK;
    fixture_set_step(&self, 11); /* the steps go on */
    ok = ok && steps_until_ended(comm, writer, &result) && result.step == 10;
    fixture_wipe(&self);
    ok = ok && tsr_ckpt_load(comm, result.path, &self.view) == TSR_OK && fixture_holds(&self, 10);
    tsr_ckpt_writer_destroy(&writer);
    fixture_free(&self);
    remove_folder(comm, run);
    assert_all_ranks(comm, ok);
}

static void one_rank_fails_and_all_know(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int rank = tsr_comm_rank(comm), size = tsr_comm_size(comm);
    const bool is_culprit = rank == size - 1;
    char run[TSR_TEXT_MAX] = "", folder[TSR_TEXT_MAX + 64];
    tsr_ckpt_writer *writer = NULL;
    tsr_ckpt_result result = {.ended = true};
    struct rlimit before, small;
    fixture self;
    double staged_s = 0.0;

    bool ok = shared_folder(comm, run);
    ok = fixture_make(&self, CUT_EVEN, rank, size, TSR_F32, 10, 1) && ok;
    ok = ok && tsr_ckpt_writer_create(comm, run, &behind, &self.view, &writer) == TSR_OK;
    (void)signal(SIGXFSZ, SIG_IGN);
    ok = getrlimit(RLIMIT_FSIZE, &before) == 0 && ok;
    small = (struct rlimit){.rlim_cur = 100, .rlim_max = before.rlim_max};
    ok = ok && (!is_culprit || setrlimit(RLIMIT_FSIZE, &small) == 0);
    ok = ok && tsr_ckpt_save(writer, &self.view, &staged_s) == TSR_OK;
    const tsr_status st = ok ? tsr_ckpt_finish(writer, &result) : TSR_OK;
    ok = ok && st == (is_culprit ? TSR_ERR_IO : TSR_ERR_PEER) && !result.ended;
    ok = ok && strstr(tsr_error_message(), "File too large") != NULL;
    ok = setrlimit(RLIMIT_FSIZE, &before) == 0 && ok;
    (void)snprintf(folder, sizeof folder, "%s/checkpoints/step-00000010", run);
    ok = tsr_comm_barrier(comm) == TSR_OK && ok;
    ok = ok && access(folder, F_OK) != 0;
    /* later saves may be tried */
    ok = ok && tsr_ckpt_save(writer, &self.view, &staged_s) == TSR_OK;
    ok = ok && tsr_ckpt_finish(writer, &result) == TSR_OK && result.ended;
    tsr_ckpt_writer_destroy(&writer);
    fixture_free(&self);
    remove_folder(comm, run);
    assert_all_ranks(comm, ok);
}

static void a_damaged_shard_fails_on_its_reader(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int rank = tsr_comm_rank(comm), size = tsr_comm_size(comm);
    char run[TSR_TEXT_MAX] = "", path[TSR_TEXT_MAX + 32];
    tsr_ckpt_result result = {.ended = false};
    fixture self;

    bool ok = shared_folder(comm, run);
    ok = fixture_make(&self, CUT_EVEN, rank, size, TSR_F32, 10, 1) && ok;
    ok = ok && fixture_save(comm, run, &self, &behind, &result) == TSR_OK;
    (void)snprintf(path, sizeof path, "%s/shard-%04d.h5", result.path, size - 1);
    ok = ok && (rank != 0 || fixture_flip(path, 3000));
    ok = tsr_comm_barrier(comm) == TSR_OK && ok;
    const tsr_status st = ok ? tsr_ckpt_load(comm, result.path, &self.view) : TSR_OK;
    ok = ok && st == (rank == size - 1 ? TSR_ERR_FORMAT : TSR_ERR_PEER);
    (void)snprintf(path, sizeof path, "shard-%04d.h5", size - 1);
    ok = ok && strstr(tsr_error_message(), path) != NULL;
    fixture_free(&self);
    remove_folder(comm, run);
    assert_all_ranks(comm, ok);
}

static void rows_that_nobody_or_two_have_are_refused(void **state)
{
    (void)state;
    tsr_comm *comm = tsr_test_comm();
    const int rank = tsr_comm_rank(comm), size = tsr_comm_size(comm);
    char run[TSR_TEXT_MAX] = "";
    tsr_ckpt_writer *writer = NULL;
    fixture self;

    bool ok = shared_folder(comm, run);
    ok = fixture_make(&self, CUT_EVEN, rank, size, TSR_F32, 10, 1) && ok;
    if (rank == size - 1) {
        self.slices[self.view.slice_count - 1].row_end -= 1; /* lm_head's last row */
    }
    ok = ok && tsr_ckpt_writer_create(comm, run, &behind, &self.view, &writer) == TSR_ERR_ARG;
    ok = ok && writer == NULL && strstr(tsr_error_message(), "lm_head.weight: rows from 18") &&
         strstr(tsr_error_message(), "no rank");
    if (rank == size - 1) {
        self.slices[self.view.slice_count - 1].row_end += 2;
    }
    const tsr_status st = tsr_ckpt_writer_create(comm, run, &behind, &self.view, &writer);
    ok = ok && st == (rank == size - 1 ? TSR_ERR_ARG : TSR_ERR_PEER) && writer == NULL;
    ok = ok && strstr(tsr_error_message(), "of lm_head.weight, which has 19") != NULL;
    fixture_free(&self);
    remove_folder(comm, run);
    assert_all_ranks(comm, ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_layout_loads_any_other),
        cmocka_unit_test(progress_waits_for_the_slowest),
        cmocka_unit_test(one_rank_fails_and_all_know),
        cmocka_unit_test(a_damaged_shard_fails_on_its_reader),
        cmocka_unit_test(rows_that_nobody_or_two_have_are_refused),
    };

    return tsr_mpi_test_main(argc, argv, "checkpoints.layouts", tests,
                             sizeof tests / sizeof tests[0]);
}
