/* Disks that refuse: full, read-only, a file in the way. The old checkpoint stays, the new one
 * leaves nothing behind, and the next save works. Mounting needs root; without it those tests are
 * skipped. */
#include "tests/checkpoints/state_fixture.h"
#include "tests/support/unit_test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    SCALE = 24,      /* the state then has about 4.5 MiB */
    LARGE_SCALE = 96 /* 16 times that: its writing takes long enough to be disturbed */
};
static const tsr_checkpoint_config config = {.keep = 0, .async = true};

typedef struct scene {
    tsr_comm *comm;
    char folder[TSR_TEXT_MAX], run[TSR_TEXT_MAX + 8];
    bool is_mounted;
    fixture state;
} scene;

static int set_up(void **state)
{
    static scene self;

    memset(&self, 0, sizeof self);
    *state = &self;
    if (!fixture_folder(NULL, self.folder) || tsr_comm_create_self(&self.comm) != TSR_OK ||
        !fixture_make(&self.state, CUT_EVEN, 0, 1, TSR_F32, 10, SCALE)) {
        return -1;
    }
    self.is_mounted = mount("tessera-test", self.folder, "tmpfs", 0, "size=12m") == 0;
    (void)snprintf(self.run, sizeof self.run, "%s/run", self.folder);
    return 0;
}

static int tear_down(void **state)
{
    scene *self = *state;

    fixture_free(&self->state);
    tsr_comm_destroy(&self->comm);
    if (self->is_mounted) {
        (void)umount(self->folder);
    }
    fixture_remove(self->folder);
    return 0;
}

static void skip_without_mount(const scene *self)
{
    if (!self->is_mounted) {
        print_message("mounting a tmpfs is not allowed here: skipped\n");
        skip();
    }
}

/* A file that takes bytes of the disk; leave: how many stay free. */
static void fill_disk(const scene *self, const char *name, int64_t leave)
{
    char path[TSR_TEXT_MAX + 32], block[4096] = "";

    (void)snprintf(path, sizeof path, "%s/%s", self->folder, name);
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    assert_true(fd >= 0);
    while (write(fd, block, sizeof block) == (ssize_t)sizeof block) {
    }
    assert_int_equal(errno, ENOSPC);
    assert_int_equal(ftruncate(fd, lseek(fd, 0, SEEK_END) / 4096 * 4096 - leave), 0);
    assert_int_equal(close(fd), 0);
}

static void empty_disk(const scene *self, const char *name)
{
    char path[TSR_TEXT_MAX + 32];

    (void)snprintf(path, sizeof path, "%s/%s", self->folder, name);
    assert_int_equal(unlink(path), 0);
}

/* Only step 10 is there, valid, and latest points to it. */
static void assert_only_first(const scene *self)
{
    tsr_ckpt_entry *entries = NULL;
    char link[TSR_TEXT_MAX + 64], target[64] = "";
    int count = 0;

    assert_ok(tsr_ckpt_list(self->run, &entries, &count));
    assert_int_equal(count, 1);
    assert_true(entries[0].step == 10);
    assert_ok(tsr_ckpt_verify(entries[0].path));
    tsr_mem_free(entries);
    (void)snprintf(link, sizeof link, "%s/checkpoints/latest", self->run);
    assert_true(readlink(link, target, sizeof target - 1) > 0);
    assert_string_equal(target, "step-00000010");
}

static void assert_next_save_works(scene *self, tsr_ckpt_writer *writer)
{
    tsr_ckpt_result result;
    double staged_s;

    assert_ok(tsr_ckpt_save(writer, &self->state.view, &staged_s));
    assert_ok(tsr_ckpt_finish(writer, &result));
    assert_true(result.ended);
    assert_ok(tsr_ckpt_verify(result.path));
}

static tsr_ckpt_writer *writer_after_first_save(scene *self)
{
    tsr_ckpt_writer *writer = NULL;
    tsr_ckpt_result result;
    double staged_s;

    assert_ok(tsr_ckpt_writer_create(self->comm, self->run, &config, &self->state.view, &writer));
    assert_ok(tsr_ckpt_save(writer, &self->state.view, &staged_s));
    assert_ok(tsr_ckpt_finish(writer, &result));
    fixture_set_step(&self->state, 20);
    return writer;
}

