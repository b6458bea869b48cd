#include "launch/cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int find_option(const cli_command *command, const char *name, size_t length)
{
    for (int i = 0; command->options[i].name != NULL; ++i) {
        if (strlen(command->options[i].name) == length &&
            strncmp(command->options[i].name, name, length) == 0) {
            return i;
        }
    }
    return -1;
}

/* One "--name", "--name value" or "--name=value"; *used tells how many words it took. */
static tsr_status parse_option(const cli_command *command, char **words, int left,
                               cli_values *values, int *used)
{
    const char *name = words[0] + 2;
    const char *equals = strchr(name, '=');
    const size_t length = equals != NULL ? (size_t)(equals - name) : strlen(name);
    const int at = find_option(command, name, length);

    TSR_CHECK(at >= 0, TSR_ERR_ARG, "%s: unknown option %s; see tessera %s --help", command->name,
              words[0], command->name);
    const cli_option *option = &command->options[at];
    const char *value = "";

    *used = 1;
    if (option->argument == NULL) {
        TSR_CHECK(equals == NULL, TSR_ERR_ARG, "%s: --%s takes no value", command->name,
                  option->name);
    } else if (equals != NULL) {
        value = equals + 1;
    } else {
        TSR_CHECK(left > 1, TSR_ERR_ARG, "%s: --%s needs %s", command->name, option->name,
                  option->argument);
        value = words[1];
        *used = 2;
    }
    if (strcmp(option->name, "set") == 0) {
        TSR_CHECK(values->set_count < CLI_MAX_REPEAT, TSR_ERR_ARG, "more than %d --set options",
                  CLI_MAX_REPEAT);
        values->set[values->set_count++] = value;
    }
    values->option[at] = value;
    return TSR_OK;
}

tsr_status cli_parse(const cli_command *command, int argc, char **argv, cli_values *values_out)
{
    bool only_positional = false;

    *values_out = (cli_values){0};
    for (int i = 0; i < argc;) {
        if (!only_positional && strcmp(argv[i], "--") == 0) {
            only_positional = true;
            ++i;
        } else if (!only_positional && strncmp(argv[i], "--", 2) == 0) {
            int used = 0;
            TSR_TRY(parse_option(command, argv + i, argc - i, values_out, &used));
            i += used;
        } else {
            TSR_CHECK(values_out->positional_count < command->max_positional, TSR_ERR_ARG,
                      "%s: %s is one argument too many; usage: tessera %s %s", command->name,
                      argv[i], command->name, command->arguments);
            values_out->positional[values_out->positional_count++] = argv[i++];
        }
    }
    TSR_CHECK(values_out->positional_count >= command->min_positional, TSR_ERR_ARG,
              "%s: missing argument; usage: tessera %s %s", command->name, command->name,
              command->arguments);
    return TSR_OK;
}

const char *cli_get(const cli_command *command, const cli_values *values, const char *name)
{
    const int at = find_option(command, name, strlen(name));

    return at >= 0 ? values->option[at] : NULL;
}

tsr_status cli_get_real(const cli_command *command, const cli_values *values, const char *name,
                        double min, double max, double fallback, double *out)
{
    const char *text = cli_get(command, values, name);
    char *end = NULL;

    *out = fallback;
    if (text == NULL) {
        return TSR_OK;
    }
    errno = 0;
    const double value = strtod(text, &end);
    TSR_CHECK(end != text && *end == '\0' && errno == 0 && isfinite(value), TSR_ERR_ARG,
              "--%s %s: not a number", name, text);
    TSR_CHECK(value >= min && value <= max, TSR_ERR_ARG, "--%s %s: must be from %g to %g", name,
              text, min, max);
    *out = value;
    return TSR_OK;
}

tsr_status cli_get_int(const cli_command *command, const cli_values *values, const char *name,
                       int64_t min, int64_t max, int64_t fallback, int64_t *out)
{
    const char *text = cli_get(command, values, name);
    char *end = NULL;

    *out = fallback;
    if (text == NULL) {
        return TSR_OK;
    }
    errno = 0;
    const long long value = strtoll(text, &end, 10);
    TSR_CHECK(end != text && *end == '\0' && errno == 0, TSR_ERR_ARG, "--%s %s: not a whole number",
              name, text);
    TSR_CHECK(value >= min && value <= max, TSR_ERR_ARG, "--%s %s: must be from %lld to %lld", name,
              text, (long long)min, (long long)max);
    *out = value;
    return TSR_OK;
}

void cli_print_help(FILE *to, const cli_command *command)
{
    (void)fprintf(to, "usage: tessera %s %s\n\n%s\n", command->name, command->arguments,
                  command->summary);
    if (command->details != NULL) {
        (void)fprintf(to, "\n%s", command->details);
    }
    (void)fprintf(to, "\noptions:\n");
    for (const cli_option *o = command->options; o->name != NULL; ++o) {
        char left[64];

        (void)snprintf(left, sizeof left, "--%s%s%s", o->name, o->argument != NULL ? " " : "",
                       o->argument != NULL ? o->argument : "");
        (void)fprintf(to, "  %-26s %s\n", left, o->help);
    }
}
