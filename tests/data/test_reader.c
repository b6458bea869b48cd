/* Windows, order and errors of the reader on texts. */
#include "tests/data/data_files.h"

#include <sys/stat.h>

enum { SEQ = 16 };

static void open_ok(const char *paths, int64_t seq_len, int64_t vocab, tsr_data **out)
{
    assert_ok(tsr_data_open(paths, seq_len, vocab, out));
}

/* Text whose byte i is (i * 7) % 251: every window is recognisable. */
static void make_text(const char *name, int64_t bytes)
{
    unsigned char *text = malloc((size_t)bytes);

    assert_non_null(text);
    for (int64_t i = 0; i < bytes; ++i) {
        text[i] = (unsigned char)(i * 7 % 251);
    }
    write_file(name, text, (size_t)bytes);
    free(text);
}

static void windows_are_exact(void **state)
{
    (void)state;
    tsr_data *data = NULL;
    int32_t tokens[SEQ + 1];

    /* floor((n - 1) / 16) windows: the last token is a target only */
    make_text("w", 16 * 10);
    open_ok(file_at("w"), SEQ, 256, &data);
    assert_int_equal(tsr_data_windows(data), 9);
    tsr_data_close(&data);

    make_text("w", 16 * 10 + 1);
    open_ok(file_at("w"), SEQ, 256, &data);
    assert_int_equal(tsr_data_windows(data), 10);
    assert_int_equal(tsr_data_tokens(data), 161);
    for (int64_t w = 0; w < 10; ++w) {
        assert_ok(tsr_data_window(data, w, tokens));
        for (int64_t i = 0; i <= SEQ; ++i) {
            assert_int_equal(tokens[i], (w * SEQ + i) * 7 % 251);
        }
    }
    tsr_data_close(&data);
    assert_null(data);
    tsr_data_close(&data);
}

static void windows_do_not_cross_files(void **state)
{
    (void)state;
    tsr_data *data = NULL;
    int32_t tokens[SEQ + 1];
    char paths[512];
    const int64_t sizes[3] = {40, 17, 100}, first[4] = {0, 2, 3, 9};

    make_text("a", sizes[0]);
    make_text("b", sizes[1]);
    make_text("c", sizes[2]);
    (void)snprintf(paths, sizeof(paths), "%s,%s,%s", file_at("a"), file_at("b"), file_at("c"));
    open_ok(paths, SEQ, 256, &data);
    assert_int_equal(tsr_data_windows(data), first[3]);
    assert_int_equal(tsr_data_tokens(data), 157);
    for (int f = 0; f < 3; ++f) {
        for (int64_t w = first[f]; w < first[f + 1]; ++w) {
            assert_ok(tsr_data_window(data, w, tokens));
            for (int64_t i = 0; i <= SEQ; ++i) {
                assert_int_equal(tokens[i], ((w - first[f]) * SEQ + i) * 7 % 251);
            }
        }
    }
    assert_refused(tsr_data_window(data, -1, tokens), TSR_ERR_ARG, "window = -1");
    assert_refused(tsr_data_window(data, 9, tokens), TSR_ERR_ARG, "must be below 9");
    tsr_data_close(&data);
}

/* Which window a sample is, found by its first token: below 251 windows of odd step it is unique.
 */
static int64_t window_of(tsr_data *data, uint64_t seed, int64_t index)
{
    int32_t sample[SEQ + 1], window[SEQ + 1];

    assert_ok(tsr_data_sample(data, seed, index, sample));
    for (int64_t w = 0; w < tsr_data_windows(data); ++w) {
        assert_ok(tsr_data_window(data, w, window));
        if (memcmp(sample, window, sizeof(sample)) == 0) {
            return w;
        }
    }
    fail_msg("sample %lld is no window", (long long)index);
    return -1;
}

static void epoch_is_a_permutation(void **state)
{
    (void)state;
    const int64_t counts[] = {1, 2, 3, 64, 100};
    tsr_data *data = NULL;

    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); ++c) {
        make_text("p", counts[c] * SEQ + 1);
        open_ok(file_at("p"), SEQ, 256, &data);
        for (int64_t epoch = 0; epoch < 3; ++epoch) {
            bool seen[100] = {false};

            for (int64_t i = 0; i < counts[c]; ++i) {
                const int64_t w = window_of(data, 5, epoch * counts[c] + i);
                assert_false(seen[w]);
                seen[w] = true;
            }
        }
        tsr_data_close(&data);
    }
}

static void order_depends_on_seed_and_epoch_only(void **state)
{
    (void)state;
    tsr_data *data = NULL, *again = NULL;
    int64_t same_seed = 0, same_epoch = 0, in_order = 0;

    make_text("o", 100 * SEQ + 1);
    open_ok(file_at("o"), SEQ, 256, &data);
    open_ok(file_at("o"), SEQ, 256, &again);
    for (int64_t i = 99; i >= 0; --i) { /* backwards: no state is kept between calls */
        const int64_t w = window_of(data, 5, i);

        assert_int_equal(window_of(again, 5, i), w);
        same_seed += window_of(data, 6, i) == w;
        same_epoch += window_of(data, 5, i + 100) == w;
        in_order += w == i;
    }
    /* Two random orders of n agree in one place on average, in more than 10 once in 10^8. */
    assert_true(same_seed <= 10 && same_epoch <= 10 && in_order <= 10);
    tsr_data_close(&data);
    tsr_data_close(&again);
}

