/* The ranks of this run: MPI's start and end, signals, exit codes. The only place that calls
 * MPI_Init, MPI_Abort or exit(). */
#ifndef TSR_LAUNCH_WORLD_H
#define TSR_LAUNCH_WORLD_H

#include "launch/network.h"

/** Exit codes of the contract. */
enum { EXIT_DONE = 0, EXIT_RUN_FAILED = 1, EXIT_USAGE = 2, EXIT_BAD_DATA = 3, EXIT_PEER_LOST = 4 };

typedef struct world {
    tsr_comm *comm; /* all ranks; `self` when not started by mpirun or srun */
    bool has_mpi;
    bool must_abort; /* others are in the middle of an exchange with this rank, which has failed */
    bool json;       /* --json: one object on stdout and nothing else there */
    network network; /* of this rank, chosen before MPI starts */
    FILE *people;    /* text for people: stdout on a terminal, else (and under mpirun) stderr */
} world;

/**
 * Start. Without a launcher's marks in the environment MPI is not started at all; else
 * w->network.config, set by the caller, says which interface this rank takes.
 *
 * Errors: TSR_ERR_ARG when a launcher says that there are N tasks but MPI sees one (N lone copies
 *         would each believe to be the whole run), with the remedy; TSR_ERR_UNSUPPORTED if MPI
 *         does not take calls from several threads; those of network_choose(); TSR_ERR_COMM.
 */
TSR_NODISCARD tsr_status world_start(int *argc, char ***argv, bool needs_ranks, world *w);

/**
 * Give the run's time-out to the communicator: makes it anew.
 *
 * Collective. Errors: TSR_ERR_ARG where [topology] was unknown when MPI started.
 */
TSR_NODISCARD tsr_status world_set_run(world *w, double timeout_s,
                                       const tsr_topology_config *topology);

/**
 * Print the last error where it belongs and turn it into an exit code: usage is used for argument
 * errors, the code of the contract for others.
 */
int world_fail(world *w, tsr_status status);

/** End: agree on the largest exit code, or abort when the communicator is dead. */
int world_stop(world *w, int exit_code);

/** SIGTERM and SIGUSR1 ask for a save and a stop; SIGINT does the same, twice it ends at once. */
void world_catch_signals(void);
/** The signal caught so far, 0 for none. */
int world_signal(void);

/** Cores this process may use. */
int world_cores(void);
/** Its share of them: divided by the ranks that may use just the same cores. Collective. */
TSR_NODISCARD tsr_status world_thread_share(const world *w, int *threads_out);
/** Cores that the ranks on its host may use between them. Collective. */
TSR_NODISCARD tsr_status world_host_cores(const world *w, int *cores_out);

#endif
