/* SIGKILL at every step of writing: afterwards the newest checkpoint is the old or the new one,
 * valid to the bit. A child saves twice and is killed at point n of the second, for n = 1, 2, ... until it survives. */
#include "tests/checkpoints/state_fixture.h"
#include "tests/support/unit_test.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct scene {
    const char *run;
    int64_t before, step, keep;
} scene;

static bool save(const scene *self, int64_t step)
{
    const tsr_checkpoint_config config = {.keep = self->keep, .async = true};
    tsr_comm *comm = NULL;
    tsr_ckpt_result result;
    fixture state;

    if (tsr_comm_create_self(&comm) != TSR_OK ||
        !fixture_make(&state, CUT_EVEN, 0, 1, TSR_F32, step, 1)) {
        return false;
    }
    const bool ok = fixture_save(comm, self->run, &state, &config, &result) == TSR_OK;
    fixture_free(&state);
    tsr_comm_destroy(&comm);
    return ok;
}

/* True if the child was killed in its second save, false if it came to its end. */
static bool save_twice_in_child(const scene *self, int kill_at)
{
    int status = 0;
    const pid_t child = fork();

    if (child == 0) {
        const bool has_saved = save(self, self->before);
        tsr_ckpt_kill_at(kill_at);
        _exit(has_saved && save(self, self->step) ? 0 : 1);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

/* Newest checkpoint: found without a complaint about broken ones, and holding its step's bits. */
static int64_t newest(const char *run, tsr_comm *comm)
{
    tsr_ckpt_info info = {.step = 0};
    fixture state;
    bool found = false;

    assert_ok(tsr_ckpt_find(run, NULL, NULL, &found, &info));
    assert_true(found);
    assert_ok(tsr_ckpt_verify(info.path));
    assert_true(fixture_make(&state, CUT_EVEN, 0, 1, TSR_F32, 1, 1));
    fixture_wipe(&state);
    assert_ok(tsr_ckpt_load(comm, info.path, &state.view));
    assert_true(fixture_holds(&state, info.step));
    fixture_free(&state);
    tsr_ckpt_info_free(&info);
    return state.view.step;
}

/* Kill a save of `step` at every point after `before` was saved; the next save must do. */
static void kill_everywhere(int64_t before, int64_t step, int64_t keep, int least_points)
{
    tsr_comm *comm = NULL;
    int point = 1, times_old = 0, times_new = 0;
    bool was_killed = true;

    assert_ok(tsr_comm_create_self(&comm));
    for (; was_killed; ++point) {
        char run[TSR_TEXT_MAX];
        assert_true(fixture_folder("/dev/shm", run)); /* what is asked does not need a disk */
        const scene self = {.run = run, .before = before, .step = step, .keep = keep};
        was_killed = save_twice_in_child(&self, point);
        const int64_t at = newest(run, comm);
        assert_true(at == before || at == step);
        assert_true(was_killed || at == step);
        times_old += at == before;
        times_new += at == step;
        /* whatever it left, the same step can be saved again */
        assert_true(save(&self, step));
        assert_true(newest(run, comm) == step);
        fixture_remove(run);
    }
    print_message("%d points: %d times the old, %d times the new one\n", point - 2, times_old,
                  times_new);
    assert_true(point - 2 >= least_points);
    assert_true(times_new >= 2);
    tsr_comm_destroy(&comm);
}

static void a_new_step(void **state)
{
    (void)state;
    kill_everywhere(10, 20, 0, 36);
}

static void a_new_step_that_drops_the_old(void **state)
{
    (void)state;
    kill_everywhere(10, 20, 1, 40);
}

static void the_same_step_again(void **state)
{
    (void)state;
    kill_everywhere(10, 10, 1, 40);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_step),
        cmocka_unit_test(a_new_step_that_drops_the_old),
        cmocka_unit_test(the_same_step_again),
    };

    return tsr_unit_test_main("checkpoints.kill", tests, sizeof tests / sizeof tests[0]);
}
