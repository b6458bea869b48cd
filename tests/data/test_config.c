/* Run files: every message, every type, and that what is printed reads back the same. */
#include "runtime/config/config_impl.h"
#include "tests/support/unit_test.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct settings {
    int64_t steps, global_batch, any;
    double lr, decay;
    bool recompute;
    int schedule;
    char name[TSR_TEXT_MAX], dir[TSR_TEXT_MAX], train[TSR_TEXT_MAX];
} settings;

#define AT(member_) offsetof(settings, member_)

static const tsr_option train_options[] = {
    {"train", "steps", TSR_OPTION_INT, "100", 1, 1e9, NULL, "steps", "length of the run",
     AT(steps)},
    {"train", "global_batch", TSR_OPTION_INT, "8", 1, 65536, NULL, "sequences",
     "sequences of one step, over all ranks together, before they are cut into micro-batches",
     AT(global_batch)},
    {"train", "any", TSR_OPTION_INT, "0", 0, 0, NULL, NULL, "any whole number", AT(any)},
    {"train", "recompute", TSR_OPTION_BOOL, "no", 0, 0, NULL, NULL, "recompute blocks",
     AT(recompute)},
    {"run", "name", TSR_OPTION_TEXT, "", 0, 0, NULL, NULL, "name of the run", AT(name)},
    {"run", "dir", TSR_OPTION_PATH, "runs/x", 0, 0, NULL, NULL, "run folder", AT(dir)},
};
static const tsr_option optim_options[] = {
    {"optim", "lr", TSR_OPTION_REAL, "3e-4", 0, 10, NULL, NULL, "learning rate", AT(lr)},
    {"optim", "decay", TSR_OPTION_REAL, "0.1", 0, INFINITY, NULL, NULL, "weight decay", AT(decay)},
    {"optim", "schedule", TSR_OPTION_CHOICE, "cosine", 0, 0, "cosine wsd constant", NULL,
     "shape of the learning rate", AT(schedule)},
    {"train", "train", TSR_OPTION_PATHS, "", 0, 0, NULL, NULL, "texts", AT(train)},
};
static const tsr_option required_options[] = {
    {"model", "hidden_size", TSR_OPTION_INT, NULL, 1, 65536, NULL, NULL, "width", AT(any)},
};

#define COUNT(array_) ((int)(sizeof(array_) / sizeof((array_)[0])))

typedef struct reading {
    settings got;
    tsr_config_errors errors;
} reading;

static void read_with(reading *r, const char *text, const char *const *sets, int set_count)
{
    const tsr_option_table tables[] = {{train_options, COUNT(train_options), &r->got},
                                       {optim_options, COUNT(optim_options), &r->got}};

    memset(r, 0, sizeof(*r));
    tsr_config_read(text, "conf/run.ini", sets, set_count, tables, 2, &r->errors);
}

static reading read_text(const char *text)
{
    static reading r;

    read_with(&r, text, NULL, 0);
    return r;
}

static void assert_errors(const char *text, const char *expected)
{
    static reading r;

    read_with(&r, text, NULL, 0);
    assert_string_equal(r.errors.text, expected);
}

static void assert_set_error(const char *set, const char *expected)
{
    static reading r;

    read_with(&r, "", &set, 1);
    assert_string_equal(r.errors.text, expected);
    assert_int_equal(r.errors.count, expected[0] == '\0' ? 0 : 1);
}

static void defaults_fill_everything(void **state)
{
    (void)state;
    const reading r = read_text("");
    char here[PATH_MAX], expected[PATH_MAX + 32];

    assert_string_equal(r.errors.text, "");
    assert_int_equal(r.got.steps, 100);
    assert_int_equal(r.got.global_batch, 8);
    assert_false(r.got.recompute);
    assert_true(r.got.lr == 3e-4);
    assert_int_equal(r.got.schedule, 0);
    assert_string_equal(r.got.name, "");
    assert_string_equal(r.got.train, "");
    assert_non_null(getcwd(here, sizeof(here)));
    (void)snprintf(expected, sizeof(expected), "%s/conf/runs/x", here);
    assert_string_equal(r.got.dir, expected);
}

