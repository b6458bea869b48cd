/* Saving and loading on one rank: equal bits, counters, keep, latest, a step saved twice. */
#include "tests/checkpoints/state_fixture.h"
#include "tests/support/unit_test.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const tsr_checkpoint_config plain = {.keep = 0, .async = false};
static const tsr_checkpoint_config behind = {.keep = 0, .async = true};

typedef struct scene {
    tsr_comm *comm;
    char run[TSR_TEXT_MAX];
    fixture state;
} scene;

static int set_up(void **state)
{
    static scene self;

    memset(&self, 0, sizeof self);
    *state = &self;
    return fixture_folder(NULL, self.run) && tsr_comm_create_self(&self.comm) == TSR_OK &&
                   fixture_make(&self.state, CUT_EVEN, 0, 1, TSR_F32, 10, 1)
               ? 0
               : -1;
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
    char *all = context;

    (void)snprintf(all + strlen(all), 4096 - strlen(all), "%s\n", text);
}

static void save_step(scene *self, const tsr_checkpoint_config *config, int64_t step,
                      tsr_ckpt_result *result)
{
    fixture_set_step(&self->state, step);
    assert_ok(fixture_save(self->comm, self->run, &self->state, config, result));
    assert_true(result->ended);
    assert_int_equal(result->step, step);
}

static void what_is_loaded_equals_what_was_saved(void **state)
{
    scene *self = *state;
    const tsr_checkpoint_config *configs[2] = {&plain, &behind};
    const tsr_dtype moments[2] = {TSR_F32, TSR_BF16};

    for (int i = 0; i < 4; ++i) {
        tsr_ckpt_result result;
        const int64_t step = 10 + i;
        fixture_free(&self->state);
        assert_true(fixture_make(&self->state, CUT_EVEN, 0, 1, moments[i / 2], step, 1));
        save_step(self, configs[i % 2], step, &result);
        fixture_wipe(&self->state);
        assert_ok(tsr_ckpt_load(self->comm, result.path, &self->state.view));
        assert_true(fixture_holds(&self->state, step));
        assert_ok(tsr_ckpt_verify(result.path));
    }
}

static void staged_state_may_change_at_once(void **state)
{
    scene *self = *state;
    tsr_ckpt_writer *writer = NULL;
    tsr_ckpt_result result;
    double staged_s = -1.0;

    assert_ok(tsr_ckpt_writer_create(self->comm, self->run, &behind, &self->state.view, &writer));
    assert_int_equal(tsr_ckpt_local_phase(writer), TSR_CKPT_IDLE);
    assert_ok(tsr_ckpt_save(writer, &self->state.view, &staged_s));
    assert_true(staged_s >= 0.0);
    fixture_wipe(&self->state);
    assert_true(tsr_ckpt_local_phase(writer) != TSR_CKPT_IDLE);
    /* nothing is published before all have written */
    assert_ok(tsr_ckpt_progress(writer, 0, 0, &result));
    assert_false(result.ended);
    while (tsr_ckpt_local_phase(writer) == TSR_CKPT_WRITING) {
        (void)usleep(1000);
    }
    assert_int_equal(tsr_ckpt_local_phase(writer), TSR_CKPT_WRITTEN);
    assert_ok(tsr_ckpt_progress(writer, 1, 0, &result));
    assert_true(result.ended);
    assert_ok(tsr_ckpt_load(self->comm, result.path, &self->state.view));
    assert_true(fixture_holds(&self->state, 10));
    assert_int_equal(tsr_ckpt_local_phase(writer), TSR_CKPT_IDLE);
    assert_ok(tsr_ckpt_progress(writer, 0, 0, &result));
    assert_false(result.ended);
    tsr_ckpt_writer_destroy(&writer);
}

static void a_second_save_waits_for_the_first(void **state)
{
    scene *self = *state;
    tsr_ckpt_writer *writer = NULL;
    tsr_ckpt_result result;
    double staged_s = 0.0;

    assert_ok(tsr_ckpt_writer_create(self->comm, self->run, &behind, &self->state.view, &writer));
    assert_ok(tsr_ckpt_save(writer, &self->state.view, &staged_s));
    fixture_set_step(&self->state, 20);
    assert_ok(tsr_ckpt_save(writer, &self->state.view, &staged_s));
    /* both ends are told, in order */
    assert_ok(tsr_ckpt_progress(writer, 0, 0, &result));
    assert_true(result.ended && result.step == 10);
    assert_ok(tsr_ckpt_finish(writer, &result));
    assert_true(result.ended && result.step == 20);
    assert_ok(tsr_ckpt_verify(result.path));
    tsr_ckpt_writer_destroy(&writer);
}

