/* Saving, checking and loading a checkpoint: bench_checkpoint [FOLDER [MiB [rounds]]].
 *
 * One JSON line a case. plain_write is the bound of save: write() and fsync() of as many bytes into
 * the same folder. stage is what a training step waits for; save is from there until published. */
#include "collectives/mpi_bridge.h"
#include "tests/bench/bench_rounds.h"
#include "tests/checkpoints/state_fixture.h"

#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ROUNDS = 1000, BLOCK = 1 << 20 };

typedef struct bench {
    tsr_comm *comm;
    char run[TSR_TEXT_MAX];
    fixture state;
    tsr_ckpt_writer *writer;
    tsr_ckpt_result result;
    double staged_s;
    char *block;
} bench;

static tsr_status save(bench *b)
{
    TSR_TRY(tsr_ckpt_save(b->writer, &b->state.view, &b->staged_s));
    return tsr_ckpt_finish(b->writer, &b->result);
}

static tsr_status stage(bench *b)
{
    return save(b); /* the caller takes staged_s */
}

static tsr_status check(bench *b)
{
    tsr_ckpt_info info = {.step = 0};
    bool found = false;

    if (tsr_comm_rank(b->comm) == 0) {
        TSR_TRY(tsr_ckpt_find(b->run, NULL, NULL, &found, &info));
        tsr_ckpt_info_free(&info);
    }
    return TSR_OK;
}

static tsr_status load(bench *b)
{
    return tsr_ckpt_load(b->comm, b->result.path, &b->state.view);
}

static tsr_status plain_write(bench *b)
{
    char path[TSR_TEXT_MAX + 32];
    const uint64_t mine = b->result.bytes / (uint64_t)tsr_comm_size(b->comm);

    (void)snprintf(path, sizeof path, "%s/plain-%d", b->run, tsr_comm_rank(b->comm));
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    TSR_CHECK(fd >= 0, TSR_ERR_IO, "cannot create %s", path);
    bool ok = true;
    for (uint64_t at = 0; at < mine && ok; at += BLOCK) {
        const size_t bytes = mine - at < BLOCK ? (size_t)(mine - at) : BLOCK;
        ok = write(fd, b->block, bytes) == (ssize_t)bytes;
    }
    ok = ok && fsync(fd) == 0;
    (void)close(fd);
    (void)unlink(path);
    return ok ? TSR_OK : TSR_FAIL(TSR_ERR_IO, "cannot write %s", path);
}

static const struct bench_case {
    const char *name;
    tsr_status (*run)(bench *b);
} cases[] = {
    {"stage", stage}, {"save", save}, {"plain_write", plain_write},
    {"check", check}, {"load", load},
};

static tsr_status measure(bench *b, const struct bench_case *which, int rounds)
{
    static double seconds[MAX_ROUNDS];

    for (int round = -1; round < rounds; ++round) { /* one to warm up */
        TSR_TRY(tsr_comm_barrier(b->comm));
        const double start = MPI_Wtime();
        TSR_TRY(tsr_comm_agree(b->comm, which->run(b)));
        double took = which->run == stage ? b->staged_s : MPI_Wtime() - start;
        TSR_TRY(tsr_comm_all_reduce_f64(b->comm, &took, 1, TSR_REDUCE_MAX));
        seconds[round < 0 ? 0 : round] = took;
    }
    bench_sort_rounds(seconds, rounds);
    if (tsr_comm_rank(b->comm) == 0) {
        (void)printf(
            "{\"bench\": \"checkpoint\", \"case\": \"%s\", \"ranks\": %d, \"mib\": %.1f, "
            "\"ms_min\": %.2f, \"ms_median\": %.2f, \"ms_p90\": %.2f, \"gb_per_s\": %.2f}\n",
            which->name, tsr_comm_size(b->comm), (double)b->result.bytes / 1048576.0,
            seconds[0] * 1e3, seconds[rounds / 2] * 1e3, seconds[rounds * 9 / 10] * 1e3,
            (double)b->result.bytes / seconds[rounds / 2] * 1e-9);
        (void)fflush(stdout);
    }
    return TSR_OK;
}

static tsr_status run_all(bench *b, const char *folder, double mib, int rounds)
{
    const tsr_checkpoint_config config = {.keep = 1, .async = true};
    const int rank = tsr_comm_rank(b->comm), size = tsr_comm_size(b->comm);
    const int64_t scale = (int64_t)ceil(sqrt(mib * 1048576.0 / 12.0 / 664.0));

    TSR_CHECK(rank != 0 || fixture_folder(folder, b->run), TSR_ERR_IO, "no folder below %s",
              folder);
    TSR_TRY(tsr_comm_broadcast(b->comm, b->run, sizeof b->run, 0));
    TSR_TRY(tsr_mem_alloc(TSR_MEM_OTHER, BLOCK, (void **)&b->block));
    TSR_CHECK(fixture_make(&b->state, CUT_EVEN, rank, size, TSR_F32, 10, scale), TSR_ERR_NOMEM,
              "no memory for %.0f MiB", mib);
    TSR_TRY(tsr_ckpt_writer_create(b->comm, b->run, &config, &b->state.view, &b->writer));
    TSR_TRY(save(b));
    TSR_TRY(load(b));
    TSR_CHECK(fixture_holds(&b->state, 10), TSR_ERR_INTERNAL,
              "what was loaded is not what was saved");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        TSR_TRY(measure(b, &cases[i], rounds));
    }
    return TSR_OK;
}

int main(int argc, char **argv)
{
    const char *folder = argc > 1 ? argv[1] : "/tmp";
    const double mib = argc > 2 ? strtod(argv[2], NULL) : 400.0;
    const int rounds = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 20;
    int provided = 0;
    bench b = {0};

    if (MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS) {
        return 1;
    }
    tsr_status st = tsr_comm_create_mpi(MPI_COMM_WORLD, 60.0, 0, &b.comm);
    if (st == TSR_OK && (rounds < 1 || rounds > MAX_ROUNDS || !(mib > 0.0 && mib < 65536.0))) {
        st = TSR_FAIL(TSR_ERR_ARG, "1 to %d rounds, MiB below 65536", MAX_ROUNDS);
    }
    st = st != TSR_OK ? st : run_all(&b, folder, mib, rounds);
    if (st != TSR_OK) {
        (void)fprintf(stderr, "bench_checkpoint: %s\n", tsr_error_message());
        (void)MPI_Abort(MPI_COMM_WORLD, 1);
    }
    tsr_ckpt_writer_destroy(&b.writer);
    fixture_free(&b.state);
    tsr_mem_free(b.block);
    if (tsr_comm_rank(b.comm) == 0) {
        fixture_remove(b.run);
    }
    tsr_comm_destroy(&b.comm);
    (void)MPI_Finalize();
    return 0;
}