static void every_type_is_read(void **state)
{
    (void)state;
    const reading r = read_text("\xEF\xBB\xBF; first\n[train]\r\nsteps = 3e6 ; many\n"
                                "  global_batch=16 # some\nany = -9223372036854775808\n"
                                "recompute : on\n[run]\nname = a;b #c\ndir = /tmp/y\n"
                                "[optim]\nlr = 1.5e-3\nschedule = constant\n");

    assert_string_equal(r.errors.text, "");
    assert_int_equal(r.got.steps, 3000000);
    assert_int_equal(r.got.global_batch, 16);
    assert_true(r.got.any == INT64_MIN);
    assert_true(r.got.recompute);
    assert_string_equal(r.got.name, "a;b");
    assert_string_equal(r.got.dir, "/tmp/y");
    assert_true(r.got.lr == 1.5e-3);
    assert_int_equal(r.got.schedule, 2);
}

static void bools_have_eight_words(void **state)
{
    (void)state;
    const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};
    char text[64];

    for (int i = 0; i < COUNT(words); ++i) {
        (void)snprintf(text, sizeof(text), "[train]\nrecompute = %s\n", words[i]);
        const reading r = read_text(text);
        assert_int_equal(r.errors.count, 0);
        assert_int_equal(r.got.recompute, i % 2);
    }
}

static void unknown_names_get_a_hint(void **state)
{
    (void)state;
    assert_errors(
        "[train]\nglobal_bacth = 8\n",
        "conf/run.ini:2: [train] global_bacth: unknown key; did you mean global_batch?\n");
    assert_errors("[train]\nlr = 8\n",
                  "conf/run.ini:2: [train] lr: unknown key; did you mean [optim] lr?\n");
    assert_errors("[train]\nfrobnicate = 8\n", "conf/run.ini:2: [train] frobnicate: unknown key\n");
    assert_errors("[trian]\nsteps = 8\n",
                  "conf/run.ini:2: [trian] steps: unknown section; did you mean [train]?\n");
    assert_errors("[zzzzzz]\nsteps = 8\n", "conf/run.ini:2: [zzzzzz] steps: unknown section\n");
    assert_errors("steps = 8\n", "conf/run.ini:1: [] steps: stands before the first [section]\n");
}

static void bad_numbers_are_refused(void **state)
{
    (void)state;
    const char *const reals[] = {"nan",    "inf", "-inf", "0x10", "1.5x", "1 2", "1e400",
                                 "1e-400", "",    "e",    "--1",  "1,5",  "1_0"};
    const char *const ints[] = {"1.5",   "abc",  "3e", "1_000", "0x10",
                                "12 13", "1e17", "",   "7k",    "+-1"};
    char text[96], expected[192];

    for (int i = 0; i < COUNT(reals); ++i) {
        (void)snprintf(text, sizeof(text), "[optim]\nlr = %s\n", reals[i]);
        (void)snprintf(expected, sizeof(expected),
                       "conf/run.ini:2: [optim] lr = %s: must be a finite number\n", reals[i]);
        assert_errors(text, expected);
    }
    for (int i = 0; i < COUNT(ints); ++i) {
        (void)snprintf(text, sizeof(text), "[train]\nany = %s\n", ints[i]);
        (void)snprintf(expected, sizeof(expected),
                       "conf/run.ini:2: [train] any = %s: must be a whole number\n", ints[i]);
        assert_errors(text, expected);
    }
    assert_errors("[train]\nany = 9223372036854775808\n",
                  "conf/run.ini:2: [train] any = 9223372036854775808: does not fit 64 bits\n");
}

