/* The optimizer's state through checkpoints: what any mesh (dp x ep) saved, any other resumes to
 * the bit, and its next step is that of one rank alone. */
#include "checkpoints/checkpoints.h"
#include "tests/checkpoints/state_fixture.h"
#include "tests/optim/optim_fixture.h"
#include "tests/support/mpi_test.h"

#include <string.h>

/* Owners in the order of their experts, or, as after a rebalancing, each layer's in another. */
static void deal(int ep, bool in_turn, int32_t owner[OPTIM_LAYERS * OPTIM_EXPERTS])
{
    tsr_expert_owners_even(OPTIM_LAYERS, OPTIM_EXPERTS, ep, owner);
    for (int i = 0; in_turn && i < OPTIM_LAYERS * OPTIM_EXPERTS; ++i) {
        owner[i] = (i % OPTIM_EXPERTS + i / OPTIM_EXPERTS) % ep;
    }
}

static bool open_mesh(optim_fixture *f, tsr_comm *comm, int ep, bool in_turn)
{
    int32_t owner[OPTIM_LAYERS * OPTIM_EXPERTS];
    const optim_options options = {
        .device = "cpu:plain", .compute = TSR_BF16, .clip_norm = 8, .ep = ep, .owner = owner};

    deal(ep, in_turn, owner);
    return optim_fixture_ok(optim_fixture_open(f, comm, &options));
}

static bool view_of(optim_fixture *f, tsr_state_view *view)
{
    *view = (tsr_state_view){.table = &f->table, .step = 1, .config_text = ""};
    return optim_fixture_ok(tsr_optimizer_slices(f->optimizer, &view->slices, &view->slice_count));
}

/* One step on this mesh, then a checkpoint. */
static bool save_mesh(tsr_comm *comm, int ep, bool in_turn, const char *run,
                      tsr_ckpt_result *result)
{
    const tsr_checkpoint_config config = {.keep = 0, .async = true};
    optim_fixture f = {0};
    tsr_ckpt_writer *writer = NULL;
    tsr_state_view view;
    double norm = 0.0, staged_s = 0.0;

    bool ok =
        open_mesh(&f, comm, ep, in_turn) && optim_fixture_ok(optim_fixture_step(&f, 1, &norm));
    ok = ok && view_of(&f, &view) &&
         optim_fixture_ok(tsr_ckpt_writer_create(comm, run, &config, &view, &writer)) &&
         optim_fixture_ok(tsr_ckpt_save(writer, &view, &staged_s)) &&
         optim_fixture_ok(tsr_ckpt_finish(writer, result));
    tsr_ckpt_writer_destroy(&writer);
    optim_fixture_close(&f);
    return ok;
}

/* Resume on this mesh: equal to `one`, which took that step alone; then one more step on both. */
static bool resumes(tsr_comm *comm, int ep, bool in_turn, const char *path)
{
    optim_fixture f = {0}, one = {0};
    tsr_comm *alone = NULL;
    tsr_state_view view;
    double norm = 0.0, norm_one = 0.0;

    bool ok = optim_fixture_ok(tsr_comm_create_self(&alone)) && open_mesh(&one, alone, 1, false) &&
              optim_fixture_ok(optim_fixture_step(&one, 1, &norm_one)) &&
              open_mesh(&f, comm, ep, in_turn) && view_of(&f, &view);
    ok = ok && optim_fixture_ok(tsr_ckpt_load(comm, path, &view)) &&
         optim_fixture_ok(tsr_optimizer_refresh(f.optimizer, f.stream)) &&
         optim_fixture_equal_weights(&f, &one) && optim_fixture_equal_state(&f, &one);
    ok = ok && optim_fixture_ok(optim_fixture_step(&f, 2, &norm)) &&
         optim_fixture_ok(optim_fixture_step(&one, 2, &norm_one)) && norm == norm_one &&
         optim_fixture_equal_weights(&f, &one) && optim_fixture_equal_state(&f, &one);
    optim_fixture_close(&f);
    optim_fixture_close(&one);
    tsr_comm_destroy(&alone);
    return ok;
}

static void any_mesh_resumes_any_other(void **state)
{
    tsr_comm *comm = tsr_test_comm();
    const int ranks = tsr_comm_size(comm);
    char run[TSR_TEXT_MAX] = "";
    uint64_t digest = 0;
    bool ok = tsr_comm_rank(comm) != 0 || fixture_folder(NULL, run);

    (void)state;
    ok = optim_fixture_ok(tsr_comm_broadcast(comm, run, sizeof run, 0)) && ok;
    for (int from = 1; ok && from <= 2 * ranks; ++from) {
        tsr_ckpt_result result = {.ended = false};
        const int ep = (from + 1) / 2; /* each twice: in order, in turn */

        if (ranks % ep != 0) {
            continue;
        }
        ok = save_mesh(comm, ep, from % 2 == 0, run, &result) && result.ended;
        digest = digest == 0 ? result.digest : digest;
        ok = ok && result.digest == digest;
        for (int to = 1; ok && to <= ranks; ++to) {
            ok = ranks % to != 0 || resumes(comm, to, from % 2 == 1, result.path);
        }
        tsr_comm *alone = NULL; /* and 1 x 1, each rank for itself */
        ok = ok && optim_fixture_ok(tsr_comm_create_self(&alone)) &&
             resumes(alone, 1, false, result.path);
        tsr_comm_destroy(&alone);
    }
    ok = tsr_comm_barrier(comm) == TSR_OK && ok;
    if (tsr_comm_rank(comm) == 0) {
        fixture_remove(run);
    }
    assert_all_ranks(comm, ok);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_mesh_resumes_any_other)};

    return tsr_mpi_test_main(argc, argv, "checkpoints.meshes", tests,
                             sizeof tests / sizeof tests[0]);
}
