#include "runtime/config/config_impl.h"
#include "runtime/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { HELP_COLUMNS = 4, PAGE_WIDTH = 100 };

/* Sections in the order of the tables, each once, even if several tables add keys to it. */
static bool opens_section(const tsr_option_table *tables, int table_count, int index)
{
    const tsr_option *option = tsr_config_option(tables, table_count, index, NULL);

    for (int i = 0; i < index; ++i) {
        if (strcmp(tsr_config_option(tables, table_count, i, NULL)->section, option->section) ==
            0) {
            return false;
        }
    }
    return true;
}

/* One section of the run file: keys padded to the longest. */
static void print_section(FILE *to, const tsr_option_table *tables, int table_count, int first)
{
    const int count = tsr_config_option_count(tables, table_count);
    const char *section = tsr_config_option(tables, table_count, first, NULL)->section;
    int width = 0;

    for (int i = first; i < count; ++i) {
        const tsr_option *option = tsr_config_option(tables, table_count, i, NULL);
        const int length = (int)strlen(option->key);

        if (strcmp(option->section, section) == 0 && length > width) {
            width = length;
        }
    }
    (void)fprintf(to, "%s[%s]\n", first == 0 ? "" : "\n", section);
    for (int i = first; i < count; ++i) {
        void *target = NULL;
        const tsr_option *option = tsr_config_option(tables, table_count, i, &target);
        char value[TSR_TEXT_MAX];

        if (strcmp(option->section, section) == 0) {
            tsr_option_format(option, target, value);
            (void)fprintf(to, "%-*s =%s%s\n", width, option->key, value[0] == '\0' ? "" : " ",
                          value);
        }
    }
}

void tsr_config_print(FILE *to, const tsr_option_table *tables, int table_count)
{
    const int count = tsr_config_option_count(tables, table_count);

    for (int i = 0; i < count; ++i) {
        if (opens_section(tables, table_count, i)) {
            print_section(to, tables, table_count, i);
        }
    }
}

tsr_status tsr_config_to_text(const tsr_option_table *tables, int table_count, char **out)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes); /* its block belongs to the C library */

    *out = NULL;
    TSR_CHECK(stream != NULL, TSR_ERR_NOMEM, "text of the run file: %s", strerror(errno));
    tsr_config_print(stream, tables, table_count);
    const bool complete = ferror(stream) == 0;
    const tsr_status st = fclose(stream) == 0 && complete
                              ? tsr_mem_strdup(text, out)
                              : TSR_FAIL(TSR_ERR_NOMEM, "text of the run file does not fit memory");
    free(text);
    return st;
}

/* Print up to width bytes of *text, broken at a space, padded; *text moves to what is left. */
static void print_cell(FILE *to, const char **text, int width, bool is_last)
{
    int length = (int)strlen(*text);

    if (length > width) {
        for (length = width; length > 0 && (*text)[length] != ' '; --length) {
        }
        if (length == 0) {
            length = width; /* one word wider than the column */
        }
    }
    (void)fprintf(to, "%.*s%*s", length, *text, is_last ? 0 : width - length + 2, "");
    *text += length;
    *text += strspn(*text, " ");
}

/* One row of the table, over as many lines as its longest cell needs. */
static void print_row(FILE *to, const char *cells[HELP_COLUMNS], const int widths[HELP_COLUMNS])
{
    bool is_done = false;

    while (!is_done) {
        int last = HELP_COLUMNS - 1;

        while (last > 0 && cells[last][0] == '\0') {
            --last;
        }
        (void)fputs("  ", to);
        for (int c = 0; c <= last; ++c) {
            print_cell(to, &cells[c], widths[c], c == last);
        }
        (void)fputc('\n', to);
        is_done = true;
        for (int c = 0; c < HELP_COLUMNS; ++c) {
            is_done = is_done && cells[c][0] == '\0';
        }
    }
}

static void print_help_row(FILE *to, const tsr_option *option, const int widths[HELP_COLUMNS])
{
    static const char *const types[] = {
        [TSR_OPTION_INT] = "int",         [TSR_OPTION_REAL] = "real",
        [TSR_OPTION_BOOL] = "true false", [TSR_OPTION_TEXT] = "text",
        [TSR_OPTION_PATH] = "path",       [TSR_OPTION_PATHS] = "paths, comma separated",
        [TSR_OPTION_CHOICE] = "",
    };
    const char *fallback = option->fallback == NULL      ? "(required)"
                           : option->fallback[0] == '\0' ? "(none)"
                                                         : option->fallback;
    char limits[TSR_CONFIG_WHY_MAX], values[TSR_CONFIG_WHY_MAX + 128];

    tsr_option_limits(option, false, limits);
    (void)snprintf(values, sizeof(values), "%s%s%s%s%s", types[option->type],
                   types[option->type][0] != '\0' && limits[0] != '\0' ? " " : "", limits,
                   option->unit == NULL ? "" : " ", option->unit == NULL ? "" : option->unit);
    print_row(to, (const char *[HELP_COLUMNS]){option->key, fallback, values, option->help},
              widths);
}

void tsr_config_help(FILE *to, const tsr_option_table *tables, int table_count)
{
    const int count = tsr_config_option_count(tables, table_count);
    int widths[HELP_COLUMNS] = {3, 10, 22, 0};

    for (int i = 0; i < count; ++i) {
        const int length = (int)strlen(tsr_config_option(tables, table_count, i, NULL)->key);

        widths[0] = length > widths[0] ? length : widths[0];
    }
    widths[3] = PAGE_WIDTH - 2 - widths[0] - 2 - widths[1] - 2 - widths[2] - 2;
    if (widths[3] < 20) {
        widths[3] = 20;
    }
    print_row(to, (const char *[HELP_COLUMNS]){"key", "default", "values", "meaning"}, widths);
    for (int first = 0; first < count; ++first) {
        if (!opens_section(tables, table_count, first)) {
            continue;
        }
        const char *section = tsr_config_option(tables, table_count, first, NULL)->section;

        (void)fprintf(to, "\n[%s]\n", section);
        for (int i = first; i < count; ++i) {
            const tsr_option *option = tsr_config_option(tables, table_count, i, NULL);

            if (strcmp(option->section, section) == 0) {
                print_help_row(to, option, widths);
            }
        }
    }
}