static void limits_are_named(void **state)
{
    (void)state;
    assert_errors("[optim]\nlr = 12\n", "conf/run.ini:2: [optim] lr = 12: must be from 0 to 10\n");
    assert_errors("[optim]\ndecay = -1\n",
                  "conf/run.ini:2: [optim] decay = -1: must be at least 0\n");
    assert_errors("[train]\nsteps = 0\nglobal_batch = 65537\n",
                  "conf/run.ini:2: [train] steps = 0: must be from 1 to 1e9\n"
                  "conf/run.ini:3: [train] global_batch = 65537: must be from 1 to 65536\n");
    assert_errors(
        "[optim]\nschedule = Cosine\n",
        "conf/run.ini:2: [optim] schedule = Cosine: must be one of: cosine wsd constant\n");
    assert_errors("[optim]\nschedule = cosine wsd\n", "conf/run.ini:2: [optim] schedule = cosine "
                                                      "wsd: must be one of: cosine wsd constant\n");
    assert_errors("[train]\nrecompute = maybe\n",
                  "conf/run.ini:2: [train] recompute = maybe: must be true or false\n");
    assert_int_equal(read_text("[optim]\nlr = 10\n[train]\nsteps = 1\n").errors.count, 0);
}

static void broken_lines_are_all_reported(void **state)
{
    (void)state;
    assert_errors("[train]\nsteps\n\nsteps = 4\nsteps = 5\n= 3\n[optim\n",
                  "conf/run.ini:2: [train] steps: must be \"key = value\" or [section]\n"
                  "conf/run.ini:5: [train] steps: given before on line 4\n"
                  "conf/run.ini:6: [train] : unknown key\n"
                  "conf/run.ini:7: a [section] must end with ]\n");
}

static void long_texts_are_refused(void **state)
{
    (void)state;
    static char text[8192], expected[4096];
    char name[TSR_TEXT_MAX + 1];

    memset(name, 'n', sizeof(name));
    name[TSR_TEXT_MAX - 1] = '\0';
    (void)snprintf(text, sizeof(text), "[run]\nname = %s\n", name);
    const reading fits = read_text(text);
    assert_string_equal(fits.errors.text, "");
    assert_string_equal(fits.got.name, name);

    (void)snprintf(text, sizeof(text), "[run]\nname = %sx\n", name);
    assert_non_null(
        strstr(read_text(text).errors.text, ": has 1024 bytes, at most 1023 are taken"));
    (void)snprintf(text, sizeof(text), "[run]\ndir = %s\n", name);
    assert_non_null(strstr(read_text(text).errors.text, ": is longer than 1023 bytes"));

    memset(text, 'k', 5000);
    (void)snprintf(text + 5000, sizeof(text) - 5000, "\n[run]\nfoo=1\n");
    (void)snprintf(expected, sizeof(expected),
                   "conf/run.ini:1: has 5000 bytes, at most 4094 are "
                   "taken\nconf/run.ini:3: [run] foo: unknown key\n");
    assert_errors(text, expected);
}

static void overrides_win(void **state)
{
    (void)state;
    static reading r;
    const char *const sets[] = {"optim.lr=1", "optim.lr=0.5", "run.name=a.b=c", "run.dir=there"};
    char expected[PATH_MAX + 32], here[PATH_MAX];

    read_with(&r, "[optim]\nlr = 0.25\n", sets, COUNT(sets));
    assert_string_equal(r.errors.text, "");
    assert_true(r.got.lr == 0.5);
    assert_string_equal(r.got.name, "a.b=c");
    assert_non_null(getcwd(here, sizeof(here)));
    (void)snprintf(expected, sizeof(expected), "%s/there", here);
    assert_string_equal(r.got.dir, expected);
}

