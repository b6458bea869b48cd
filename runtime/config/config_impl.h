/* Inside of runtime/config: one value between text and struct, nearest names, walks over tables. */
#ifndef TSR_RUNTIME_CONFIG_IMPL_H
#define TSR_RUNTIME_CONFIG_IMPL_H

#include "runtime/config.h"

enum {
    TSR_CONFIG_WHY_MAX = 512 /* bytes of a reason */
};

/** Place of a value's struct member. */
static inline void *tsr_option_at(const tsr_option *option, void *target)
{
    return (char *)target + option->offset;
}

/**
 * Convert text and store it; base is the folder of relative paths, "." for the working one.
 * False: nothing is stored and why_out holds the rule that was broken ("must be from 0 to 10").
 */
bool tsr_option_parse(const tsr_option *option, const char *text, const char *base, void *target,
                      char why_out[TSR_CONFIG_WHY_MAX]);

/** Text that tsr_option_parse() turns into the same value. */
void tsr_option_format(const tsr_option *option, const void *target, char out[TSR_TEXT_MAX]);

/** Shortest decimal text that strtod() reads back as value. */
void tsr_real_format(double value, char out[32]);

/** What values are allowed: "from 0 to 10" or, not in words, "0..10"; "f32 bf16"; empty if any. */
void tsr_option_limits(const tsr_option *option, bool in_words, char out[TSR_CONFIG_WHY_MAX]);

/** Edits (insert, delete, replace, swap neighbours) from a to b; texts are cut at 63 bytes. */
int tsr_edit_distance(const char *a, const char *b);

/**
 * Best guess for an unknown key: the same key of another section, or the nearest key of this
 * section, or NULL if nothing is near enough to be helpful.
 */
const tsr_option *tsr_config_nearest_key(const tsr_option_table *tables, int table_count,
                                         const char *section, const char *key);

/** Nearest section name, or NULL. */
const char *tsr_config_nearest_section(const tsr_option_table *tables, int table_count,
                                       const char *section);

/** Options of all tables, and number `index` of them; target_out may be NULL. */
int tsr_config_option_count(const tsr_option_table *tables, int table_count);
const tsr_option *tsr_config_option(const tsr_option_table *tables, int table_count, int index,
                                    void **target_out);

#endif
