#include "runtime/config/config_impl.h"
#include "runtime/memory.h"

#include <ini.h>
#include <stdarg.h>
#include <string.h>

enum {
    NOT_GIVEN = 0,
    FROM_OVERRIDE = -1, /* else the line of the run file */
    LINE_MAX_BYTES = 4096
};

/* What the handler of inih needs; inih itself does not tell it the line. */
typedef struct reader {
    const tsr_option_table *tables;
    int table_count;
    const char *file_name;
    char base[TSR_TEXT_MAX]; /* folder of the run file */
    const char *rest;        /* text not yet read */
    int line;
    int *given; /* per option: where its value comes from */
    tsr_config_errors *errors;
} reader;

void tsr_config_error(tsr_config_errors *errors, const char *fmt, ...)
{
    const size_t used = strlen(errors->text);
    char line[2 * TSR_TEXT_MAX];
    va_list args;

    ++errors->count;
    va_start(args, fmt);
    (void)vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    if (used + strlen(line) + 2 <= sizeof(errors->text)) {
        (void)snprintf(errors->text + used, sizeof(errors->text) - used, "%s\n", line);
    }
}

int tsr_config_option_count(const tsr_option_table *tables, int table_count)
{
    int count = 0;

    for (int t = 0; t < table_count; ++t) {
        count += tables[t].count;
    }
    return count;
}

const tsr_option *tsr_config_option(const tsr_option_table *tables, int table_count, int index,
                                    void **target_out)
{
    for (int t = 0; t < table_count; ++t) {
        if (index < tables[t].count) {
            if (target_out != NULL) {
                *target_out = tables[t].target;
            }
            return &tables[t].options[index];
        }
        index -= tables[t].count;
    }
    return NULL;
}

/* Number of the option, or -1; *section_known says whether the section at least exists. */
static int find(const reader *r, const char *section, const char *key, bool *section_known)
{
    const int count = tsr_config_option_count(r->tables, r->table_count);

    *section_known = false;
    for (int i = 0; i < count; ++i) {
        const tsr_option *option = tsr_config_option(r->tables, r->table_count, i, NULL);

        if (strcmp(option->section, section) == 0) {
            *section_known = true;
            if (strcmp(option->key, key) == 0) {
                return i;
            }
        }
    }
    return -1;
}

static void report_unknown_section(reader *r, const char *place, const char *section)
{
    const char *guess = tsr_config_nearest_section(r->tables, r->table_count, section);

    if (section[0] == '\0') {
        tsr_config_error(r->errors, "%s: stands before the first [section]", place);
    } else if (guess == NULL) {
        tsr_config_error(r->errors, "%s: unknown section", place);
    } else {
        tsr_config_error(r->errors, "%s: unknown section; did you mean [%s]?", place, guess);
    }
}

static void report_unknown_key(reader *r, const char *place, const char *section, const char *key)
{
    const tsr_option *guess = tsr_config_nearest_key(r->tables, r->table_count, section, key);

    if (guess == NULL) {
        tsr_config_error(r->errors, "%s: unknown key", place);
    } else if (strcmp(guess->section, section) == 0) {
        tsr_config_error(r->errors, "%s: unknown key; did you mean %s?", place, guess->key);
    } else {
        tsr_config_error(r->errors, "%s: unknown key; did you mean [%s] %s?", place, guess->section,
                         guess->key);
    }
}

/* Store one value, from the file (line > 0) or from an override; place is how messages name it. */
static void assign(reader *r, int line, const char *place, const char *section, const char *key,
                   const char *value)
{
    const char *base = line > 0 ? r->base : ".";
    bool section_known = false;
    const int index = find(r, section, key, &section_known);
    char why[TSR_CONFIG_WHY_MAX];
    void *target = NULL;

    if (!section_known) {
        report_unknown_section(r, place, section);
        return;
    }
    if (index < 0) {
        report_unknown_key(r, place, section, key);
        return;
    }
    if (line > 0 && r->given[index] != NOT_GIVEN) {
        tsr_config_error(r->errors, "%s: given before on line %d", place, r->given[index]);
        return;
    }
    r->given[index] = line > 0 ? line : FROM_OVERRIDE;
    const tsr_option *option = tsr_config_option(r->tables, r->table_count, index, &target);
    if (!tsr_option_parse(option, value, base, target, why)) {
        tsr_config_error(r->errors, "%s%s%s: %s", place, line > 0 ? " = " : "=", value, why);
    }
}