static void huge_sample_numbers_work(void **state)
{
    (void)state;
    tsr_data *data = NULL;
    int32_t tokens[SEQ + 1];

    make_text("h", 3 * SEQ + 1);
    open_ok(file_at("h"), SEQ, 256, &data);
    assert_ok(tsr_data_sample(data, UINT64_MAX, INT64_MAX, tokens));
    assert_refused(tsr_data_sample(data, 1, -1, tokens), TSR_ERR_ARG, "sample index = -1");
    tsr_data_close(&data);
}

static void tokens_outside_the_vocabulary_are_named(void **state)
{
    (void)state;
    tsr_data *data = NULL;
    int32_t tokens[SEQ + 1];

    make_text("v", 10 * SEQ + 1); /* token 19 is 133, the largest of the first 20 */
    open_ok(file_at("v"), SEQ, 133, &data);
    assert_ok(tsr_data_window(data, 0, tokens));
    assert_refused(tsr_data_window(data, 1, tokens), TSR_ERR_FORMAT,
                   "/v: token 133 at position 19, must be below model.vocab_size = 133");
    tsr_data_close(&data);
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    tsr_data *data = NULL;

    assert_refused(tsr_data_open(file_at("none"), SEQ, 256, &data), TSR_ERR_IO, "/none: No such");
    assert_refused(tsr_data_open(files_dir, SEQ, 256, &data), TSR_ERR_IO, "is no regular file");
    assert_int_equal(mkfifo(file_at("pipe"), 0600), 0);
    assert_refused(tsr_data_open(file_at("pipe"), SEQ, 256, &data), TSR_ERR_IO, "no regular file");
    write_file("empty", "", 0);
    assert_refused(tsr_data_open(file_at("empty"), SEQ, 256, &data), TSR_ERR_FORMAT, "is empty");
    make_text("short", SEQ);
    assert_refused(tsr_data_open(file_at("short"), SEQ, 256, &data), TSR_ERR_FORMAT,
                   "has 16 tokens, one sequence of data.seq_len = 16 needs 17");
    if (geteuid() != 0) { /* root reads everything */
        make_text("secret", 100);
        assert_int_equal(chmod(file_at("secret"), 0), 0);
        assert_refused(tsr_data_open(file_at("secret"), SEQ, 256, &data), TSR_ERR_IO, "denied");
    }
    assert_null(data);
}

static void bad_arguments_are_refused(void **state)
{
    (void)state;
    tsr_data *data = NULL;
    char paths[512], long_path[2 * TSR_TEXT_MAX];

    make_text("t", 100);
    assert_refused(tsr_data_open(file_at("t"), 0, 256, &data), TSR_ERR_ARG, "seq_len = 0");
    assert_refused(tsr_data_open(file_at("t"), SEQ, 0, &data), TSR_ERR_ARG, "vocab_size = 0");
    assert_refused(tsr_data_open(file_at("t"), SEQ, INT64_C(1) << 31, &data), TSR_ERR_ARG,
                   "vocab_size = 2147483648");
    assert_refused(tsr_data_open("", SEQ, 256, &data), TSR_ERR_ARG, "empty name");
    (void)snprintf(paths, sizeof(paths), "%s,", file_at("t"));
    assert_refused(tsr_data_open(paths, SEQ, 256, &data), TSR_ERR_ARG, "empty name");
    memset(long_path, 'p', sizeof(long_path));
    long_path[sizeof(long_path) - 1] = '\0';
    assert_refused(tsr_data_open(long_path, SEQ, 256, &data), TSR_ERR_ARG, "2047 bytes");
    assert_null(data);
}

static void options_have_defaults(void **state)
{
    (void)state;
    static tsr_data_config config;
    static tsr_config_errors errors;
    const tsr_option_table table = tsr_data_options(&config);

    tsr_config_read("[data]\nseq_len = 64\n", "run.ini", NULL, 0, &table, 1, &errors);
    assert_string_equal(errors.text, "");
    assert_string_equal(config.train, "");
    assert_int_equal(config.vocab, 0);
    assert_int_equal(config.seq_len, 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(windows_are_exact),
        cmocka_unit_test(windows_do_not_cross_files),
        cmocka_unit_test(epoch_is_a_permutation),
        cmocka_unit_test(order_depends_on_seed_and_epoch_only),
        cmocka_unit_test(huge_sample_numbers_work),
        cmocka_unit_test(tokens_outside_the_vocabulary_are_named),
        cmocka_unit_test(bad_files_are_refused),
        cmocka_unit_test(bad_arguments_are_refused),
        cmocka_unit_test(options_have_defaults),
    };

    if (files_setup(NULL) != 0) {
        return 1;
    }
    const int result = tsr_unit_test_main("reader", tests, sizeof(tests) / sizeof(tests[0]));
    return files_teardown(NULL) == 0 ? result : 1;
}
