/* Sparse all-gather and reduce-scatter against a loop of MPI's broadcasts and reductions, checked
 * first: bench_sparse [KiB of a chunk [chunks [of them on all ranks [rounds [ranks of a node]]]]].
 *
 * Chunks are dealt to the ranks in turn; the first ones are copied to all ranks. Ranks of a node:
 * seats for the sparse collectives to believe in, each place a plane of its own. One JSON line a
 * case; mib: what all ranks send, as counted, which is what was worked out beforehand; rate: what
 * comes in at one rank. No bound is claimed, the rates of one run are what is compared. */
#include "collectives/mpi_bridge.h"
#include "collectives/sparse.h"
#include "tests/bench/bench_rounds.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 64, MAX_ROUNDS = 1000, MAX_CHUNKS = 1024 };

typedef struct bench {
    tsr_comm *comm;
    tsr_sparse *sparse;
    int rank, ranks, chunks, copied;
    int64_t floats, bytes; /* of a chunk */
    float *values;         /* [chunks, floats] */
    int32_t begin[MAX_CHUNKS + 1], *holder;
    tsr_holding holding;
    void *memory[MAX_CHUNKS];
} bench;

typedef tsr_status case_function(bench *b);

static tsr_sparse_call call_of(bench *b)
{
    return (tsr_sparse_call){.holding = &b->holding,
                             .parts = 1,
                             .part_bytes = &b->bytes,
                             .memory = b->memory,
                             .number = -1};
}

static tsr_status own_gather(bench *b)
{
    tsr_sparse_call call = call_of(b);

    return tsr_sparse_all_gather(b->sparse, &call);
}

static tsr_status own_reduce(bench *b)
{
    tsr_sparse_call call = call_of(b);

    return tsr_sparse_reduce_scatter(b->sparse, &call);
}

static tsr_status mpi_status(int rc)
{
    return rc == MPI_SUCCESS ? TSR_OK : TSR_FAIL(TSR_ERR_COMM, "MPI returned %d", rc);
}

static tsr_status mpi_gather(bench *b)
{
    for (int chunk = 0; chunk < b->copied; ++chunk) {
        TSR_TRY(mpi_status(MPI_Bcast(b->memory[chunk], (int)b->floats, MPI_FLOAT, chunk % b->ranks,
                                     MPI_COMM_WORLD)));
    }
    return TSR_OK;
}

static tsr_status mpi_reduce(bench *b)
{
    for (int chunk = 0; chunk < b->copied; ++chunk) {
        const int owner = chunk % b->ranks;
        TSR_TRY(mpi_status(MPI_Reduce(b->rank == owner ? MPI_IN_PLACE : b->memory[chunk],
                                      b->memory[chunk], (int)b->floats, MPI_FLOAT, MPI_SUM, owner,
                                      MPI_COMM_WORLD)));
    }
    return TSR_OK;
}

static const struct bench_case {
    const char *name;
    case_function *run;
    bool sums, is_own;
} cases[] = {
    {"sparse_all_gather", own_gather, false, true},
    {"MPI_Bcast", mpi_gather, false, false},
    {"sparse_reduce_scatter", own_reduce, true, true},
    {"MPI_Reduce", mpi_reduce, true, false},
};

/* Whole numbers below 2^24, so that every order of summation gives the same. */
static float value_of(int rank, int chunk, int64_t at)
{
    return (float)((at % 1000 + chunk) * (rank + 1));
}

static bool is_right(bench *b, const struct bench_case *which)
{
    for (int chunk = 0; chunk < b->chunks; ++chunk) {
        for (int64_t i = 0; i < b->floats; ++i) {
            b->values[chunk * b->floats + i] = value_of(b->rank, chunk, i);
        }
    }
    if (which->run(b) != TSR_OK) {
        return false;
    }
    for (int chunk = 0; chunk < b->copied; ++chunk) {
        const int owner = chunk % b->ranks;
        for (int64_t i = 0; i < b->floats && (!which->sums || owner == b->rank); ++i) {
            const float expected = which->sums
                                       ? value_of(b->ranks * (b->ranks + 1) / 2 - 1, chunk, i)
                                       : value_of(owner, chunk, i);
            if (b->values[chunk * b->floats + i] != expected) {
                return false;
            }
        }
    }
    return true;
}

