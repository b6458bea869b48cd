/* Broken checkpoints: every flipped byte and every cut is found, nothing crashes, nothing is
 * believed, and the one before is used. */
#include "tests/checkpoints/state_fixture.h"
#include "tests/support/unit_test.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

typedef struct scene {
    tsr_comm *comm;
    char run[TSR_TEXT_MAX];
    fixture state;
    tsr_ckpt_result first, second; /* steps 10 and 20 */
    char said[8192];
} scene;

static int set_up(void **state)
{
    static const tsr_checkpoint_config config = {.keep = 0, .async = false};
    static scene self;

    memset(&self, 0, sizeof self);
    *state = &self;
    if (!fixture_folder(NULL, self.run) || tsr_comm_create_self(&self.comm) != TSR_OK ||
        !fixture_make(&self.state, CUT_EVEN, 0, 1, TSR_F32, 10, 1) ||
        fixture_save(self.comm, self.run, &self.state, &config, &self.first) != TSR_OK) {
        return -1;
    }
    fixture_set_step(&self.state, 20);
    return fixture_save(self.comm, self.run, &self.state, &config, &self.second) == TSR_OK ? 0 : -1;
}

static int tear_down(void **state)
{
    scene *self = *state;

    fixture_free(&self->state);
    tsr_comm_destroy(&self->comm);
    fixture_remove(self->run);
    return 0;
}

static void note(void *context, const char *text)
{
    scene *self = context;
    const size_t at = strlen(self->said);

    (void)snprintf(self->said + at, sizeof self->said - at, "%s\n", text);
}

static void path_of(const tsr_ckpt_result *result, const char *name, char out[TSR_TEXT_MAX + 32])
{
    (void)snprintf(out, TSR_TEXT_MAX + 32, "%s/%s", result->path, name);
}

/* Step 20 is broken in `name`: verify, load and find refuse it by that name; find falls back. */
static void assert_refused(scene *self, const char *name)
{
    tsr_ckpt_info info = {.step = 0};
    bool found = false;

    self->said[0] = '\0';
    assert_int_equal(tsr_ckpt_verify(self->second.path), TSR_ERR_FORMAT);
    assert_non_null(strstr(tsr_error_message(), name));
    assert_int_equal(tsr_ckpt_load(self->comm, self->second.path, &self->state.view),
                     TSR_ERR_FORMAT);
    assert_non_null(strstr(tsr_error_message(), name));
    assert_int_equal(tsr_ckpt_find(self->second.path, note, self, &found, &info), TSR_ERR_FORMAT);
    assert_non_null(strstr(tsr_error_message(), name));
    assert_false(found);
    assert_ok(tsr_ckpt_find(self->run, note, self, &found, &info));
    assert_true(found && info.step == 10);
    assert_non_null(strstr(self->said, name));
    assert_non_null(strstr(self->said, "step-00000010: valid, used instead of 1 newer one"));
    tsr_ckpt_info_free(&info);
}

static void a_flipped_byte_in_the_manifest_is_found(void **state)
{
    scene *self = *state;
    char path[TSR_TEXT_MAX + 32];

    path_of(&self->second, "manifest.h5", path);
    const int64_t size = fixture_file_size(path);
    /* all of the digest's block, then every 37th byte */
    for (int64_t at = 0; at < size; at += at < 512 ? 3 : 37) {
        assert_true(fixture_flip(path, at));
        assert_int_equal(tsr_ckpt_verify(self->second.path), TSR_ERR_FORMAT);
        assert_non_null(strstr(tsr_error_message(), "manifest.h5"));
        assert_true(fixture_flip(path, at));
    }
    assert_ok(tsr_ckpt_verify(self->second.path));
    assert_true(fixture_flip(path, size / 2));
    assert_refused(self, "manifest.h5");
}

static void a_flipped_byte_in_a_shard_is_found(void **state)
{
    scene *self = *state;
    char path[TSR_TEXT_MAX + 32];

    path_of(&self->second, "shard-0000.h5", path);
    const int64_t size = fixture_file_size(path);
    for (int64_t at = 0; at < size; at += 101) {
        assert_true(fixture_flip(path, at));
        assert_int_equal(tsr_ckpt_verify(self->second.path), TSR_ERR_FORMAT);
        assert_non_null(strstr(tsr_error_message(), "shard-0000.h5"));
        assert_true(fixture_flip(path, at));
    }
    assert_ok(tsr_ckpt_verify(self->second.path));
    assert_true(fixture_flip(path, -1));
    assert_refused(self, "shard-0000.h5");
}