static void an_unfinished_save_is_not_a_checkpoint(void **state)
{
    scene *self = *state;
    tsr_ckpt_writer *writer = NULL;
    tsr_ckpt_info info = {.step = 0};
    tsr_ckpt_entry *entries = NULL;
    char said[4096] = "";
    double staged_s = 0.0;
    int count = 0;
    bool found = true;

    assert_ok(tsr_ckpt_writer_create(self->comm, self->run, &behind, &self->state.view, &writer));
    assert_ok(tsr_ckpt_save(writer, &self->state.view, &staged_s));
    tsr_ckpt_writer_destroy(&writer);
    assert_ok(tsr_ckpt_find(self->run, note, said, &found, &info));
    assert_false(found);
    assert_non_null(strstr(said, "step-00000010: no manifest"));
    assert_ok(tsr_ckpt_list(self->run, &entries, &count));
    assert_int_equal(count, 1);
    assert_false(entries[0].has_manifest);
    /* asked for by name it is refused */
    assert_int_equal(tsr_ckpt_find(entries[0].path, note, said, &found, &info), TSR_ERR_FORMAT);
    assert_non_null(strstr(tsr_error_message(), "manifest.h5 is missing"));
    tsr_mem_free(entries);
}

static void counters_and_config_are_found(void **state)
{
    scene *self = *state;
    tsr_ckpt_result result;
    tsr_ckpt_info info = {.step = 0}, again = {.step = 0};
    bool found = false;

    save_step(self, &plain, 10, &result);
    assert_ok(tsr_ckpt_find(self->run, NULL, NULL, &found, &info));
    assert_true(found);
    assert_string_equal(info.path, result.path);
    assert_true(info.step == 10 && info.tokens == 20480 && info.data_position == 80);
    assert_true(info.seed == UINT64_MAX - 41 && info.format == 1 && info.shards == 1);
    assert_int_equal(info.tensors, FIXTURE_PARAMS);
    assert_true(info.digest == result.digest && info.bytes == result.bytes);
    assert_string_equal(info.config_text, self->state.view.config_text);
    assert_true(strlen(info.version) > 0);
    assert_ok(tsr_ckpt_open_info(result.path, &again));
    assert_true(again.digest == info.digest);
    tsr_ckpt_info_free(&again);
    tsr_ckpt_info_free(&info);
}

static void config_may_be_long(void **state)
{
    scene *self = *state;
    const size_t length = 200000; /* beyond the 64 KiB of an attribute of fixed length */
    tsr_ckpt_result result;
    tsr_ckpt_info info = {.step = 0};
    void *text = NULL;

    assert_ok(tsr_mem_alloc(TSR_MEM_OTHER, length + 1, &text));
    memset(text, 'x', length);
    self->state.view.config_text = text;
    assert_ok(fixture_save(self->comm, self->run, &self->state, &plain, &result));
    assert_ok(tsr_ckpt_open_info(result.path, &info));
    assert_string_equal(info.config_text, text);
    tsr_ckpt_info_free(&info);
    tsr_mem_free(text);
}

static void equal_states_have_equal_digests(void **state)
{
    scene *self = *state;
    tsr_ckpt_result first, other, again;

    save_step(self, &plain, 10, &first);
    save_step(self, &behind, 11, &other);
    save_step(self, &behind, 10, &again);
    assert_true(first.digest == again.digest && first.digest != other.digest);
    self->state.slices[2].master[3] += 1.0f;
    assert_ok(fixture_save(self->comm, self->run, &self->state, &plain, &again));
    assert_true(first.digest != again.digest);
    fixture_set_step(&self->state, 10);
    self->state.bias[1] += 1.0f;
    assert_ok(fixture_save(self->comm, self->run, &self->state, &plain, &again));
    assert_true(first.digest != again.digest);
}