/* inih's handler; value is NULL for a line without '='. */
static int on_pair(void *user, const char *section, const char *key, const char *value)
{
    reader *r = user;
    char place[TSR_TEXT_MAX];

    (void)snprintf(place, sizeof(place), "%s:%d: [%s] %s", r->file_name, r->line, section, key);
    if (value == NULL) {
        tsr_config_error(r->errors, "%s: must be \"key = value\" or [section]", place);
    } else {
        assign(r, r->line, place, section, key, value);
    }
    return 1; /* go on: all errors are reported at once */
}

/* inih's fgets(): hands out one line a call and counts them; a line that is too long is skipped. */
static char *next_line(char *out, int room, void *user)
{
    reader *r = user;
    const size_t length = strcspn(r->rest, "\n");

    if (r->rest[0] == '\0') {
        return NULL;
    }
    ++r->line;
    if (length + 2 > (size_t)room) {
        tsr_config_error(r->errors, "%s:%d: has %zu bytes, at most %d are taken", r->file_name,
                         r->line, length, room - 2);
        out[0] = '\0';
    } else {
        memcpy(out, r->rest, length);
        out[length] = '\0';
    }
    r->rest += length + (r->rest[length] == '\n' ? 1 : 0);
    return out;
}

static void read_file(reader *r, const char *text)
{
    static char comment_marks[] = ";#"; /* inih keeps the pointer and wants it writable */

    ini_allow_inline_comments = true;
    ini_start_comment_prefixes = comment_marks;
    ini_inline_comment_prefixes = comment_marks;
    ini_allow_no_value = true;   /* reported by the handler, each one */
    ini_allow_multiline = false; /* indented lines are lines */
    ini_stop_on_first_error = false;
    ini_max_line = LINE_MAX_BYTES;

    r->rest = text;
    const int bad_line = ini_parse_stream(next_line, r, on_pair, r);
    if (bad_line > 0) {
        tsr_config_error(r->errors, "%s:%d: a [section] must end with ]", r->file_name, bad_line);
    }
}

static void read_override(reader *r, const char *text)
{
    const char *dot = strchr(text, '.'), *equals = strchr(text, '=');
    char section[64], key[64], place[TSR_TEXT_MAX];

    if (dot == NULL || equals == NULL || dot > equals) {
        tsr_config_error(r->errors, "--set %s: must be section.key=value", text);
        return;
    }
    (void)snprintf(section, sizeof(section), "%.*s", (int)(dot - text), text);
    (void)snprintf(key, sizeof(key), "%.*s", (int)(equals - dot - 1), dot + 1);
    (void)snprintf(place, sizeof(place), "--set %.*s", (int)(equals - text), text);
    assign(r, 0, place, section, key, equals + 1);
}

static void set_defaults(reader *r)
{
    const int count = tsr_config_option_count(r->tables, r->table_count);
    char why[TSR_CONFIG_WHY_MAX];
    void *target = NULL;

    for (int i = 0; i < count; ++i) {
        const tsr_option *option = tsr_config_option(r->tables, r->table_count, i, &target);

        if (option->fallback != NULL &&
            !tsr_option_parse(option, option->fallback, r->base, target, why)) {
            tsr_config_error(r->errors, "%s: default of [%s] %s = %s: %s", r->file_name,
                             option->section, option->key, option->fallback, why);
        }
    }
}

static void report_missing(reader *r)
{
    const int count = tsr_config_option_count(r->tables, r->table_count);

    for (int i = 0; i < count; ++i) {
        const tsr_option *option = tsr_config_option(r->tables, r->table_count, i, NULL);

        if (option->fallback == NULL && r->given[i] == NOT_GIVEN) {
            tsr_config_error(r->errors, "%s: [%s] %s: must be given", r->file_name, option->section,
                             option->key);
        }
    }
}

void tsr_config_read(const char *text, const char *file_name, const char *const *overrides,
                     int override_count, const tsr_option_table *tables, int table_count,
                     tsr_config_errors *errors)
{
    reader r = {
        .tables = tables, .table_count = table_count, .file_name = file_name, .errors = errors};
    const char *slash = strrchr(file_name, '/');
    void *given = NULL;

    if (tsr_mem_alloc_array(TSR_MEM_OTHER, tsr_config_option_count(tables, table_count),
                            sizeof(*r.given), &given) != TSR_OK) {
        tsr_config_error(errors, "%s: %s", file_name, tsr_error_message());
        return;
    }
    r.given = given;
    (void)snprintf(r.base, sizeof(r.base), "%.*s",
                   slash == NULL        ? 1
                   : slash == file_name ? 1
                                        : (int)(slash - file_name),
                   slash == NULL ? "." : file_name);
    set_defaults(&r);
    read_file(&r, text);
    for (int i = 0; i < override_count; ++i) {
        read_override(&r, overrides[i]);
    }
    report_missing(&r);
    tsr_mem_free(given);
}