static void a_cut_file_is_found(void **state)
{
    scene *self = *state;
    const char *names[2] = {"shard-0000.h5", "manifest.h5"};
    char path[TSR_TEXT_MAX + 32];

    for (int i = 0; i < 2; ++i) {
        path_of(&self->second, names[i], path);
        for (int64_t size = fixture_file_size(path); size > 0; size = size * 7 / 8) {
            assert_int_equal(truncate(path, size - 1), 0);
            assert_int_equal(tsr_ckpt_verify(self->second.path), TSR_ERR_FORMAT);
            /* a shard is not looked at once the manifest is broken, and the shard was cut first */
            assert_non_null(strstr(tsr_error_message(), names[i]));
        }
    }
    assert_refused(self, "manifest.h5");
}

static void a_longer_file_is_found(void **state)
{
    scene *self = *state;
    const char *names[2] = {"shard-0000.h5", "manifest.h5"};
    char path[TSR_TEXT_MAX + 32];

    for (int i = 0; i < 2; ++i) {
        path_of(&self->second, names[i], path);
        assert_int_equal(truncate(path, fixture_file_size(path) + 1), 0);
        assert_refused(self, names[i]);
    }
}

static void a_missing_shard_is_found(void **state)
{
    scene *self = *state;
    char path[TSR_TEXT_MAX + 32];
    float rows[19 * 8];

    path_of(&self->second, "shard-0000.h5", path);
    assert_int_equal(unlink(path), 0);
    assert_refused(self, "shard-0000.h5: the shard is missing");
    /* its source gone, HDF5 alone would read zeros */
    assert_int_equal(tsr_ckpt_read_weights(self->second.path, &self->state.table, 0, rows),
                     TSR_ERR_FORMAT);
}

static void swapped_shards_are_found(void **state)
{
    scene *self = *state;
    char from[TSR_TEXT_MAX + 32], to[TSR_TEXT_MAX + 32];

    path_of(&self->first, "shard-0000.h5", from);
    path_of(&self->second, "shard-0000.h5", to);
    assert_int_equal(unlink(to), 0);
    assert_int_equal(link(from, to), 0); /* a good file of the right size, of another step */
    assert_int_equal(tsr_ckpt_verify(self->second.path), TSR_ERR_FORMAT);
    assert_refused(self, "shard-0000.h5");
}

static void a_single_weight_is_checked_by_its_digest(void **state)
{
    scene *self = *state;
    const float wanted = self->state.slices[0].master[0];
    char path[TSR_TEXT_MAX + 32], data[65536];
    float rows[19 * 8];

    path_of(&self->second, "shard-0000.h5", path);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    const ssize_t size = pread(fd, data, sizeof data, 0);
    assert_true(size > 0 && size < (ssize_t)sizeof data);
    const char *at = memmem(data, (size_t)size, self->state.slices[0].master, 64);
    assert_non_null(at);
    assert_ok(tsr_ckpt_read_weights(self->second.path, &self->state.table, 0, rows));
    assert_true(memcmp(&rows[0], &wanted, sizeof wanted) == 0);
    assert_int_equal(pwrite(fd, "\x01", 1, at - data), 1);
    assert_int_equal(close(fd), 0);
    assert_int_equal(tsr_ckpt_read_weights(self->second.path, &self->state.table, 0, rows),
                     TSR_ERR_FORMAT);
    assert_non_null(strstr(tsr_error_message(), "model.embed_tokens.weight"));
}

static void nothing_valid_says_why(void **state)
{
    scene *self = *state;
    tsr_ckpt_info info = {.step = 0};
    char path[TSR_TEXT_MAX + 32];
    bool found = false;

    path_of(&self->first, "manifest.h5", path);
    assert_true(fixture_flip(path, 600));
    path_of(&self->second, "shard-0000.h5", path);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(tsr_ckpt_find(self->run, note, self, &found, &info), TSR_ERR_FORMAT);
    assert_non_null(strstr(tsr_error_message(), "none of 2 checkpoints is valid"));
    assert_non_null(strstr(tsr_error_message(), "shard-0000.h5"));
    assert_non_null(strstr(self->said, "step-00000010: "));
}

