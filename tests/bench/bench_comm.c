/* Reduce-scatter and all-gather against MPI's own, checked first:
 * bench_comm [MiB [rounds [bytes of a message]]].
 *
 * One JSON line a case. bytes: what one rank sends; bound: none is claimed, the rates of the two
 * implementations in the same run are what is compared. */
#include "collectives/mpi_bridge.h"
#include "tests/bench/bench_rounds.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 64, MAX_ROUNDS = 1000 };

typedef struct bench {
    tsr_comm *comm;
    int rank, size;
    int64_t cuts[MAX_RANKS + 1];
    int counts[MAX_RANKS], starts[MAX_RANKS];
    float *values, *part;
} bench;

typedef tsr_status case_function(bench *b);

static tsr_status own_reduce(bench *b)
{
    return tsr_comm_reduce_scatter_f32(b->comm, b->values, b->cuts);
}

static tsr_status mpi_status(int rc)
{
    return rc == MPI_SUCCESS ? TSR_OK : TSR_FAIL(TSR_ERR_COMM, "MPI returned %d", rc);
}

static tsr_status mpi_reduce(bench *b)
{
    return mpi_status(
        MPI_Reduce_scatter(b->values, b->part, b->counts, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD));
}

static tsr_status own_gather(bench *b)
{
    return tsr_comm_all_gather_parts(b->comm, b->values, sizeof *b->values, b->cuts);
}

static tsr_status mpi_gather(bench *b)
{
    return mpi_status(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, b->values, b->counts,
                                     b->starts, MPI_FLOAT, MPI_COMM_WORLD));
}

static const struct bench_case {
    const char *name;
    case_function *run;
    bool reduces, is_own;
} cases[] = {
    {"reduce_scatter", own_reduce, true, true},
    {"MPI_Reduce_scatter", mpi_reduce, true, false},
    {"all_gather_parts", own_gather, false, true},
    {"MPI_Allgatherv", mpi_gather, false, false},
};

/* Whole numbers below 2^24, so that every order of summation gives the same. */
static float value_of(int rank, int64_t at)
{
    return (float)((at % 1000) * (rank + 1));
}

static bool is_right(bench *b, const struct bench_case *which)
{
    const int64_t begin = b->cuts[b->rank], end = b->cuts[b->rank + 1];
    const float ranks = (float)(b->size * (b->size + 1) / 2);

    for (int64_t at = 0; at < b->cuts[b->size]; ++at) {
        const bool is_mine = at >= begin && at < end;
        b->values[at] = which->reduces || is_mine ? value_of(b->rank, at) : -1.0f;
    }
    if (which->run(b) != TSR_OK) {
        return false;
    }
    const float *sums = which->is_own ? b->values + begin : b->part;
    for (int64_t at = begin; which->reduces && at < end; ++at) {
        if (sums[at - begin] != (float)(at % 1000) * ranks) {
            return false;
        }
    }
    for (int owner = 0; !which->reduces && owner < b->size; ++owner) {
        for (int64_t at = b->cuts[owner]; at < b->cuts[owner + 1]; ++at) {
            if (b->values[at] != value_of(owner, at)) {
                return false;
            }
        }
    }
    return true;
}

static tsr_status measure(bench *b, const struct bench_case *which, int rounds)
{
    static double seconds[MAX_ROUNDS];
    const bool fine = is_right(b, which);

    TSR_TRY(tsr_comm_agree(
        b->comm, fine ? TSR_OK : TSR_FAIL(TSR_ERR_INTERNAL, "%s: wrong result", which->name)));
    memset(b->values, 0, (size_t)b->cuts[b->size] * sizeof *b->values);
    for (int round = -2; round < rounds; ++round) { /* two to warm up */
        TSR_TRY(tsr_comm_barrier(b->comm));
        const double start = MPI_Wtime();
        TSR_TRY(which->run(b));
        double took = MPI_Wtime() - start;
        TSR_TRY(tsr_comm_all_reduce_f64(b->comm, &took, 1, TSR_REDUCE_MAX));
        seconds[round < 0 ? 0 : round] = took;
    }
    bench_sort_rounds(seconds, rounds);
    const double median = seconds[rounds / 2];
    const double sent = (double)b->cuts[b->size] * sizeof *b->values * (b->size - 1) / b->size;
    if (b->rank == 0) {
        (void)printf("{\"bench\": \"comm\", \"case\": \"%s\", \"ranks\": %d, \"mib\": %.1f, "
                     "\"ms_min\": %.3f, \"ms_median\": %.3f, \"ms_p90\": %.3f, "
                     "\"gb_per_s_and_rank\": %.2f}\n",
                     which->name, b->size, (double)b->cuts[b->size] * sizeof *b->values / 1048576.0,
                     seconds[0] * 1e3, median * 1e3, seconds[rounds * 9 / 10] * 1e3,
                     sent / median * 1e-9);
        (void)fflush(stdout);
    }
    return TSR_OK;
}

static tsr_status run_all(bench *b, int64_t elements, int rounds)
{
    b->rank = tsr_comm_rank(b->comm);
    b->size = tsr_comm_size(b->comm);
    for (int part = 0; part <= b->size; ++part) {
        b->cuts[part] = elements * part / b->size;
    }
    for (int part = 0; part < b->size; ++part) {
        b->starts[part] = (int)b->cuts[part];
        b->counts[part] = (int)(b->cuts[part + 1] - b->cuts[part]);
    }
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, elements, sizeof *b->values, (void **)&b->values));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, elements, sizeof *b->part, (void **)&b->part));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        TSR_TRY(measure(b, &cases[i], rounds));
    }
    return TSR_OK;
}

int main(int argc, char **argv)
{
    const double mib = argc > 1 ? strtod(argv[1], NULL) : 20.0;
    const int rounds = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 20;
    int provided = 0;
    bench b = {0};

    if (MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS) {
        return 1;
    }
    tsr_status st = tsr_comm_create_mpi(MPI_COMM_WORLD, 60.0, 0, &b.comm);
    if (st == TSR_OK && (tsr_comm_size(b.comm) > MAX_RANKS || rounds < 1 || rounds > MAX_ROUNDS ||
                         !(mib > 0.0 && mib < 4096.0))) {
        st = TSR_FAIL(TSR_ERR_ARG, "at most %d ranks, 1 to %d rounds, MiB below 4096", MAX_RANKS,
                      MAX_ROUNDS);
    }
    if (st == TSR_OK && argc > 3) {
        tsr_comm_set_message_bytes(b.comm, (size_t)strtol(argv[3], NULL, 10));
    }
    if (st == TSR_OK) {
        st = run_all(&b, (int64_t)(mib * 1048576.0 / sizeof(float)), rounds);
    }
    if (st != TSR_OK) {
        (void)fprintf(stderr, "bench_comm: %s\n", tsr_error_message());
        (void)MPI_Abort(MPI_COMM_WORLD, 1);
    }
    tsr_mem_free(b.values);
    tsr_mem_free(b.part);
    tsr_comm_destroy(&b.comm);
    (void)MPI_Finalize();
    return 0;
}