static void too_little_space_is_seen_beforehand(void **state)
{
    scene *self = *state;
    double staged_s;

    skip_without_mount(self);
    tsr_ckpt_writer *writer = writer_after_first_save(self);
    fill_disk(self, "ballast", 65536);
    assert_int_equal(tsr_ckpt_save(writer, &self->state.view, &staged_s), TSR_ERR_IO);
    assert_non_null(strstr(tsr_error_message(), "needs 4."));
    assert_non_null(strstr(tsr_error_message(), "0.1 MiB free"));
    assert_non_null(strstr(tsr_error_message(), self->run));
    assert_only_first(self);
    empty_disk(self, "ballast");
    assert_next_save_works(self, writer);
    tsr_ckpt_writer_destroy(&writer);
}

/* A limit on file sizes fails write() at any byte we choose, as a quota would. */
static void a_write_that_fails_midway_leaves_nothing(void **state)
{
    scene *self = *state;
    struct rlimit before, limit;
    double staged_s;
    tsr_ckpt_result result;

    (void)signal(SIGXFSZ, SIG_IGN);
    tsr_ckpt_writer *writer = writer_after_first_save(self);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (rlim_t bytes = 0; bytes <= 2u << 20; bytes = bytes * 2 + 2048) {
        limit = (struct rlimit){.rlim_cur = bytes, .rlim_max = before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        const tsr_status saved = tsr_ckpt_save(writer, &self->state.view, &staged_s);
        const tsr_status ended = tsr_ckpt_finish(writer, &result);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(saved, TSR_OK);
        assert_int_equal(ended, TSR_ERR_IO);
        assert_non_null(strstr(tsr_error_message(), "shard-0000.h5"));
        assert_false(result.ended);
        assert_only_first(self);
    }
    assert_next_save_works(self, writer);
    tsr_ckpt_writer_destroy(&writer);
}

static void a_disk_that_fills_up_midway_leaves_nothing(void **state)
{
    scene *self = *state;
    tsr_ckpt_result result;
    double staged_s;

    skip_without_mount(self);
    fixture_free(&self->state);
    assert_true(fixture_make(&self->state, CUT_EVEN, 0, 1, TSR_F32, 10, LARGE_SCALE));
    assert_int_equal(mount(NULL, self->folder, NULL, MS_REMOUNT, "size=160m"), 0);
    tsr_ckpt_writer *writer = writer_after_first_save(self);
    /* the check beforehand sees room, then the disk shrinks behind it */
    assert_ok(tsr_ckpt_save(writer, &self->state.view, &staged_s));
    const bool has_shrunk = mount(NULL, self->folder, NULL, MS_REMOUNT, "size=110m") == 0;
    const tsr_status ended = tsr_ckpt_finish(writer, &result);
    if (!has_shrunk) {
        tsr_ckpt_writer_destroy(&writer);
        print_message("the disk was written faster than it could be shrunk: skipped\n");
        skip();
    }
    assert_int_equal(ended, TSR_ERR_IO);
    assert_non_null(strstr(tsr_error_message(), "No space left on device"));
    assert_non_null(strstr(tsr_error_message(), "MiB are free now"));
    assert_only_first(self);
    assert_int_equal(mount(NULL, self->folder, NULL, MS_REMOUNT, "size=160m"), 0);
    assert_next_save_works(self, writer);
    tsr_ckpt_writer_destroy(&writer);
}

/* tmpfs counts files, too: there are bytes left, but no file can be made */
static void a_disk_without_inodes_leaves_nothing(void **state)
{
    scene *self = *state;
    tsr_ckpt_result result;
    double staged_s;

    skip_without_mount(self);
    tsr_ckpt_writer *writer = writer_after_first_save(self);
    /* root, run, checkpoints, step-10, its two files, latest; then one more for the new folder */
    assert_int_equal(mount(NULL, self->folder, NULL, MS_REMOUNT, "nr_inodes=8"), 0);
    assert_ok(tsr_ckpt_save(writer, &self->state.view, &staged_s));
    assert_int_equal(tsr_ckpt_finish(writer, &result), TSR_ERR_IO);
    assert_non_null(strstr(tsr_error_message(), "No space left on device"));
    assert_only_first(self);
    /* now there is room for the shard, but not for the manifest */
    assert_int_equal(mount(NULL, self->folder, NULL, MS_REMOUNT, "nr_inodes=9"), 0);
    assert_ok(tsr_ckpt_save(writer, &self->state.view, &staged_s));
    assert_int_equal(tsr_ckpt_finish(writer, &result), TSR_ERR_IO);
    assert_non_null(strstr(tsr_error_message(), "manifest.h5"));
    assert_only_first(self);
    assert_int_equal(mount(NULL, self->folder, NULL, MS_REMOUNT, "nr_inodes=100"), 0);
    assert_next_save_works(self, writer);
    tsr_ckpt_writer_destroy(&writer);
}

static void a_read_only_folder_is_named(void **state)
{
    scene *self = *state;
    tsr_ckpt_writer *writer = NULL, *other = NULL;
    double staged_s;

    skip_without_mount(self);
    writer = writer_after_first_save(self);
    assert_int_equal(mount(NULL, self->folder, NULL, MS_REMOUNT | MS_RDONLY, "size=12m"), 0);
    assert_int_equal(
        tsr_ckpt_writer_create(self->comm, self->run, &config, &self->state.view, &other),
        TSR_ERR_IO);
    assert_null(other);
    assert_non_null(strstr(tsr_error_message(), "Read-only file system"));
    assert_non_null(strstr(tsr_error_message(), self->run));
    assert_int_equal(tsr_ckpt_save(writer, &self->state.view, &staged_s), TSR_ERR_IO);
    assert_non_null(strstr(tsr_error_message(), "Read-only file system"));
    assert_only_first(self); /* still readable */
    assert_int_equal(mount(NULL, self->folder, NULL, MS_REMOUNT, "size=12m"), 0);
    assert_next_save_works(self, writer);
    tsr_ckpt_writer_destroy(&writer);
}

static void a_file_in_the_way_is_named(void **state)
{
    scene *self = *state;
    tsr_ckpt_writer *writer = NULL;
    char path[TSR_TEXT_MAX + 32];

    FILE *file = fopen(self->run, "w");
    assert_non_null(file);
    assert_int_equal(fclose(file), 0);
    (void)snprintf(path, sizeof path, "%s/below", self->run);
    assert_int_equal(tsr_ckpt_writer_create(self->comm, path, &config, &self->state.view, &writer),
                     TSR_ERR_IO);
    assert_non_null(strstr(tsr_error_message(), "Not a directory"));
    assert_int_equal(
        tsr_ckpt_writer_create(self->comm, self->run, &config, &self->state.view, &writer),
        TSR_ERR_IO);
    assert_non_null(strstr(tsr_error_message(), "is a file, must be a folder"));
    assert_null(writer);
}

static void foreign_files_are_not_removed(void **state)
{
    scene *self = *state;
    tsr_ckpt_writer *writer = writer_after_first_save(self);
    char path[TSR_TEXT_MAX + 64];
    double staged_s;

    (void)snprintf(path, sizeof path, "%s/checkpoints/step-00000020", self->run);
    assert_int_equal(mkdir(path, 0777), 0);
    (void)snprintf(path, sizeof path, "%s/checkpoints/step-00000020/notes.txt", self->run);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(tsr_ckpt_save(writer, &self->state.view, &staged_s), TSR_ERR_IO);
    assert_non_null(strstr(tsr_error_message(), "step-00000020"));
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(unlink(path), 0);
    assert_next_save_works(self, writer);
    tsr_ckpt_writer_destroy(&writer);
}

#define TEST(name_) cmocka_unit_test_setup_teardown(name_, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(too_little_space_is_seen_beforehand),
        TEST(a_write_that_fails_midway_leaves_nothing),
        TEST(a_disk_that_fills_up_midway_leaves_nothing),
        TEST(a_disk_without_inodes_leaves_nothing),
        TEST(a_read_only_folder_is_named),
        TEST(a_file_in_the_way_is_named),
        TEST(foreign_files_are_not_removed),
    };

    return tsr_unit_test_main("checkpoints.disk", tests, sizeof tests / sizeof tests[0]);
}