static void overrides_are_named_in_errors(void **state)
{
    (void)state;
    assert_set_error("optim.lr=12", "--set optim.lr=12: must be from 0 to 10\n");
    assert_set_error("optim.lrr=1", "--set optim.lrr: unknown key; did you mean lr?\n");
    assert_set_error("opt.lr=1", "--set opt.lr: unknown section; did you mean [optim]?\n");
    assert_set_error("optim.lr", "--set optim.lr: must be section.key=value\n");
    assert_set_error("lr=1", "--set lr=1: must be section.key=value\n");
    assert_set_error("run.name=a #b",
                     "--set run.name=a #b: holds ' #', which would start a comment\n");
    assert_set_error("run.name=;", "--set run.name=;: holds ' ;', which would start a comment\n");
    assert_set_error("run.name=a\nb", "--set run.name=a\nb: holds a control character at byte 1\n");
    assert_set_error("train.train=a,,b", "--set train.train=a,,b: holds an empty path\n");
    assert_set_error("train.train=a,", "--set train.train=a,: holds an empty path\n");
}

static void paths_become_absolute(void **state)
{
    (void)state;
    const reading r =
        read_text("[train]\ntrain = a.txt , /b/.//c/../.. ,../d e.bin,./x/../../../f\n");
    char here[PATH_MAX], above[PATH_MAX], expected[4 * PATH_MAX];

    assert_string_equal(r.errors.text, "");
    assert_non_null(getcwd(here, sizeof(here)));
    (void)snprintf(above, sizeof(above), "%.*s", (int)(strrchr(here, '/') - here), here);
    (void)snprintf(expected, sizeof(expected), "%s/conf/a.txt,/,%s/d e.bin,%s/f", here, here,
                   above);
    assert_string_equal(r.got.train, expected);
}

static void missing_keys_are_reported(void **state)
{
    (void)state;
    static settings got;
    static tsr_config_errors errors;
    const tsr_option_table table = {required_options, COUNT(required_options), &got};

    memset(&errors, 0, sizeof(errors));
    tsr_config_read("", "run.ini", NULL, 0, &table, 1, &errors);
    assert_string_equal(errors.text, "run.ini: [model] hidden_size: must be given\n");
}

static void errors_that_do_not_fit_are_counted(void **state)
{
    (void)state;
    static tsr_config_errors errors;

    memset(&errors, 0, sizeof(errors));
    for (int i = 0; i < 1000; ++i) {
        tsr_config_error(&errors, "a line of %d bytes or so, number %d", 40, i);
    }
    assert_int_equal(errors.count, 1000);
    const size_t length = strlen(errors.text);
    assert_true(length < sizeof(errors.text) && length > sizeof(errors.text) - 64);
    assert_int_equal(errors.text[length - 1], '\n');
}

static void printed_file_reads_back(void **state)
{
    (void)state;
    static reading first, second;
    const double reals[] = {0.1, 1.0 / 3.0, 5e-324, 0x1.fffffffffffffp-3, 3e-4, 10.0, 0.0};
    char set[64];
    char *text = NULL, *again = NULL;

    for (int i = 0; i < COUNT(reals); ++i) {
        (void)snprintf(set, sizeof(set), "optim.decay=%.17g", fabs(reals[i]));
        const char *const sets[] = {"train.train=x, y",   "run.name=a b",
                                    "optim.schedule=wsd", "train.any=-9223372036854775808",
                                    "train.recompute=1",  set};
        /* the smallest denormal cannot be typed (strtod reports its loss of digits) */
        read_with(&first, "", sets, reals[i] == 5e-324 ? COUNT(sets) - 1 : COUNT(sets));
        assert_string_equal(first.errors.text, "");
        const tsr_option_table tables[] = {{train_options, COUNT(train_options), &first.got},
                                           {optim_options, COUNT(optim_options), &first.got}};
        assert_ok(tsr_config_to_text(tables, 2, &text));
        read_with(&second, text, NULL, 0);
        assert_string_equal(second.errors.text, "");
        assert_memory_equal(&first.got, &second.got, sizeof(settings));
        assert_ok(tsr_config_to_text(tables, 2, &again));
        assert_string_equal(text, again);
        tsr_mem_free(text);
        tsr_mem_free(again);
    }
}