/* Bytes that all ranks have sent for one round of a sparse case; the analytic count must agree. */
static tsr_status count_bytes(bench *b, const struct bench_case *which, uint64_t *sent_out)
{
    const tsr_traffic purpose =
        which->sums ? TSR_TRAFFIC_SPARSE_REDUCE_SCATTER : TSR_TRAFFIC_SPARSE_ALL_GATHER;
    const tsr_sparse_volume v = tsr_sparse_count(tsr_comm_seats(b->comm), b->ranks, &b->holding);
    int64_t before[TSR_TRAFFICS][TSR_LINKS], after[TSR_TRAFFICS][TSR_LINKS];

    tsr_traffic_read(before);
    TSR_TRY(which->run(b));
    tsr_traffic_read(after);
    *sent_out = 0;
    for (int link = 0; link < TSR_LINKS; ++link) {
        *sent_out += (uint64_t)(after[purpose][link] - before[purpose][link]);
    }
    TSR_TRY(tsr_comm_all_reduce_u64(b->comm, sent_out, 1, TSR_REDUCE_SUM));
    TSR_CHECK(!which->is_own || (int64_t)*sent_out == (v.copies + v.relays) * b->bytes,
              TSR_ERR_INTERNAL, "%s: %llu bytes, must be %lld", which->name,
              (unsigned long long)*sent_out, (long long)((v.copies + v.relays) * b->bytes));
    return TSR_OK;
}

static tsr_status measure(bench *b, const struct bench_case *which, int rounds)
{
    static double seconds[MAX_ROUNDS];
    const bool fine = is_right(b, which);
    uint64_t sent = 0;

    TSR_TRY(tsr_comm_agree(
        b->comm, fine ? TSR_OK : TSR_FAIL(TSR_ERR_INTERNAL, "%s: wrong result", which->name)));
    memset(b->values, 0, (size_t)(b->chunks * b->floats) * sizeof *b->values);
    TSR_TRY(count_bytes(b, which, &sent));
    for (int round = -1; round < rounds; ++round) { /* one more to warm up */
        TSR_TRY(tsr_comm_barrier(b->comm));
        const double start = MPI_Wtime();
        TSR_TRY(which->run(b));
        double took = MPI_Wtime() - start;
        TSR_TRY(tsr_comm_all_reduce_f64(b->comm, &took, 1, TSR_REDUCE_MAX));
        seconds[round < 0 ? 0 : round] = took;
    }
    bench_sort_rounds(seconds, rounds);
    const double median = seconds[rounds / 2];
    const double each = (double)b->bytes * b->copied * (b->ranks - 1) / b->ranks;
    if (b->rank == 0) {
        (void)printf("{\"bench\": \"sparse\", \"case\": \"%s\", \"ranks\": %d, \"nodes\": %d, "
                     "\"chunks\": %d, \"copied\": %d, \"chunk_kib\": %.1f, \"mib\": %.2f, "
                     "\"ms_min\": %.3f, \"ms_median\": %.3f, \"ms_p90\": %.3f, "
                     "\"gb_per_s_and_rank\": %.3f}\n",
                     which->name, b->ranks, tsr_comm_seats(b->comm)[b->ranks - 1].node + 1,
                     b->chunks, b->copied, (double)b->bytes / 1024.0, (double)sent / 1048576.0,
                     seconds[0] * 1e3, median * 1e3, seconds[rounds * 9 / 10] * 1e3,
                     each / median * 1e-9);
        (void)fflush(stdout);
    }
    return TSR_OK;
}

/* What a call costs before its first byte: chunks of nothing. */
static tsr_status measure_plan(bench *b, int rounds)
{
    const int64_t nothing = 0;
    tsr_sparse_call call = call_of(b);
    double least = 1e9;

    call.part_bytes = &nothing;
    for (int round = 0; round < rounds; ++round) {
        const double start = MPI_Wtime();
        TSR_TRY(tsr_sparse_all_gather(b->sparse, &call));
        const double took = MPI_Wtime() - start;
        least = took < least ? took : least;
    }
    if (b->rank == 0) {
        (void)printf("{\"bench\": \"sparse\", \"case\": \"plan\", \"ranks\": %d, \"chunks\": %d, "
                     "\"copied\": %d, \"us_min\": %.2f}\n",
                     b->ranks, b->chunks, b->copied, least * 1e6);
    }
    return TSR_OK;
}

