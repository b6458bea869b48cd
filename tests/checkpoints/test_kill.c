/* SIGKILL at every step of writing: afterwards the newest checkpoint is the old or the new one,
 * valid to the bit. A child saves and is killed at point n, for n = 1, 2, ... until it survives. */
#include "tests/checkpoints/state_fixture.h"
#include "tests/support/unit_test.h"

#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct scene {
    char first[TSR_TEXT_MAX], run[TSR_TEXT_MAX]; /* run: a copy of first, for one kill */
    int64_t step, keep;
} scene;

/* A second name for each file of `before`'s folder: they are never changed, only removed. */
static void copy_first(const scene *self, int64_t before)
{
    const char *files[2] = {"manifest.h5", "shard-0000.h5"};
    char from[TSR_TEXT_MAX + 64], to[TSR_TEXT_MAX + 64];

    (void)snprintf(to, sizeof to, "%s/checkpoints", self->run);
    assert_int_equal(mkdir(to, 0777), 0);
    (void)snprintf(to, sizeof to, "%s/checkpoints/step-%08d", self->run, (int)before);
    assert_int_equal(mkdir(to, 0777), 0);
    for (int i = 0; i < 2; ++i) {
        (void)snprintf(from, sizeof from, "%s/checkpoints/step-%08d/%s", self->first, (int)before,
                       files[i]);
        (void)snprintf(to, sizeof to, "%s/checkpoints/step-%08d/%s", self->run, (int)before,
                       files[i]);
        assert_int_equal(link(from, to), 0);
    }
}

static bool save(const scene *self, const char *run, int64_t step)
{
    const tsr_checkpoint_config config = {.keep = self->keep, .async = true};
    tsr_comm *comm = NULL;
    tsr_ckpt_result result;
    fixture state;

    if (tsr_comm_create_self(&comm) != TSR_OK ||
        !fixture_make(&state, CUT_EVEN, 0, 1, TSR_F32, step, 1)) {
        return false;
    }
    const bool ok = fixture_save(comm, run, &state, &config, &result) == TSR_OK;
    fixture_free(&state);
    tsr_comm_destroy(&comm);
    return ok;
}

/* True if the child was killed, false if it came to its end. */
static bool save_in_child(const scene *self, int kill_at)
{
    int status = 0;
    const pid_t child = fork();

    if (child == 0) {
        tsr_ckpt_kill_at(kill_at);
        _exit(save(self, self->run, self->step) ? 0 : 1);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == 0);
    return WIFSIGNALED(status);
}

static int64_t find_step(const char *run, char path_out[TSR_TEXT_MAX])
{
    tsr_ckpt_info info = {.step = 0};
    bool found = false;

    assert_ok(tsr_ckpt_find(run, NULL, NULL, &found, &info));
    assert_true(found);
    const int64_t step = info.step;
    (void)snprintf(path_out, TSR_TEXT_MAX, "%s", info.path);
    tsr_ckpt_info_free(&info);
    return step;
}

/* Step of the newest checkpoint, whose bits are proved to be those of its step. */
static int64_t newest(const char *run, tsr_comm *comm)
{
    char path[TSR_TEXT_MAX];
    fixture state;

    const int64_t step = find_step(run, path);
    assert_true(fixture_make(&state, CUT_EVEN, 0, 1, TSR_F32, 1, 1));
    fixture_wipe(&state);
    assert_ok(tsr_ckpt_load(comm, path, &state.view));
    assert_true(fixture_holds(&state, step));
    fixture_free(&state);
    return step;
}

/* Kill a save of `step` at every point after `before` was saved; the next save must do. */
static void kill_everywhere(int64_t before, int64_t step, int64_t keep, int least_points)
{
    scene self = {.step = step, .keep = keep};
    tsr_comm *comm = NULL;
    char path[TSR_TEXT_MAX];
    int point = 1, times_old = 0, times_new = 0;
    bool was_killed = true;

    assert_ok(tsr_comm_create_self(&comm));
    /* in memory: what is asked does not need a disk */
    assert_true(fixture_folder("/dev/shm", self.first) && save(&self, self.first, before));
    for (; was_killed; ++point) {
        assert_true(fixture_folder("/dev/shm", self.run));
        copy_first(&self, before);
        was_killed = save_in_child(&self, point);
        const int64_t at = newest(self.run, comm);
        assert_true(at == before || at == step);
        assert_true(was_killed || at == step);
        times_old += at == before;
        times_new += at == step;
        /* whatever it left, the same step can be saved again */
        assert_true(save(&self, self.run, step));
        assert_true(find_step(self.run, path) == step);
        fixture_remove(self.run);
    }
    print_message("%d points: %d times the old, %d times the new one\n", point - 2, times_old,
                  times_new);
    assert_true(point - 2 >= least_points);
    assert_true(times_new >= 2);
    fixture_remove(self.first);
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

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_step),
        cmocka_unit_test(a_new_step_that_drops_the_old),
        cmocka_unit_test(the_same_step_again),
    };

    if (argc > 1) {
        cmocka_set_test_filter(argv[1]); /* CTest runs them side by side */
    }
    return tsr_unit_test_main("checkpoints.kill", tests, sizeof tests / sizeof tests[0]);
}