static void keep_drops_the_oldest(void **state)
{
    scene *self = *state;
    const tsr_checkpoint_config two = {.keep = 2, .async = true};
    tsr_ckpt_result result;
    tsr_ckpt_entry *entries = NULL;
    char link[TSR_TEXT_MAX * 2], target[64] = "";
    int count = 0;

    for (int64_t step = 1; step <= 4; ++step) {
        save_step(self, &two, step, &result);
    }
    assert_ok(tsr_ckpt_list(self->run, &entries, &count));
    assert_int_equal(count, 2);
    assert_true(entries[0].step == 3 && entries[1].step == 4);
    assert_true(entries[0].has_manifest && entries[1].has_manifest);
    tsr_mem_free(entries);
    (void)snprintf(link, sizeof link, "%s/checkpoints/latest", self->run);
    assert_int_equal(readlink(link, target, sizeof target - 1), 13);
    assert_string_equal(target, "step-00000004");

    /* a run wound back to 2 keeps what it has just saved, though 3 and 4 are newer */
    save_step(self, &two, 2, &result);
    assert_ok(tsr_ckpt_verify(result.path));
    assert_ok(tsr_ckpt_list(self->run, &entries, &count));
    assert_int_equal(count, 3);
    tsr_mem_free(entries);
}

static void a_step_saved_again_replaces_the_old(void **state)
{
    scene *self = *state;
    tsr_ckpt_result result;
    tsr_ckpt_entry *entries = NULL;
    int count = 0;

    save_step(self, &plain, 10, &result);
    self->state.slices[0].master[0] = 4.5f;
    assert_ok(fixture_save(self->comm, self->run, &self->state, &plain, &result));
    assert_ok(tsr_ckpt_list(self->run, &entries, &count));
    assert_int_equal(count, 1);
    assert_null(strstr(entries[0].path, ".new"));
    fixture_wipe(&self->state);
    assert_ok(tsr_ckpt_load(self->comm, entries[0].path, &self->state.view));
    assert_true(self->state.slices[0].master[0] == 4.5f);
    tsr_mem_free(entries);
}

static void single_weights_are_read(void **state)
{
    scene *self = *state;
    float rows[5 * 6 * 8 + 1], bias[FIXTURE_LAYERS * FIXTURE_EXPERTS];
    tsr_ckpt_result result;

    save_step(self, &plain, 10, &result);
    rows[5 * 6 * 8] = 99.0f;
    assert_ok(tsr_ckpt_read_weights(result.path, &self->state.table, 2, rows));
    for (int i = 0; i < self->state.view.slice_count; ++i) {
        if (self->state.slices[i].param == 2) {
            assert_memory_equal(rows, self->state.slices[i].master, sizeof rows - sizeof rows[0]);
        }
    }
    assert_true(rows[5 * 6 * 8] == 99.0f);
    assert_ok(tsr_ckpt_read_router_bias(result.path, FIXTURE_LAYERS, FIXTURE_EXPERTS, bias));
    assert_memory_equal(bias, self->state.bias, sizeof bias);
    assert_int_equal(tsr_ckpt_read_router_bias(result.path, FIXTURE_LAYERS, 4, bias),
                     TSR_ERR_FORMAT);
    assert_non_null(strstr(tsr_error_message(), "router bias is [2, 5], this model has [2, 4]"));
    assert_int_equal(tsr_ckpt_read_weights(result.path, &self->state.table, 6, rows), TSR_ERR_ARG);
}

static void a_model_without_bias_reads_zeros(void **state)
{
    scene *self = *state;
    float bias[FIXTURE_LAYERS * FIXTURE_EXPERTS] = {1.0f};
    tsr_ckpt_result result;

    self->state.view.router_bias = NULL;
    save_step(self, &plain, 10, &result);
    assert_ok(tsr_ckpt_read_router_bias(result.path, FIXTURE_LAYERS, FIXTURE_EXPERTS, bias));
    assert_true(bias[0] == 0.0f);
    self->state.view.router_bias = bias;
    bias[0] = 1.0f;
    assert_ok(tsr_ckpt_load(self->comm, result.path, &self->state.view));
    assert_true(bias[0] == 0.0f);
}

static void tensors_are_listed(void **state)
{
    scene *self = *state;
    tsr_ckpt_result result;
    char text[4096] = "";
    int lines = 0;

    save_step(self, &plain, 10, &result);
    FILE *to = fmemopen(text, sizeof text, "w");
    assert_non_null(to);
    assert_ok(tsr_ckpt_print_tensors(result.path, to));
    assert_int_equal(fclose(to), 0);
    for (const char *at = text; *at != '\0'; ++at) {
        lines += *at == '\n';
    }
    assert_int_equal(lines, FIXTURE_PARAMS);
    assert_non_null(strstr(text, "model.layers.0.mlp.experts.gate_up_proj"));
    assert_non_null(strstr(text, "[5, 6, 8]"));
}

