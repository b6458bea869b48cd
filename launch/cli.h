/* The command line: one table a command, from which parsing, --help and the man page are made. */
#ifndef TSR_LAUNCH_CLI_H
#define TSR_LAUNCH_CLI_H

#include "runtime/runtime.h"

typedef struct world world;

enum {
    CLI_MAX_REPEAT = 64 /* --set options on one command line */
};

typedef struct cli_option {
    const char *name;     /* without the dashes */
    const char *argument; /* NULL: a switch */
    const char *help;
} cli_option;

/** What was given; unset options are NULL. Points into argv. */
typedef struct cli_values {
    const char *positional[4];
    int positional_count;
    const char *option[32]; /* by place in the command's table; "" for a switch */
    const char *set[CLI_MAX_REPEAT];
    int set_count;
} cli_values;

typedef struct cli_command {
    const char *name;
    const char *arguments; /* for the usage line */
    const char *summary;   /* one line */
    const char *details;   /* further lines of --help, or NULL */
    int min_positional, max_positional;
    const cli_option *options; /* ends with a NULL name */
    int (*run)(const cli_values *values, world *w);
    bool needs_ranks; /* communicates: MPI is started when launched by it */
} cli_command;

/** Parse what follows the command's name. Errors: TSR_ERR_ARG naming the word and the remedy. */
TSR_NODISCARD tsr_status cli_parse(const cli_command *command, int argc, char **argv,
                                   cli_values *values_out);

/** Value of an option, NULL when not given; name must be in the command's table. */
const char *cli_get(const cli_command *command, const cli_values *values, const char *name);

/** A number in [min, max], or fallback when the option was not given. Errors: TSR_ERR_ARG. */
TSR_NODISCARD tsr_status cli_get_int(const cli_command *command, const cli_values *values,
                                     const char *name, int64_t min, int64_t max, int64_t fallback,
                                     int64_t *out);
TSR_NODISCARD tsr_status cli_get_real(const cli_command *command, const cli_values *values,
                                      const char *name, double min, double max, double fallback,
                                      double *out);

void cli_print_help(FILE *to, const cli_command *command);

/* the commands, each in the file of its name */
extern const cli_command cli_train, cli_eval, cli_generate, cli_ckpt, cli_bench, cli_doctor,
    cli_report;

#endif
