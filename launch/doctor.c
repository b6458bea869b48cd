/* `tessera doctor`: is this machine, and this way of starting, fit to train? */
#include "launch/doctor.h"

#include "launch/devices.h"
#include "launch/figure.h"
#include "launch/version.h"

#include <errno.h>
#include <fcntl.h>
#include <hwloc.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

static const cli_option doctor_options[] = {
    {"dir", "PATH", "folder to test as a run folder (.)"},
    {"topology", NULL, "draw nodes, ranks, planes, and the groups of RUN.ini's mesh instead"},
    {"set", "section.key=value", "with RUN.ini: override one of its keys"},
    {"json", NULL, "print one JSON object on stdout"},
    {NULL, NULL, NULL},
};

enum { FILES_MAX = 4096 };

/* What each rank tells. */
typedef struct rank_report {
    char host[64], binding[64], device[160];
    char gpu[512]; /* or why there is none */
    int cores, threads;
    int has_fast_bf16, has_gpu;
    double memory_bytes, free_bytes;
} rank_report;

/* What rank 0 finds out about the folder. */
typedef struct disk_report {
    bool is_writable, can_lock;
    double free_bytes, write_rate;
    char problem[256];
} disk_report;

void doctor_binding(char text[64])
{
    hwloc_topology_t topology;
    hwloc_bitmap_t set = hwloc_bitmap_alloc();

    (void)snprintf(text, 64, "unknown");
    if (hwloc_topology_init(&topology) != 0) {
        hwloc_bitmap_free(set);
        return;
    }
    if (hwloc_topology_load(topology) == 0 &&
        hwloc_get_cpubind(topology, set, HWLOC_CPUBIND_PROCESS) == 0) {
        const int is_all = hwloc_bitmap_isequal(set, hwloc_topology_get_topology_cpuset(topology));
        char list[48];

        (void)hwloc_bitmap_list_snprintf(list, sizeof list, set);
        (void)snprintf(text, 64, "%s%s", is_all ? "none, all of " : "cores ", list);
    }
    hwloc_topology_destroy(topology);
    hwloc_bitmap_free(set);
}

/* Open the GPU as a run would, NCCL's module too: what fails is told, and is no failure. Both stay
 * in the process, so that the files taken can be listed. */
static void report_gpu(const world *w, rank_report *mine)
{
    tsr_device *device = NULL;
    void *module = NULL;

    mine->has_gpu = devices_open(DEVICE_CUDA, w, mine->threads, &device) == TSR_OK;
    if (!mine->has_gpu) {
        (void)snprintf(mine->gpu, sizeof mine->gpu, "%s", tsr_error_message());
        return;
    }
    const char *name = tsr_device_name(device);
    const bool is_emulated = strcmp(name, "cuda:emulated") == 0;
    const bool has_nccl =
        tsr_cuda_module_load(name,
                             is_emulated ? "libtessera_nccl_emulated.so" : "libtessera_nccl.so",
                             "-DTSR_CUDA=ON where NCCL is", &module) == TSR_OK;
    (void)snprintf(
        mine->gpu, sizeof mine->gpu, "%.24s, %.128s%s%.300s", name, tsr_device_description(device),
        has_nccl ? "; NCCL" : "; collectives by mpi: ", has_nccl ? "" : tsr_error_message());
    tsr_device_close(&device);
}