static void options_have_the_documented_keys(void **state)
{
    tsr_checkpoint_config config = {.every = -1};
    const tsr_option_table table = tsr_checkpoint_options(&config);
    const char *keys[3] = {"every", "keep", "async"};

    (void)state;
    assert_int_equal(table.count, 3);
    assert_ptr_equal(table.target, &config);
    for (int i = 0; i < 3; ++i) {
        assert_string_equal(table.options[i].section, "checkpoint");
        assert_string_equal(table.options[i].key, keys[i]);
    }
}

/* Arrays come back by name and length; the digest of the state does not know them. */
static void arrays_are_found_by_name_and_length(void **state)
{
    scene *self = *state;
    double loads[3] = {0.1, 1e300, -3.0}, owners[2] = {1.0, 0.0}, other[3] = {7.0, 7.0, 7.0};
    const double saved[3] = {0.1, 1e300, -3.0};
    tsr_state_array arrays[3] = {{.name = "loads", .count = 3, .values = loads},
                                 {.name = "owners", .count = 2, .values = owners}};
    tsr_state_view *view = &self->state.view;
    tsr_ckpt_result plainly, result;

    save_step(self, &plain, 10, &plainly);
    view->arrays = arrays;
    view->array_count = 2;
    save_step(self, &behind, 10, &result);
    assert_int_equal(result.digest, plainly.digest);
    assert_ok(tsr_ckpt_verify(result.path));
    memset(loads, 0, sizeof loads);
    arrays[1] = (tsr_state_array){.name = "owners", .count = 3, .values = other};
    arrays[2] = (tsr_state_array){.name = "more", .count = 3, .values = other, .is_loaded = true};
    view->array_count = 3;
    fixture_wipe(&self->state);
    assert_ok(tsr_ckpt_load(self->comm, result.path, view));
    assert_true(fixture_holds(&self->state, 10));
    assert_true(arrays[0].is_loaded && !arrays[1].is_loaded && !arrays[2].is_loaded);
    assert_memory_equal(loads, saved, sizeof saved);
    assert_true(other[0] == 7.0 && other[2] == 7.0);
}

static void arrays_need_names_of_their_own(void **state)
{
    scene *self = *state;
    static const char *const bad[] = {"",    "seed",  "router_bias",
                                      "a/b", "loads", "a_name_that_has_thirty_two_bytes"};
    double value = 1.0;
    tsr_state_array arrays[2] = {{.name = "loads", .count = 1, .values = &value}};
    tsr_ckpt_result result;

    self->state.view.arrays = arrays;
    self->state.view.array_count = 2;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; ++i) {
        arrays[1] = (tsr_state_array){.name = bad[i], .count = 1, .values = &value};
        assert_int_equal(fixture_save(self->comm, self->run, &self->state, &plain, &result),
                         TSR_ERR_ARG);
        assert_non_null(strstr(tsr_error_message(), "is no name for one, or is taken"));
    }
    arrays[1] = (tsr_state_array){.name = "empty", .count = 0, .values = &value};
    assert_int_equal(fixture_save(self->comm, self->run, &self->state, &plain, &result),
                     TSR_ERR_ARG);
}

#define TEST(name_) cmocka_unit_test_setup_teardown(name_, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_loaded_equals_what_was_saved),
        TEST(staged_state_may_change_at_once),
        TEST(a_second_save_waits_for_the_first),
        TEST(an_unfinished_save_is_not_a_checkpoint),
        TEST(counters_and_config_are_found),
        TEST(config_may_be_long),
        TEST(equal_states_have_equal_digests),
        TEST(keep_drops_the_oldest),
        TEST(a_step_saved_again_replaces_the_old),
        TEST(single_weights_are_read),
        TEST(a_model_without_bias_reads_zeros),
        TEST(tensors_are_listed),
        TEST(arrays_are_found_by_name_and_length),
        TEST(arrays_need_names_of_their_own),
        cmocka_unit_test(options_have_the_documented_keys),
    };

    return tsr_unit_test_main("checkpoints.save_load", tests, sizeof tests / sizeof tests[0]);
}