static void set_seats(bench *b, int places)
{
    tsr_seat seats[MAX_RANKS];

    for (int rank = 0; rank < b->ranks; ++rank) {
        seats[rank] = (tsr_seat){rank / places, rank % places, rank % places};
    }
    tsr_comm_set_seats(b->comm, seats);
}

static tsr_status prepare(bench *b, double kib)
{
    const tsr_sparse_options options = {.max_chunks = b->chunks, .max_parts = 1};
    int32_t count = 0;

    b->floats = (int64_t)(kib * 1024.0 / sizeof(float));
    b->bytes = b->floats * (int64_t)sizeof(float);
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, b->chunks * b->floats, sizeof *b->values,
                                (void **)&b->values));
    TSR_TRY(tsr_mem_alloc_array(TSR_MEM_OTHER, (int64_t)b->chunks * b->ranks, sizeof *b->holder,
                                (void **)&b->holder));
    for (int chunk = 0; chunk < b->chunks; ++chunk) {
        b->begin[chunk] = count;
        b->holder[count++] = chunk % b->ranks;
        for (int rank = 0; rank < b->ranks && chunk < b->copied; ++rank) {
            if (rank != chunk % b->ranks) {
                b->holder[count++] = rank;
            }
        }
        b->memory[chunk] = b->values + chunk * b->floats;
    }
    b->begin[b->chunks] = count;
    b->holding = (tsr_holding){b->chunks, b->begin, b->holder};
    return tsr_sparse_create(b->comm, NULL, &options, &b->sparse);
}

static tsr_status run_all(bench *b, double kib, int rounds)
{
    TSR_TRY(tsr_comm_agree(b->comm, prepare(b, kib)));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; ++i) {
        TSR_TRY(measure(b, &cases[i], rounds));
    }
    return measure_plan(b, rounds);
}

static tsr_status check(const bench *b, double kib, int rounds, int places)
{
    TSR_CHECK(
        b->ranks <= MAX_RANKS && rounds >= 1 && rounds <= MAX_ROUNDS && kib > 0.0 &&
            kib <= 1048576.0 && b->chunks >= 1 && b->chunks <= MAX_CHUNKS && b->copied >= 0 &&
            b->copied <= b->chunks && places >= 1,
        TSR_ERR_ARG,
        "at most %d ranks, 1 to %d rounds, KiB up to 2^20, 1 to %d chunks, copied up to them, "
        "1 rank or more a node",
        MAX_RANKS, MAX_ROUNDS, MAX_CHUNKS);
    return TSR_OK;
}

int main(int argc, char **argv)
{
    const double kib = argc > 1 ? strtod(argv[1], NULL) : 4608.0;
    static bench b;
    int provided = 0;

    if (MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS) {
        return 1;
    }
    b.chunks = argc > 2 ? (int)strtol(argv[2], NULL, 10) : 16;
    b.copied = argc > 3 ? (int)strtol(argv[3], NULL, 10) : b.chunks / 2;
    const int rounds = argc > 4 ? (int)strtol(argv[4], NULL, 10) : 20;
    tsr_status st = tsr_comm_create_mpi(MPI_COMM_WORLD, 60.0, 0, &b.comm);
    if (st == TSR_OK) {
        b.rank = tsr_comm_rank(b.comm);
        b.ranks = tsr_comm_size(b.comm);
        const int places = argc > 5 ? (int)strtol(argv[5], NULL, 10) : b.ranks;
        st = check(&b, kib, rounds, places);
        if (st == TSR_OK) {
            set_seats(&b, places);
            st = run_all(&b, kib, rounds);
        }
    }
    if (st != TSR_OK) {
        (void)fprintf(stderr, "bench_sparse: %s\n", tsr_error_message());
        (void)MPI_Abort(MPI_COMM_WORLD, 1);
    }
    tsr_sparse_destroy(&b.sparse);
    tsr_mem_free(b.values);
    tsr_mem_free(b.holder);
    tsr_comm_destroy(&b.comm);
    (void)MPI_Finalize();
    return 0;
}