static void sections_are_printed_once(void **state)
{
    (void)state;
    static reading r;
    const char *const sets[] = {"run.dir=/r", "train.train=/a"};
    char *text = NULL;

    read_with(&r, "", sets, 2);
    const tsr_option_table tables[] = {{train_options, COUNT(train_options), &r.got},
                                       {optim_options, COUNT(optim_options), &r.got}};
    assert_ok(tsr_config_to_text(tables, 2, &text));
    assert_string_equal(text, "[train]\n"
                              "steps        = 100\n"
                              "global_batch = 8\n"
                              "any          = 0\n"
                              "recompute    = false\n"
                              "train        = /a\n"
                              "\n[run]\n"
                              "name =\n"
                              "dir  = /r\n"
                              "\n[optim]\n"
                              "lr       = 0.0003\n"
                              "decay    = 0.1\n"
                              "schedule = cosine\n");
    tsr_mem_free(text);
}

static void help_is_a_table_of_100_columns(void **state)
{
    (void)state;
    static settings got;
    const tsr_option_table tables[] = {{train_options, COUNT(train_options), &got},
                                       {optim_options, COUNT(optim_options), &got}};
    char *text = NULL;
    size_t bytes = 0;
    FILE *to = open_memstream(&text, &bytes);

    assert_non_null(to);
    tsr_config_help(to, tables, 2);
    assert_int_equal(fclose(to), 0);
    for (const char *line = text; *line != '\0';) {
        const size_t length = strcspn(line, "\n");

        assert_true(length <= 100 && (length == 0 || line[length - 1] != ' '));
        line += length + 1;
    }
    assert_non_null(strstr(text, "\n[train]\n  steps         100         int 1..1e9 steps"));
    assert_non_null(strstr(text, "schedule      cosine      cosine wsd constant"));
    free(text);
}

static void distances_count_edits(void **state)
{
    (void)state;
    assert_int_equal(tsr_edit_distance("", ""), 0);
    assert_int_equal(tsr_edit_distance("abc", ""), 3);
    assert_int_equal(tsr_edit_distance("steps", "stesp"), 1);
    assert_int_equal(tsr_edit_distance("kitten", "sitting"), 3);
}

/* No text may crash the reader: printable noise made of the characters that mean something. */
static void noise_is_survived(void **state)
{
    (void)state;
    static const char alphabet[] = "[]=:;#\n\r\t .,eE+-019atrinsp\"'\\";
    static char text[512];
    int64_t accepted = 0;

    for (uint64_t round = 0; round < 20000; ++round) {
        const int length = (int)(tsr_rng_uniform(7, round) * 200.0);

        for (int i = 0; i < length; ++i) {
            const double u = tsr_rng_uniform(11, round * 512 + (uint64_t)i);
            text[i] = alphabet[(size_t)(u * (double)(sizeof(alphabet) - 1))];
        }
        text[length] = '\0';
        accepted += read_text(text).errors.count == 0;
    }
    assert_true(accepted > 0 && accepted < 20000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_fill_everything),
        cmocka_unit_test(every_type_is_read),
        cmocka_unit_test(bools_have_eight_words),
        cmocka_unit_test(unknown_names_get_a_hint),
        cmocka_unit_test(bad_numbers_are_refused),
        cmocka_unit_test(limits_are_named),
        cmocka_unit_test(broken_lines_are_all_reported),
        cmocka_unit_test(long_texts_are_refused),
        cmocka_unit_test(overrides_win),
        cmocka_unit_test(overrides_are_named_in_errors),
        cmocka_unit_test(paths_become_absolute),
        cmocka_unit_test(missing_keys_are_reported),
        cmocka_unit_test(errors_that_do_not_fit_are_counted),
        cmocka_unit_test(printed_file_reads_back),
        cmocka_unit_test(sections_are_printed_once),
        cmocka_unit_test(help_is_a_table_of_100_columns),
        cmocka_unit_test(distances_count_edits),
        cmocka_unit_test(noise_is_survived),
    };

    return tsr_unit_test_main("config", tests, sizeof(tests) / sizeof(tests[0]));
}
