#include "launch/world.h"

#include "collectives/mpi_bridge.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double start_timeout_s = 300.0; /* until the run file's own is known */

static int number_in_environment(const char *name)
{
    const char *text = getenv(name);

    return text != NULL ? atoi(text) : 0;
}

static bool is_launched_by_mpi(void)
{
    static const char *const marks[] = {"PMIX_RANK", "PMIX_NAMESPACE", "OMPI_COMM_WORLD_SIZE",
                                        "PMI_RANK", "PMI_SIZE"};

    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; ++i) {
        if (getenv(marks[i]) != NULL) {
            return true;
        }
    }
    return false;
}

/* A launcher that MPI was not built for starts N copies that each believe to be rank 0 of 1. */
static tsr_status check_not_alone(int size)
{
    const int slurm = getenv("SLURM_STEP_ID") != NULL ? number_in_environment("SLURM_NTASKS") : 0;
    const int open_mpi = number_in_environment("OMPI_COMM_WORLD_SIZE");
    const int pmi = number_in_environment("PMI_SIZE");

    TSR_CHECK(slurm <= 1 || size > 1, TSR_ERR_ARG,
              "SLURM_NTASKS is %d but MPI sees 1 rank: this would be %d separate runs; start with "
              "`srun --mpi=pmix` or with mpirun",
              slurm, slurm);
    TSR_CHECK(
        (open_mpi <= 1 && pmi <= 1) || size > 1, TSR_ERR_ARG,
        "the launcher started %d tasks but MPI sees 1 rank: mpirun belongs to another MPI than "
        "the one this program is linked to; `tessera --version` names the latter",
        open_mpi > pmi ? open_mpi : pmi);
    return TSR_OK;
}

/* As tsr_comm_agree(), but the lowest rank with an error speaks for the others. */
static tsr_status tell_once(tsr_comm *comm, tsr_status local)
{
    const uint64_t rank = (uint64_t)tsr_comm_rank(comm);
    uint64_t speaker = local == TSR_OK ? UINT64_MAX : rank;

    TSR_TRY(tsr_comm_all_reduce_u64(comm, &speaker, 1, TSR_REDUCE_MIN));
    return tsr_comm_agree(comm, speaker == rank ? local : TSR_OK);
}

/* Copies of experts move on a thread of their own, beside the step's collectives. */
static tsr_status check_threads(int provided)
{
    TSR_CHECK(provided >= MPI_THREAD_MULTIPLE, TSR_ERR_UNSUPPORTED,
              "MPI takes calls at thread level %d, must be %d (MPI_THREAD_MULTIPLE): use a build "
              "of MPI with support for threads",
              provided, MPI_THREAD_MULTIPLE);
    return TSR_OK;
}

static tsr_status start_mpi(int *argc, char ***argv, world *w)
{
    const tsr_status chosen = network_choose(&w->network);
    int provided = 0, size = 0;

    TSR_CHECK(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided) == MPI_SUCCESS,
              TSR_ERR_COMM, "MPI_Init failed");
    w->has_mpi = true;
    (void)MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    (void)MPI_Comm_size(MPI_COMM_WORLD, &size);
    TSR_TRY(check_not_alone(size));
    TSR_TRY(tsr_comm_create_mpi(MPI_COMM_WORLD, start_timeout_s, w->network.nic.plane, &w->comm));
    return tell_once(w->comm, chosen != TSR_OK ? chosen : check_threads(provided));
}

tsr_status world_start(int *argc, char ***argv, bool needs_ranks, world *w)
{
    /* mpirun gives each rank a terminal of its own for stdout, whatever its own stdout is. */
    w->people = isatty(STDOUT_FILENO) && !is_launched_by_mpi() ? stdout : stderr;
    if (needs_ranks && is_launched_by_mpi()) {
        TSR_TRY(start_mpi(argc, argv, w));
    } else {
        if (needs_ranks) {
            TSR_TRY(check_not_alone(1));
        }
        TSR_TRY(tsr_comm_create_self(&w->comm));
    }
    tsr_log_setup(w->people, TSR_LOG_INFO, tsr_comm_rank(w->comm));
    return TSR_OK;
}

tsr_status world_set_run(world *w, double timeout_s, const tsr_topology_config *topology)
{
    if (!w->has_mpi) {
        return TSR_OK;
    }
    TSR_TRY(tell_once(w->comm, network_check(&w->network, topology)));
    tsr_comm_destroy(&w->comm);
    return tsr_comm_create_mpi(MPI_COMM_WORLD, timeout_s, w->network.nic.plane, &w->comm);
}

