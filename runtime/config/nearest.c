#include "runtime/config/config_impl.h"

#include <string.h>

enum { NAME_MAX_BYTES = 63 };

static int min2(int a, int b)
{
    return a < b ? a : b;
}

int tsr_edit_distance(const char *a, const char *b)
{
    const int rows = (int)strnlen(a, NAME_MAX_BYTES), cols = (int)strnlen(b, NAME_MAX_BYTES);
    int d[NAME_MAX_BYTES + 1][NAME_MAX_BYTES + 1];

    for (int i = 0; i <= rows; ++i) {
        d[i][0] = i;
    }
    for (int j = 0; j <= cols; ++j) {
        d[0][j] = j;
    }
    for (int i = 1; i <= rows; ++i) {
        for (int j = 1; j <= cols; ++j) {
            const int replace = d[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);

            d[i][j] = min2(replace, 1 + min2(d[i - 1][j], d[i][j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                d[i][j] = min2(d[i][j], 1 + d[i - 2][j - 2]);
            }
        }
    }
    return d[rows][cols];
}

/* A guess that shares less than about two thirds of the name confuses more than it helps. */
static int farthest_guess(const char *name)
{
    return 1 + (int)strnlen(name, NAME_MAX_BYTES) / 3;
}

const tsr_option *tsr_config_nearest_key(const tsr_option_table *tables, int table_count,
                                         const char *section, const char *key)
{
    const int count = tsr_config_option_count(tables, table_count);
    const tsr_option *best = NULL;
    int least = farthest_guess(key) + 1;

    for (int i = 0; i < count; ++i) {
        const tsr_option *option = tsr_config_option(tables, table_count, i, NULL);

        if (strcmp(option->key, key) == 0) {
            return option;
        }
        const int distance = tsr_edit_distance(option->key, key);
        if (strcmp(option->section, section) == 0 && distance < least) {
            least = distance;
            best = option;
        }
    }
    return best;
}

const char *tsr_config_nearest_section(const tsr_option_table *tables, int table_count,
                                       const char *section)
{
    const int count = tsr_config_option_count(tables, table_count);
    const char *best = NULL;
    int least = farthest_guess(section) + 1;

    for (int i = 0; i < count; ++i) {
        const tsr_option *option = tsr_config_option(tables, table_count, i, NULL);
        const int distance = tsr_edit_distance(option->section, section);

        if (distance < least) {
            least = distance;
            best = option->section;
        }
    }
    return best;
}