static tsr_status report_rank(const world *w, rank_report *mine)
{
    tsr_device *device = NULL;

    (void)gethostname(mine->host, sizeof mine->host - 1);
    doctor_binding(mine->binding);
    mine->cores = world_cores();
    TSR_TRY(world_thread_share(w, &mine->threads));
    mine->memory_bytes = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    mine->free_bytes = (double)sysconf(_SC_AVPHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    TSR_TRY(devices_open(DEVICE_CPU, w, mine->threads, &device));
    (void)snprintf(mine->device, sizeof mine->device, "%.24s, %.128s", tsr_device_name(device),
                   tsr_device_description(device));
    mine->has_fast_bf16 = tsr_device_has_fast_bf16(device);
    tsr_device_close(&device);
    report_gpu(w, mine);
    return TSR_OK;
}

/* 64 MiB through fsync, as a checkpoint would be written. */
static bool time_writing(int file, double *rate_out)
{
    enum { PIECE = 1 << 20, PIECES = 64 };
    char *piece = calloc(1, PIECE);
    struct timespec from, to;
    bool is_written = piece != NULL;

    (void)clock_gettime(CLOCK_MONOTONIC, &from);
    for (int i = 0; is_written && i < PIECES; ++i) {
        is_written = write(file, piece, PIECE) == PIECE;
    }
    is_written = is_written && fsync(file) == 0;
    (void)clock_gettime(CLOCK_MONOTONIC, &to);
    free(piece);
    const double seconds =
        (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
    *rate_out = is_written ? (double)PIECE * PIECES / seconds : 0.0;
    return is_written;
}

static void test_folder(const char *dir, disk_report *disk)
{
    char path[TSR_TEXT_MAX + 64];
    struct statvfs about;

    if (statvfs(dir, &about) == 0) {
        disk->free_bytes = (double)about.f_bavail * (double)about.f_frsize;
    }
    (void)snprintf(path, sizeof path, "%.1000s/.tessera-doctor-%ld", dir, (long)getpid());
    const int file = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (file < 0) {
        (void)snprintf(disk->problem, sizeof disk->problem, "cannot write into %.200s: %s", dir,
                       strerror(errno));
        return;
    }
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    disk->can_lock = flock(file, LOCK_EX | LOCK_NB) == 0 && fcntl(file, F_SETLK, &lock) == 0;
    disk->is_writable = time_writing(file, &disk->write_rate);
    if (!disk->is_writable) {
        (void)snprintf(disk->problem, sizeof disk->problem, "writing 64 MiB into %.180s: %s", dir,
                       strerror(errno));
    } else if (!disk->can_lock) {
        (void)snprintf(
            disk->problem, sizeof disk->problem,
            "no file locks here: set HDF5_USE_FILE_LOCKING=FALSE in the job's environment");
    }
    (void)close(file);
    (void)unlink(path);
}

/* Ranks that tell the same are told once; the files are this rank's. */
static void print_gpus(const rank_report *all, int ranks)
{
    char files[FILES_MAX];

    for (int r = 0; r < ranks; ++r) {
        if (r == 0 || strcmp(all[r].gpu, all[r - 1].gpu) != 0) {
            (void)printf("%s%s%s\n", r == 0 ? "cuda      " : "          ",
                         all[r].has_gpu ? "" : "none: ", all[r].gpu);
        }
    }
    tsr_cuda_module_files(files, sizeof files);
    for (char *rest = NULL, *file = strtok_r(files, "\n", &rest); file != NULL;
         file = strtok_r(NULL, "\n", &rest)) {
        (void)printf("  %s\n", file);
    }
}

static void print_text(const rank_report *all, int ranks, const disk_report *disk, const char *dir)
{
    const double gib = 1.0 / 1073741824.0;

    version_print(stdout);
    (void)printf("\nranks     %d\n", ranks);
    for (int r = 0; r < ranks; ++r) {
        (void)printf(
            "  rank %-4d %s, %d of %d cores used, binding: %s, memory %.1f GiB (%.1f free)\n", r,
            all[r].host, all[r].threads, all[r].cores, all[r].binding, all[r].memory_bytes * gib,
            all[r].free_bytes * gib);
    }
    (void)printf("device    %s; bf16 multiply: %s\n", all[0].device,
                 all[0].has_fast_bf16 ? "yes" : "no, use precision.compute = f32");
    print_gpus(all, ranks);
    (void)printf("folder    %s: %.1f GiB free, %.0f MB/s synced writes, file locks %s\n", dir,
                 disk->free_bytes * gib, disk->write_rate * 1e-6, disk->can_lock ? "work" : "fail");
    (void)printf("%s%s\n", disk->problem[0] != '\0' ? "problem   " : "all is well", disk->problem);
}

static void print_json(const rank_report *all, int ranks, const disk_report *disk, const char *dir)
{
    json_t *rows = json_array(), *taken = json_array();
    char files[FILES_MAX];

    for (int r = 0; r < ranks; ++r) {
        (void)json_array_append_new(
            rows,
            json_pack("{s:s,s:s,s:i,s:i,s:s,s:b,s:b,s:s,s:o,s:o}", "host", all[r].host, "binding",
                      all[r].binding, "cores", all[r].cores, "threads", all[r].threads, "device",
                      all[r].device, "bf16", all[r].has_fast_bf16, "gpu", all[r].has_gpu, "cuda",
                      all[r].gpu, "memory_bytes", figure_json(all[r].memory_bytes), "free_bytes",
                      figure_json(all[r].free_bytes)));
    }
    tsr_cuda_module_files(files, sizeof files);
    for (char *rest = NULL, *file = strtok_r(files, "\n", &rest); file != NULL;
         file = strtok_r(NULL, "\n", &rest)) {
        (void)json_array_append_new(taken, json_string(file));
    }
    json_t *object =
        json_pack("{s:s,s:o,s:o,s:{s:s,s:b,s:b,s:o,s:o},s:s}", "version", TSR_VERSION, "ranks",
                  rows, "cuda_files", taken, "folder", "path", dir, "writable", disk->is_writable,
                  "locks", disk->can_lock, "free_bytes", figure_json(disk->free_bytes),
                  "write_bytes_per_s", figure_json(disk->write_rate), "problem", disk->problem);
    (void)json_dumpf(object, stdout, 0);
    (void)fputc('\n', stdout);
    json_decref(object);
}

static int run_doctor(const cli_values *values, world *w)
{
    const char *dir = cli_get(&cli_doctor, values, "dir");
    const int ranks = tsr_comm_size(w->comm);
    rank_report mine = {0}, *all = NULL;
    disk_report disk = {0};

    if (cli_get(&cli_doctor, values, "topology") != NULL) {
        return doctor_topology(values, w);
    }
    dir = dir != NULL ? dir : ".";
    tsr_status st = report_rank(w, &mine);
    if (st == TSR_OK) {
        st = tsr_mem_alloc_array(TSR_MEM_OTHER, ranks, sizeof *all, (void **)&all);
    }
    st = tsr_comm_agree(w->comm, st);
    if (st == TSR_OK) {
        st = tsr_comm_all_gather(w->comm, &mine, sizeof mine, all);
    }
    if (st == TSR_OK && all != NULL && tsr_comm_rank(w->comm) == 0) {
        test_folder(dir, &disk);
        if (w->json) {
            print_json(all, ranks, &disk, dir);
        } else {
            print_text(all, ranks, &disk, dir);
        }
    }
    tsr_mem_free(all);
    if (st != TSR_OK) {
        return world_fail(w, st);
    }
    return disk.problem[0] != '\0' ? EXIT_RUN_FAILED : EXIT_DONE;
}

const cli_command cli_doctor = {
    .name = "doctor",
    .arguments = "[--dir PATH] | --topology [RUN.ini]",
    .summary = "Check ranks, cores, binding, memory, GPUs, disk, file locks and libraries.",
    .details =
        "Start it as you would start a run, for example under mpirun -n 4. Ends with 1 when the\n"
        "folder is not fit to be a run folder, naming the remedy; with --topology when messages\n"
        "would cross planes.\n",
    .min_positional = 0,
    .max_positional = 1,
    .options = doctor_options,
    .run = run_doctor,
    .needs_ranks = true,
};