static int exit_code_of(tsr_status status)
{
    switch (status) {
    case TSR_OK:
    case TSR_ERR_PEER: /* the rank that owns the cause brings the code */
        return EXIT_DONE;
    case TSR_ERR_ARG:
    case TSR_ERR_UNSUPPORTED:
        return EXIT_USAGE;
    case TSR_ERR_FORMAT:
    case TSR_ERR_IO:
        return EXIT_BAD_DATA;
    case TSR_ERR_COMM:
    case TSR_ERR_TIMEOUT:
        return EXIT_PEER_LOST;
    default:
        return EXIT_RUN_FAILED;
    }
}

int world_fail(world *w, tsr_status status)
{
    const int rank = w->comm != NULL ? tsr_comm_rank(w->comm) : 0;
    const bool is_lost = status == TSR_ERR_COMM || status == TSR_ERR_TIMEOUT;

    if (status == TSR_ERR_PEER) {
        return exit_code_of(status);
    }
    if (is_lost && rank != 0) {
        (void)sleep(1); /* all living ranks hold the same text: let the lowest of them print it */
    }
    (void)fprintf(stderr, "tessera: error: %s%s", tsr_error_message(), is_lost ? "" : "\n");
    if (is_lost) {
        (void)fprintf(stderr, " [seen by rank %d]\n", rank);
    }
    (void)fflush(stderr);
    return exit_code_of(status);
}

int world_stop(world *w, int exit_code)
{
    double worst = exit_code;

    /* a peer may have been lost on another communicator than the world's */
    if (w->has_mpi && (w->comm == NULL || w->must_abort || tsr_comm_is_dead(w->comm) ||
                       exit_code == EXIT_PEER_LOST)) {
        (void)MPI_Abort(MPI_COMM_WORLD, exit_code != 0 ? exit_code : EXIT_PEER_LOST);
    }
    if (w->comm != NULL && tsr_comm_all_reduce_f64(w->comm, &worst, 1, TSR_REDUCE_MAX) != TSR_OK) {
        (void)MPI_Abort(MPI_COMM_WORLD, exit_code != 0 ? exit_code : EXIT_PEER_LOST);
    }
    tsr_comm_destroy(&w->comm);
    if (w->has_mpi) {
        (void)MPI_Finalize();
    }
    return (int)worst;
}

static volatile sig_atomic_t caught;

static void on_signal(int number)
{
    if (number == SIGINT && caught == SIGINT) {
        _exit(128 + SIGINT);
    }
    caught = number;
}

void world_catch_signals(void)
{
    const int numbers[] = {SIGTERM, SIGUSR1, SIGINT};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; ++i) {
        (void)sigaction(numbers[i], &action, NULL);
    }
}

int world_signal(void)
{
    return caught;
}

int world_cores(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* Where a process may run: ranks that share it have to share its cores. */
typedef struct place {
    char host[64];
    cpu_set_t cores;
} place;

/* [P] place of each rank, to be freed; the own one is that of this rank. */
static tsr_status gather_places(const world *w, place **all_out)
{
    place mine = {0};

    (void)gethostname(mine.host, sizeof mine.host - 1);
    (void)sched_getaffinity(0, sizeof mine.cores, &mine.cores);
    TSR_TRY(
        tsr_mem_alloc_array(TSR_MEM_OTHER, tsr_comm_size(w->comm), sizeof mine, (void **)all_out));
    const tsr_status st = tsr_comm_all_gather(w->comm, &mine, sizeof mine, *all_out);
    if (st != TSR_OK) {
        tsr_mem_free(*all_out);
    }
    return st;
}

tsr_status world_thread_share(const world *w, int *threads_out)
{
    place *all = NULL;
    const int rank = tsr_comm_rank(w->comm);
    int sharing = 1;

    TSR_TRY(gather_places(w, &all));
    for (int r = 0; r < tsr_comm_size(w->comm); ++r) {
        sharing += r != rank && memcmp(&all[r], &all[rank], sizeof *all) == 0;
    }
    tsr_mem_free(all);
    *threads_out = world_cores() > sharing ? world_cores() / sharing : 1;
    return TSR_OK;
}

tsr_status world_host_cores(const world *w, int *cores_out)
{
    place *all = NULL;
    cpu_set_t cores;

    CPU_ZERO(&cores);
    TSR_TRY(gather_places(w, &all));
    for (int r = 0; r < tsr_comm_size(w->comm); ++r) {
        if (strcmp(all[r].host, all[tsr_comm_rank(w->comm)].host) == 0) {
            CPU_OR(&cores, &cores, &all[r].cores);
        }
    }
    tsr_mem_free(all);
    *cores_out = CPU_COUNT(&cores);
    return TSR_OK;
}
