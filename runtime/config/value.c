#include "runtime/config/config_impl.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A limit that no 64-bit number reaches is none: "at least MIN" is all there is to say. */
static const double unlimited = 0x1p63;
static const double exact_integers = 0x1p53; /* doubles hold every integer up to here */

static bool TSR_PRINTF(2, 3) refuse(char why[TSR_CONFIG_WHY_MAX], const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(why, TSR_CONFIG_WHY_MAX, fmt, args);
    va_end(args);
    return false;
}

void tsr_real_format(double value, char out[32])
{
    for (int digits = 15; digits <= 17; ++digits) {
        (void)snprintf(out, 32, "%.*g", digits, value);
        if (strtod(out, NULL) == value) {
            return;
        }
    }
}

static bool has_limits(const tsr_option *option)
{
    return option->min != 0.0 || option->max != 0.0;
}

/* A limit; large powers of ten are easier to read as such. */
static void format_limit(double limit, char out[32])
{
    const double exponent = limit >= 1e6 ? round(log10(limit)) : 0.0;

    tsr_real_format(limit, out);
    if (exponent > 0.0 && pow(10.0, exponent) == limit) {
        (void)snprintf(out, 32, "1e%.0f", exponent);
    }
}

void tsr_option_limits(const tsr_option *option, bool in_words, char out[TSR_CONFIG_WHY_MAX])
{
    char min[32], max[32];

    out[0] = '\0';
    if (option->type == TSR_OPTION_CHOICE) {
        (void)snprintf(out, TSR_CONFIG_WHY_MAX, "%s", option->choices);
    } else if (has_limits(option)) {
        format_limit(option->min, min);
        format_limit(option->max, max);
        if (option->max >= unlimited) {
            (void)snprintf(out, TSR_CONFIG_WHY_MAX, "%s%s", in_words ? "at least " : ">= ", min);
        } else if (option->min <= -unlimited) {
            (void)snprintf(out, TSR_CONFIG_WHY_MAX, "%s%s", in_words ? "at most " : "<= ", max);
        } else {
            (void)snprintf(out, TSR_CONFIG_WHY_MAX, in_words ? "from %s to %s" : "%s..%s", min,
                           max);
        }
    }
}

static bool in_limits(const tsr_option *option, double value, char why[TSR_CONFIG_WHY_MAX])
{
    char limits[TSR_CONFIG_WHY_MAX];

    if (!has_limits(option) || (value >= option->min && value <= option->max)) {
        return true;
    }
    tsr_option_limits(option, true, limits);
    return refuse(why, "must be %.400s", limits);
}

/* Decimal only: strtod() alone would also take "nan", "inf" and hexadecimal. */
static bool parse_real(const char *text, double *out)
{
    char *end = NULL;

    if (text[0] == '\0' || text[strspn(text, "0123456789+-.eE")] != '\0') {
        return false;
    }
    errno = 0;
    *out = strtod(text, &end);
    return *end == '\0' && end != text && errno == 0 && isfinite(*out);
}

static bool store_int(const tsr_option *option, const char *text, void *at,
                      char why[TSR_CONFIG_WHY_MAX])
{
    double real = 0.0;
    int64_t value = 0;

    if (text[0] == '\0' || text[strspn(text, "0123456789+-")] != '\0') {
        /* 3e6 is welcome where it is a whole number that a double holds exactly */
        if (!parse_real(text, &real) || real != floor(real) || fabs(real) > exact_integers) {
            return refuse(why, "must be a whole number");
        }
        value = (int64_t)real;
    } else {
        char *end = NULL;

        errno = 0;
        value = strtoll(text, &end, 10);
        if (*end != '\0' || end == text || errno != 0) {
            return refuse(why, errno == ERANGE ? "does not fit 64 bits" : "must be a whole number");
        }
    }
    if (!in_limits(option, (double)value, why)) {
        return false;
    }
    *(int64_t *)at = value;
    return true;
}

static bool store_real(const tsr_option *option, const char *text, void *at,
                       char why[TSR_CONFIG_WHY_MAX])
{
    double value = 0.0;

    if (!parse_real(text, &value)) {
        return refuse(why, "must be a finite number");
    }
    if (!in_limits(option, value, why)) {
        return false;
    }
    *(double *)at = value;
    return true;
}

static bool store_bool(const char *text, void *at, char why[TSR_CONFIG_WHY_MAX])
{
    static const char *const words[] = {"false", "true", "no", "yes", "off", "on", "0", "1"};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); ++i) {
        if (strcmp(text, words[i]) == 0) {
            *(bool *)at = i % 2 == 1;
            return true;
        }
    }
    return refuse(why, "must be true or false");
}

/* The text of choice number `index`, with its length; NULL past the last one. */
static const char *choice_at(const char *choices, int index, size_t *length_out)
{
    const char *word = choices + strspn(choices, " ");

    for (; index > 0 && *word != '\0'; --index) {
        word += strcspn(word, " ");
        word += strspn(word, " ");
    }
    *length_out = strcspn(word, " ");
    return *word == '\0' ? NULL : word;
}

static bool store_choice(const tsr_option *option, const char *text, void *at,
                         char why[TSR_CONFIG_WHY_MAX])
{
    const char *word = NULL;
    size_t length = 0;

    for (int i = 0; (word = choice_at(option->choices, i, &length)) != NULL; ++i) {
        if (strlen(text) == length && memcmp(text, word, length) == 0) {
            *(int *)at = i;
            return true;
        }
    }
    return refuse(why, "must be one of: %.400s", option->choices);
}

