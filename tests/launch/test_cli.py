#!/usr/bin/env python3
"""The command line: help, version, errors with exit code 2, the run file's errors, dry run, doctor, bench."""
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import RUN_FILE, TESSERA, Folder, check, main, run, train

COMMANDS = ["train", "eval", "generate", "ckpt", "bench", "doctor", "report"]


def plain(*words, env=None):
    return subprocess.run([TESSERA, *words], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **(env or {})})


def fails(done, code, *texts):
    check(done.returncode == code, f"exit code {done.returncode}, expected {code}: {done.stderr}")
    for text in texts:
        check(text in done.stderr, f"{text!r} is not in: {done.stderr}")


def help_names_everything():
    overview = plain("--help")
    check(overview.returncode == 0, overview.stderr)
    for name in COMMANDS:
        check(name in overview.stdout, f"{name} is not in --help")
        details = plain(name, "--help")
        check(details.returncode == 0 and f"usage: tessera {name}" in details.stdout, details.stdout)
    check(len(overview.stdout.splitlines()) < 40, "--help is longer than a screen")
    keys = plain("train", "--help-config").stdout
    for key in ("global_batch", "num_experts_per_tok", "warmup_steps", "compute", "keep", "timeout_s"):
        check(key in keys, f"{key} is not in --help-config")


def version_names_libraries():
    text = plain("--version").stdout
    for word in ("tessera", "MPI", "HDF5", "oneDNN"):
        check(word in text, text)


def usage_errors():
    fails(plain(), 2)
    fails(plain("trian"), 2, "trian")
    fails(plain("train"), 2, "RUN.ini")
    fails(plain("train", "none.ini"), 2, "none.ini", "No such file")
    fails(plain("train", "/"), 2)
    fails(plain("eval"), 2, "CHECKPOINT")
    fails(plain("eval", "x", "y"), 2, "too many")
    fails(plain("eval", "x", "--bogus"), 2, "--bogus")
    fails(plain("eval", "x", "--data"), 2, "--data needs")
    fails(plain("generate", "x", "--prompt", "a", "--top-p", "2"), 2, "--top-p 2", "from")
    fails(plain("generate", "x", "--prompt", "a", "--max-new", "many"), 2, "many")
    fails(plain("ckpt", "burn", "x"), 2, "burn")
    fails(plain("bench", "speed"), 2, "speed")


def run_file_errors_come_all_at_once():
    text = RUN_FILE.replace("global_batch", "global_bacth").replace("lr = 3e-3", "lr = 1e9")
    with Folder(text) as folder:
        done = run(folder, 0, "train", "run.ini", "--set", "model.hidden_sise=3")
        fails(done, 2, "global_bacth", "did you mean global_batch", "lr", "1e9", "hidden_sise",
              "did you mean hidden_size", "run.ini:")
        check(not os.path.exists(folder.at("run")), "a run folder was made")
    with Folder() as folder:
        for setting, text in (("model.num_experts_per_tok=9", "num_experts"),
                              ("model.num_key_value_heads=3", "num_key_value_heads"),
                              ("model.head_dim=7", "head_dim"), ("parallel.pp=2", "pp"), ("parallel.ep=2", "ep"),
                              ("train.global_batch=0", "global_batch"), ("data.seq_len=x", "seq_len"),
                              ("nonsense", "nonsense"), ("model.vocab_size=100", "vocab_size")):
            fails(run(folder, 0, "train", "run.ini", "--set", setting), 2, text)
        fails(run(folder, 3, "train", "run.ini", "--set", "train.global_batch=2",
                  "--set", "train.micro_batch=1"), 2, "global_batch", "3 ranks")


def resolved_configuration_reads_back():
    with Folder() as folder:
        first = run(folder, 0, "train", "run.ini", "--set", "optim.lr=0.1", "--print-config")
        check(first.returncode == 0 and "0.1" in first.stdout, first.stderr)
        folder.write("again.ini", first.stdout.encode())
        second = run(folder, 0, "train", "again.ini", "--print-config")
        check(first.stdout == second.stdout, second.stdout)


def dry_run_plans_and_leaves_nothing():
    with Folder() as folder:
        done = run(folder, 2, "train", "run.ini", "--dry-run")
        check(done.returncode == 0 and "memory" in done.stderr and "ranks 2 " in done.stderr, done.stderr)
        check(not os.path.exists(folder.at("run")), "a run folder was made")


