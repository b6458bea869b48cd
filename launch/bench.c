/* `tessera bench`: how fast is this machine at what training does. */
#include "launch/bench.h"

#include <stdlib.h>
#include <string.h>

static const cli_option bench_options[] = {
    {"steps", "N", "step: timed steps, after two to warm up (8); imbalance: after six (10)"},
    {"profile", NULL, "step: add a table of operators: time, rate"},
    {"set", "section.key=value", "step, imbalance, comm: override one key of the run file"},
    {"device", "NAME",
     "ops: auto, cpu, cuda, or one by name, as cpu:avx2 or cuda:1 (auto); comm: (cpu)"},
    {"threads", "N", "ops: threads (the cores this process may use)"},
    {"rounds", "N", "ops, comm: timed rounds of each case (20)"},
    {"only", "PREFIX", "ops, comm: the cases whose names begin so"},
    {"toy", NULL, "ops: small sizes, to see that all works"},
    {"load", "SHAPE", "imbalance: even, zipf:S, maxmean:R, hot:R@PERIOD or trace:FILE (zipf:0.8)"},
    {"policy", "NAME", "imbalance: ep, shadow, swap, eplb, fssdp, quota or all (all)"},
    {"modelled", NULL, "imbalance: by the cost model, for clusters that are not here"},
    {"ranks", "N,...", "modelled: GPUs, whole nodes (32)"},
    {"cluster", "NAME", "modelled: v100, a100 or h100 (h100)"},
    {"model", "NAME", "modelled: gpt-moe-s or -l, bert-moe, bert-moe-deep, fine or large (fine)"},
    {"experts", "N", "imbalance: of a layer (the model's); comm: (64)"},
    {"slots", "N",
     "imbalance: copies a rank has room for (experts.slots; modelled: by what is hidden)"},
    {"rematerialize", NULL, "modelled: copies are dropped after forward and come again"},
    {"max-mib", "X", "comm: the largest size (16)"},
    {"hidden", "N", "comm: numbers in a token's row (1024)"},
    {"top-k", "N", "comm: experts of a token (8)"},
    {"json", NULL, "print one JSON object on stdout"},
    {NULL, NULL, NULL},
};

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double bench_median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof *values, compare);
    return count % 2 == 1 ? values[count / 2] : 0.5 * (values[count / 2 - 1] + values[count / 2]);
}

static int run_bench(const cli_values *values, world *w)
{
    const char *what = values->positional[0];
    tsr_status st;

    if (strcmp(what, "step") == 0) {
        st = bench_step(values, w);
    } else if (strcmp(what, "ops") == 0) {
        st = bench_ops(values, w);
    } else if (strcmp(what, "comm") == 0) {
        st = bench_comm(values, w);
    } else if (strcmp(what, "imbalance") == 0) {
        st = bench_imbalance(values, w);
    } else {
        st = TSR_FAIL(TSR_ERR_ARG, "bench %s: must be step, ops, comm or imbalance", what);
    }
    return st == TSR_OK ? EXIT_DONE : world_fail(w, st);
}

const cli_command cli_bench = {
    .name = "bench",
    .arguments = "step RUN.ini [--steps N] | ops | comm | imbalance [--modelled]",
    .summary = "Time training steps on random tokens, operators, collectives; compare placements.",
    .details =
        "step needs no data and writes no files; its learning rate is 1e-6: loads stay even.\n"
        "ops checks each operator against its plain twin first, then reports its rate and its\n"
        "share of the bound measured in the same run.\n"
        "comm checks and times what ranks send each other, from 1 KiB to --max-mib by factors of "
        "4:\n"
        "min, median and p90 of the slowest rank in each round. Sizes and bandwidths are those of\n"
        "nccl-tests: algorithm bandwidth is size / time, the size being that of the whole vector\n"
        "(all_to_all: of what a rank has for all); bus bandwidth is that times (P - 1) / P for\n"
        "reduce_scatter, all_gather and all_to_all, times 2 (P - 1) / P for all_reduce, times 1 "
        "for\n"
        "broadcast. dispatch (its plan included) and combine: the size is that of a rank's "
        "tokens,\n"
        "whose experts are drawn evenly; bus bandwidth is what a rank sends, as counted, / time.\n"
        "sparse_*: experts are chunks, every second one is on all ranks; the size is that of "
        "these\n"
        "together, bus as for all_gather. The model alpha + n / beta is fitted to the medians by\n"
        "least squares of relative errors; what it is off by stands on each line. Ranks that "
        "share\n"
        "a GPU need --set parallel.collectives=mpi.\n"
        "imbalance sets policies of expert placement against plain expert parallelism (ep) and\n"
        "against loads that are even, on 2 or more ranks: a small model (change it by --set) for\n"
        "each, on the same tokens, which a generator sends to the experts in place of the gates.\n"
        "Its times count only where each rank has a core of its own: ranks that share cores are\n"
        "balanced by the system, whatever the placement. `by balance` is the share of the speed\n"
        "with even loads that max/mean alone allows: a projection, on any number of cores.\n"
        "With --modelled nothing is run: the plans go through a cost model of a cluster.\n",
    .min_positional = 1,
    .max_positional = 2,
    .options = bench_options,
    .run = run_bench,
    .needs_ranks = true,
};
