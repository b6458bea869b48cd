/* `tessera`: finds the command, starts the ranks, runs it, ends them. */
#include "launch/cli.h"
#include "launch/version.h"
#include "launch/world.h"

#include <string.h>

static const cli_command *const commands[] = {&cli_train, &cli_eval,   &cli_generate, &cli_ckpt,
                                              &cli_bench, &cli_doctor, &cli_report};

enum { COMMANDS = sizeof commands / sizeof commands[0] };

static void print_usage(FILE *to)
{
    (void)fprintf(to,
                  "usage: tessera COMMAND ...\n\n"
                  "Trains Mixture-of-Experts language models, alone or under mpirun and srun.\n\n");
    for (int i = 0; i < COMMANDS; ++i) {
        (void)fprintf(to, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    }
    (void)fprintf(to,
                  "\n  tessera COMMAND --help        options of a command\n"
                  "  tessera train --help-config   keys of a run file\n"
                  "  tessera --version             version and libraries\n\n"
                  "exit codes: 0 done, 1 the run failed, 2 usage or run file, 3 data or checkpoint "
                  "invalid,\n            4 a peer was lost or timed out\n");
}

static const cli_command *find_command(const char *name)
{
    for (int i = 0; i < COMMANDS; ++i) {
        if (strcmp(commands[i]->name, name) == 0) {
            return commands[i];
        }
    }
    return NULL;
}

static bool has_word(int argc, char **argv, const char *word)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; ++i) {
        if (strcmp(argv[i], word) == 0) {
            return true;
        }
    }
    return false;
}

static int run_command(const cli_command *command, int argc, char **argv)
{
    world w = {0};
    cli_values values;

    if (command->needs_ranks && cli_parse(command, argc, argv, &values) == TSR_OK) {
        network_read(&values, &w.network); /* what is wrong is said below, once */
    }
    tsr_status st = world_start(&argc, &argv, command->needs_ranks, &w);
    if (st == TSR_OK) {
        st = cli_parse(command, argc, argv, &values);
        if (st != TSR_OK && tsr_comm_rank(w.comm) != 0) {
            st = TSR_FAIL(TSR_ERR_PEER, "rank 0 reports the same"); /* equal on all: say it once */
        }
    }
    if (st != TSR_OK) {
        const int code = world_fail(&w, st);
        return w.comm != NULL ? world_stop(&w, code) : code;
    }
    w.json = cli_get(command, &values, "json") != NULL;
    if (w.json) {
        w.people = stderr;
        tsr_log_setup(stderr, TSR_LOG_INFO, tsr_comm_rank(w.comm));
    }
    return world_stop(&w, command->run(&values, &w));
}

int main(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_usage(argc < 2 ? stderr : stdout);
        return argc < 2 ? EXIT_USAGE : EXIT_DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        version_print(stdout);
        return EXIT_DONE;
    }
    const cli_command *command = find_command(argv[1]);
    if (command == NULL) {
        (void)fprintf(stderr, "tessera: error: %s is no command; see tessera --help\n", argv[1]);
        return EXIT_USAGE;
    }
    if (has_word(argc - 2, argv + 2, "--help") || has_word(argc - 2, argv + 2, "-h")) {
        cli_print_help(stdout, command);
        return EXIT_DONE;
    }
    return run_command(command, argc - 2, argv + 2);
}