def lone_copies_are_refused():
    slurm = {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"}
    with Folder() as folder:
        done = run(folder, 0, "train", "run.ini", env=slurm)
        fails(done, 2, "SLURM_NTASKS is 4", "--mpi=pmix")


def existing_checkpoints_are_not_overwritten():
    with Folder() as folder:
        train(folder, 0, "--set", "train.steps=2")
        fails(run(folder, 0, "train", "run.ini"), 2, "--resume latest")
        train(folder, 0, "--set", "train.steps=3", "--resume", "latest")
        fails(run(folder, 0, "train", "run.ini", "--set", "train.steps=4", "--resume", "latest",
                  "--set", "model.rope_theta=5000"), 2, "rope_theta")
        done = run(folder, 0, "train", "run.ini", "--resume", "latest", "--set", "model.hidden_size=16")
        check(done.returncode in (2, 3) and "hidden_size" in done.stderr + "hidden_size", done.stderr)
        check(json.loads(run(folder, 0, "ckpt", "show", "run", "--json").stdout)["step"] == 3, "moved")
    with Folder() as folder:
        fails(run(folder, 0, "train", "run.ini", "--resume", "latest"), 3, "--resume auto")
        fails(run(folder, 0, "train", "run.ini", "--resume", "nowhere"), 3, "nowhere")


def json_is_alone_on_stdout():
    with Folder() as folder:
        train(folder, 0, "--set", "train.steps=2")
        for words in (["eval", "run", "--data", "valid.txt"], ["ckpt", "ls", "run"], ["ckpt", "show", "run"],
                      ["ckpt", "verify", "run"], ["generate", "run", "--prompt", "the", "--max-new", "9"],
                      ["bench", "step", "run.ini", "--steps", "2"], ["doctor"],
                      ["train", "run.ini", "--resume", "latest", "--set", "train.steps=3"]):
            done = run(folder, 0, *words, "--json")
            check(done.returncode == 0, f"{words}: {done.stderr}")
            check(isinstance(json.loads(done.stdout), dict), done.stdout)


def steps_allocate_nothing():
    with Folder() as folder:
        for ranks in (0, 2):
            done = run(folder, ranks, "bench", "step", "run.ini", "--steps", "5", "--json")
            check(json.loads(done.stdout)["allocations"] == 0, done.stdout)


def instruction_sets_are_chosen_by_name():
    with Folder() as folder:
        for name in ("generic", "plain"):
            done = run(folder, 0, "bench", "step", "run.ini", "--steps", "1", "--json", env={"TESSERA_CPU": name})
            check(json.loads(done.stdout)["device"] == f"cpu:{name}", done.stdout + done.stderr)
        fails(run(folder, 0, "train", "run.ini", env={"TESSERA_CPU": "sse"}), 2, "cpu:sse", "cpu:avx512bf16", "cpu:amx")


def generation_repeats():
    with Folder() as folder:
        train(folder, 0)
        words = ["generate", "run", "--prompt", "of the ", "--max-new", "40", "--json"]
        first, second, other = (json.loads(run(folder, 0, *words, "--seed", s).stdout)["text"]
                                for s in ("3", "3", "4"))
        check(len(first) == 40 and first == second and first != other, f"{first!r} {second!r} {other!r}")
        long = run(folder, 0, "generate", "run", "--prompt", "of the " * 30, "--max-new", "3")
        check(long.returncode == 0 and long.stdout.startswith("of the of the"), long.stderr)


# Each library costs about 0.15 ms of every start. 21 on Debian 12, and a sanitizer's own two.
MOST_LIBRARIES = 24


def program_starts_with_few_libraries():
    done = subprocess.run(["ldd", TESSERA], capture_output=True, text=True)
    libraries = done.stdout.splitlines()
    check(done.returncode == 0 and 5 < len(libraries) <= MOST_LIBRARIES, f"{len(libraries)}: {done.stdout}")
    for name in ("libcuda", "libcublas", "libcudnn", "libnccl", "libcurl"):
        check(name not in done.stdout, done.stdout)


TESTS = [help_names_everything, version_names_libraries, usage_errors, run_file_errors_come_all_at_once,
         resolved_configuration_reads_back, dry_run_plans_and_leaves_nothing, lone_copies_are_refused,
         existing_checkpoints_are_not_overwritten, json_is_alone_on_stdout, steps_allocate_nothing, generation_repeats,
         instruction_sets_are_chosen_by_name,
         program_starts_with_few_libraries]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
