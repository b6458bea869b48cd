#!/usr/bin/env python3
"""tessera bench comm: every collective, checked by the program, with bytes and a model that add up."""
import functools
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import TESSERA, Folder, check, main, run

EMULATED = {"TESSERA_CUDA": "emulated"}
HIDDEN, TOP_K, EXPERTS = 32, 2, 6
TOY = ["--max-mib", "0.016", "--rounds", "3", "--hidden", str(HIDDEN), "--top-k", str(TOP_K), "--experts", str(EXPERTS)]
PLAIN = {"barrier", "agree"}
VECTORS = {"all_reduce_f64", "broadcast", "reduce_scatter", "all_gather", "all_to_all", "sparse_all_gather",
           "sparse_reduce_scatter"}
ROWS = {"dispatch_flat", "combine_flat"}  # one node: no stages


@functools.lru_cache(maxsize=None)
def bench(ranks, *words, code=0, emulated=False):
    with Folder() as folder:
        done = run(folder, ranks, "bench", "comm", *TOY, *words, env=EMULATED if emulated else None)
    check(done.returncode == code, f"exit code {done.returncode}\n{done.stderr[-2000:]}")
    if code != 0:
        return done.stderr
    result = json.loads(done.stdout)
    check(result["ranks"] == max(ranks, 1), result)
    return {c["name"]: c for c in result["collectives"]}


def sent_by_all(line):
    return sum(line["sent"].values())


def every_collective_is_measured():
    for ranks in (0, 1, 2, 3):
        cases = bench(ranks)
        check(set(cases) == PLAIN | VECTORS | ROWS, sorted(cases))
        for name, case in cases.items():
            sizes = [line["bytes"] for line in case["lines"]]
            check(sizes == sorted(set(sizes)) and (len(sizes) == (1 if name in PLAIN else 3)), f"{name}: {sizes}")
            for line in case["lines"]:
                check(0 < line["us_min"] <= line["us_median"] <= line["us_p90"], f"{name}: {line}")


def bytes_are_those_of_the_algorithms():
    for ranks in (2, 3):
        cases = bench(ranks)
        for name in VECTORS - {"all_reduce_f64"}:
            for line in cases[name]["lines"]:
                expected = line["bytes"] * (ranks - 1)  # by all together: each byte once to every other rank
                check(line["sent"]["intra_node"] == expected == sent_by_all(line), f"{ranks} {name}: {line} {expected}")
        for line in cases["combine_flat"]["lines"]:
            # a token has at most TOP_K destinations, and all of them elsewhere at most
            tokens = ranks * line["bytes"] // (4 * HIDDEN)
            rows = sent_by_all(line) / (4 * HIDDEN)
            check(0 < rows <= tokens * TOP_K and rows == int(rows), f"{ranks} combine_flat: {line}")


def bandwidths_follow_their_definitions():
    factors = {"all_reduce_f64": 2 * 2 / 3, "broadcast": 1, "reduce_scatter": 2 / 3, "all_gather": 2 / 3,
               "all_to_all": 2 / 3, "sparse_all_gather": 2 / 3, "sparse_reduce_scatter": 2 / 3}
    for name, case in bench(3).items():
        for line in case["lines"]:
            algorithm = line["bytes"] / line["us_median"] * 1e-3
            bus = sent_by_all(line) / 3 / line["us_median"] * 1e-3 if name in ROWS else algorithm * factors.get(name, 0)
            for key, value in (("algorithm_gb_per_s", algorithm), ("bus_gb_per_s", bus)):
                # six digits are printed
                check(abs(line[key] - value) <= 1e-4 * value, f"{name}: {line} {key} {value}")


def the_model_is_the_best_line():
    for name, case in bench(2).items():
        lines = case["lines"]

        def error(alpha, per_byte):
            return sum(((alpha + per_byte * row["bytes"]) / row["us_median"] - 1) ** 2 for row in lines)

        per_byte = 1e-3 / case["beta_gb_per_s"] if case["beta_gb_per_s"] else 0.0
        best = error(case["alpha_us"], per_byte)
        for line in lines:
            model = case["alpha_us"] + per_byte * line["bytes"]
            check(abs(line["us_model"] - model) <= 1e-4 * model, f"{name}: {line} {model}")
            check(abs(line["model_error"] - (model / line["us_median"] - 1)) <= 1e-4, f"{name}: {line}")
        for alpha in (0.9, 1.0, 1.1):  # six digits: 1e-6 of each term
            for slope in (0.9, 1.0, 1.1):
                check(best <= error(case["alpha_us"] * alpha, per_byte * slope) + 1e-4, f"{name}: {case}")


def gpus_are_measured_on_their_memory():
    if not os.path.exists(os.path.join(os.path.dirname(TESSERA), "libtessera_cuda_emulated.so")):
        print("the emulated CUDA module is not built: no CUDA toolkit headers")
        return
    gpu = ["--device", "cuda"]
    cases = bench(2, *gpu, emulated=True)
    on_gpu = {name for name, case in cases.items() if case["memory"] == "cuda:emulated"}
    check(on_gpu == (VECTORS | ROWS) - {"all_reduce_f64"}, sorted(on_gpu))
    staged = bench(2, *gpu, "--set", "parallel.collectives=mpi", emulated=True)
    on_gpu = {name for name, case in staged.items() if case["memory"] == "cuda:emulated"}
    check(on_gpu == ROWS, sorted(on_gpu))


def some_are_chosen_by_name():
    check(set(bench(2, "--only", "all_")) == {"all_reduce_f64", "all_gather", "all_to_all"}, "wrong cases")


def bad_values_are_told_once():
    for words, text in ((("--top-k", "9"), "--top-k"), (("--hidden", "1"), "--hidden 1"), (("--device", "tpu"), "--device"),
                        (("--set", "parallel.colectives=mpi"), "parallel.colectives"), (("run.ini",), "no run file")):
        told = bench(2, *words, code=2)
        check(told.count("tessera: error") == 1 and text in told, told)


TESTS = [every_collective_is_measured, bytes_are_those_of_the_algorithms, bandwidths_follow_their_definitions,
         the_model_is_the_best_line, gpus_are_measured_on_their_memory, some_are_chosen_by_name, bad_values_are_told_once]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