static void find_takes_a_run_or_a_checkpoint(void **state)
{
    scene *self = *state;
    tsr_ckpt_info info = {.step = 0};
    char path[TSR_TEXT_MAX + 32], empty[TSR_TEXT_MAX];
    bool found = true;

    assert_ok(tsr_ckpt_find(self->first.path, note, self, &found, &info));
    assert_true(found && info.step == 10);
    tsr_ckpt_info_free(&info);
    assert_ok(tsr_ckpt_find(self->run, note, self, &found, &info));
    assert_true(found && info.step == 20);
    tsr_ckpt_info_free(&info);
    /* latest is a convenience only: it may point to nothing */
    (void)snprintf(path, sizeof path, "%s/checkpoints/latest", self->run);
    assert_ok(tsr_ckpt_find(path, note, self, &found, &info));
    assert_true(found && info.step == 20);
    tsr_ckpt_info_free(&info);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("step-99999999", path), 0);
    assert_ok(tsr_ckpt_find(self->run, note, self, &found, &info));
    assert_true(found && info.step == 20);
    tsr_ckpt_info_free(&info);
    assert_string_equal(self->said, "");

    assert_true(fixture_folder(self->run, empty));
    assert_ok(tsr_ckpt_find(empty, note, self, &found, &info));
    assert_false(found);
    (void)snprintf(path, sizeof path, "%s/none", self->run);
    assert_int_equal(tsr_ckpt_find(path, note, self, &found, &info), TSR_ERR_IO);
    assert_int_equal(tsr_ckpt_verify(path), TSR_ERR_IO);
    assert_int_equal(tsr_ckpt_open_info(path, &info), TSR_ERR_IO);
}

static void another_model_is_refused_by_name(void **state)
{
    scene *self = *state;
    tsr_param *lm_head = &self->state.params[5];

    (void)snprintf(lm_head->name, sizeof lm_head->name, "other.weight");
    assert_int_equal(tsr_ckpt_load(self->comm, self->second.path, &self->state.view),
                     TSR_ERR_FORMAT);
    assert_non_null(strstr(tsr_error_message(), "does not hold other.weight"));
    (void)snprintf(lm_head->name, sizeof lm_head->name, "lm_head.weight");

    self->state.table.count = 5; /* without lm_head: the checkpoint has one too many */
    self->state.view.slice_count = 5;
    assert_int_equal(tsr_ckpt_load(self->comm, self->second.path, &self->state.view),
                     TSR_ERR_FORMAT);
    assert_non_null(strstr(tsr_error_message(), "holds lm_head.weight, which this model does not"));
    self->state.table.count = 6;
    self->state.view.slice_count = 6;

    lm_head->shape[0] = 8; /* the transpose has as many elements */
    lm_head->shape[1] = 19;
    lm_head->rows = 8;
    lm_head->width = 19;
    self->state.slices[5].row_end = 8;
    assert_int_equal(tsr_ckpt_load(self->comm, self->second.path, &self->state.view),
                     TSR_ERR_FORMAT);
    assert_non_null(
        strstr(tsr_error_message(), "lm_head.weight is [19, 8], this model has [8, 19]"));
}

/* A manifest whose digest is right says nothing about who made it. */
static void a_foreign_file_is_refused(void **state)
{
    scene *self = *state;
    char path[TSR_TEXT_MAX + 32];

    path_of(&self->second, "manifest.h5", path);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int i = 0; i < 3000; ++i) {
        (void)fputc(i % 7, file);
    }
    assert_int_equal(fclose(file), 0);
    assert_refused(self, "manifest.h5 does not begin as a manifest");
}

#define TEST(name_) cmocka_unit_test_setup_teardown(name_, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_flipped_byte_in_the_manifest_is_found),
        TEST(a_flipped_byte_in_a_shard_is_found),
        TEST(a_cut_file_is_found),
        TEST(a_longer_file_is_found),
        TEST(a_missing_shard_is_found),
        TEST(swapped_shards_are_found),
        TEST(a_single_weight_is_checked_by_its_digest),
        TEST(nothing_valid_says_why),
        TEST(find_takes_a_run_or_a_checkpoint),
        TEST(another_model_is_refused_by_name),
        TEST(a_foreign_file_is_refused),
    };

    return tsr_unit_test_main("checkpoints.damage", tests, sizeof tests / sizeof tests[0]);
}