/* Texts are kept to what a run file can hold, so that what is printed reads back the same. */
static bool is_plain_text(const char *text, char why[TSR_CONFIG_WHY_MAX])
{
    const size_t length = strlen(text);

    if (length >= TSR_TEXT_MAX) {
        return refuse(why, "has %zu bytes, at most %d are taken", length, TSR_TEXT_MAX - 1);
    }
    for (size_t i = 0; i < length; ++i) {
        if (iscntrl((unsigned char)text[i])) {
            return refuse(why, "holds a control character at byte %zu", i);
        }
        if ((text[i] == ';' || text[i] == '#') && (i == 0 || text[i - 1] == ' ')) {
            return refuse(why, "holds ' %c', which would start a comment", text[i]);
        }
    }
    return true;
}

/* Append one path, made absolute, at *used of out. */
/* Take "." and "name/.." out of an absolute path, in place; links are not looked at. */
static void clean_path(char *path)
{
    char *end = path; /* of what is kept */

    for (const char *at = path; *at != '\0';) {
        const size_t length = 1 + strcspn(at + 1, "/"); /* a slash and the name after it */

        if (length == 3 && strncmp(at, "/..", 3) == 0) {
            while (end > path && *--end != '/') {
            }
        } else if (length > 1 && !(length == 2 && at[1] == '.')) {
            memmove(end, at, length);
            end += length;
        }
        at += length;
    }
    if (end == path) {
        *end++ = '/';
    }
    *end = '\0';
}

static bool append_path(const char *path, size_t length, const char *base, char out[TSR_TEXT_MAX],
                        size_t *used, char why[TSR_CONFIG_WHY_MAX])
{
    char folder[PATH_MAX] = "";
    const char *between = "", *below = "";

    if (path[0] != '/') {
        if (base[0] != '/' && getcwd(folder, sizeof(folder)) == NULL) {
            return refuse(why, "is relative and the working folder is unknown: %s",
                          strerror(errno));
        }
        if (strcmp(base, ".") != 0) {
            below = base;
        }
        between = folder[0] != '\0' && below[0] != '\0' ? "/" : "";
    }
    const int wrote = snprintf(out + *used, TSR_TEXT_MAX - *used, "%s%s%s%s%.*s", folder, between,
                               below, path[0] == '/' ? "" : "/", (int)length, path);
    if (wrote < 0 || (size_t)wrote >= TSR_TEXT_MAX - *used) {
        return refuse(why, "is longer than %d bytes as an absolute path", TSR_TEXT_MAX - 1);
    }
    clean_path(out + *used);
    *used += strlen(out + *used);
    return true;
}

static bool store_paths(const tsr_option *option, const char *text, const char *base, void *at,
                        char why[TSR_CONFIG_WHY_MAX])
{
    const char *const separator = option->type == TSR_OPTION_PATHS ? "," : "";
    char joined[TSR_TEXT_MAX] = "";
    size_t used = 0;

    while (*text != '\0') {
        text += strspn(text, " ");
        const size_t span = strcspn(text, separator);
        size_t length = span;

        while (length > 0 && text[length - 1] == ' ') {
            --length;
        }
        if (length == 0 || (text[span] == ',' && text[span + 1] == '\0')) {
            return refuse(why, "holds an empty path");
        }
        if (!append_path(text, length, base, joined, &used, why)) {
            return false;
        }
        text += span;
        if (*text == ',') {
            if (used + 1 >= TSR_TEXT_MAX) {
                return refuse(why, "is longer than %d bytes", TSR_TEXT_MAX - 1);
            }
            joined[used++] = ',';
            joined[used] = '\0';
            ++text;
        }
    }
    if (!is_plain_text(joined, why)) { /* the base may hold what the text does not */
        return false;
    }
    memcpy(at, joined, TSR_TEXT_MAX);
    return true;
}

bool tsr_option_parse(const tsr_option *option, const char *text, const char *base, void *target,
                      char why_out[TSR_CONFIG_WHY_MAX])
{
    void *at = tsr_option_at(option, target);

    switch (option->type) {
    case TSR_OPTION_INT:
        return store_int(option, text, at, why_out);
    case TSR_OPTION_REAL:
        return store_real(option, text, at, why_out);
    case TSR_OPTION_BOOL:
        return store_bool(text, at, why_out);
    case TSR_OPTION_CHOICE:
        return store_choice(option, text, at, why_out);
    case TSR_OPTION_PATH:
    case TSR_OPTION_PATHS:
        return is_plain_text(text, why_out) && store_paths(option, text, base, at, why_out);
    case TSR_OPTION_TEXT:
        break;
    }
    if (!is_plain_text(text, why_out)) {
        return false;
    }
    (void)snprintf(at, TSR_TEXT_MAX, "%s", text);
    return true;
}

void tsr_option_format(const tsr_option *option, const void *target, char out[TSR_TEXT_MAX])
{
    const void *at = (const char *)target + option->offset;
    const char *word = NULL;
    size_t length = 0;

    switch (option->type) {
    case TSR_OPTION_INT:
        (void)snprintf(out, TSR_TEXT_MAX, "%lld", (long long)*(const int64_t *)at);
        break;
    case TSR_OPTION_REAL:
        tsr_real_format(*(const double *)at, out);
        break;
    case TSR_OPTION_BOOL:
        (void)snprintf(out, TSR_TEXT_MAX, "%s", *(const bool *)at ? "true" : "false");
        break;
    case TSR_OPTION_CHOICE:
        word = choice_at(option->choices, *(const int *)at, &length);
        (void)snprintf(out, TSR_TEXT_MAX, "%.*s", (int)length, word == NULL ? "" : word);
        break;
    case TSR_OPTION_TEXT:
    case TSR_OPTION_PATH:
    case TSR_OPTION_PATHS:
        (void)snprintf(out, TSR_TEXT_MAX, "%s", (const char *)at);
        break;
    }
}
