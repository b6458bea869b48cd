#!/usr/bin/env python3
"""The whole program on the emulated GPU: the same training as on the CPU, the same checkpoints."""
import json
import os
import signal
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import TESSERA, Folder, check, finish, log_of, losses, main, ranks_of, run, start, train

EMULATED = {"TESSERA_CUDA": "emulated"}
GPU = ["--set", "run.device=cuda"]
# As for other numbers of ranks (test_equivalence.py): the order of f32 sums differs, nothing else.
ROUNDING = 2e-4
# bf16 values round alike on both; sums in another order flip single roundings (test_equivalence.py).
ROUNDING_BF16 = 0.02
SHORT = ["--set", "train.steps=4"]


def close(a, b, bound):
    return len(a) == len(b) and all(abs(x - y) <= bound for x, y in zip(a, b))


def same_training(bound, *extra):
    with Folder() as on_cpu:
        train(on_cpu, 0, *SHORT, *extra)
        expected = losses(on_cpu)
    for ranks in (0, 4):
        with Folder() as on_gpu:
            done = train(on_gpu, ranks, *SHORT, *GPU, *extra, env=EMULATED)
            check("cuda:emulated" in done.stderr, done.stderr)
            check(close(losses(on_gpu), expected, bound), f"{ranks} ranks: {losses(on_gpu)} {expected}")


def f32_equals_the_cpu():
    same_training(ROUNDING)


def bf16_equals_the_cpu():
    same_training(ROUNDING_BF16, "--set", "precision.compute=bf16")


def options_equal_the_cpu():
    same_training(ROUNDING, "--set", "model.tie_word_embeddings=true", "--set", "model.n_shared_experts=1",
                  "--set", "model.first_k_dense_replace=1", "--set", "model.intermediate_size=40",
                  "--set", "model.scoring_func=sigmoid", "--set", "model.router_bias_update_rate=0.001",
                  "--set", "model.router_z_loss_coef=0.001", "--set", "train.recompute=block")


def experts_on_several_gpus_equal_the_cpu():
    options = ["--set", "model.n_shared_experts=1", "--set", "model.scoring_func=sigmoid",
               "--set", "model.router_bias_update_rate=0.001", "--set", "train.recompute=block"]
    for extra, bound, meshes in (([], ROUNDING, ((4, 4), (4, 2), (3, 3))), (options, ROUNDING, ((4, 4),)),
                                 (["--set", "precision.compute=bf16"], ROUNDING_BF16, ((4, 4),))):
        with Folder() as on_cpu:
            train(on_cpu, 0, *SHORT, *extra)
            expected = losses(on_cpu)
        for ranks, ep in meshes:
            found = []
            for collectives in ("nccl", "mpi"):
                with Folder() as on_gpu:
                    train(on_gpu, ranks, *SHORT, *GPU, *extra, "--set", f"parallel.ep={ep}",
                          "--set", f"parallel.collectives={collectives}", env=EMULATED)
                    found.append(losses(on_gpu))
                    check(close(found[-1], expected, bound), f"{ranks} ranks, ep {ep}, {collectives}: {found} {expected}")
            check(found[0] == found[1], f"nccl and mpi differ: {found}")


def chunks_of_rows_equal_the_cpu():
    for extra, bound, ways in ((["--set", "train.recompute=block"], ROUNDING, ("nccl", "nccl")),
                               (["--set", "precision.compute=bf16"], ROUNDING_BF16, ("nccl", "mpi"))):
        with Folder() as on_cpu:
            train(on_cpu, 0, *SHORT, *extra)
            expected = losses(on_cpu)
        found = []
        for collectives in ways:
            with Folder() as on_gpu:
                train(on_gpu, 4, *SHORT, *GPU, *extra, "--set", "parallel.ep=4", "--set", "parallel.dispatch_chunks=3",
                      "--set", f"parallel.collectives={collectives}", env=EMULATED)
                found.append(losses(on_gpu))
        check(close(found[0], expected, bound), f"{found} {expected}")
        check(found[0] == found[1], f"two runs differ, or nccl and mpi: {found}")
    with Folder() as on_cpu, Folder() as on_gpu:
        train(on_cpu, 0, *SHORT)
        train(on_gpu, 4, *SHORT, *GPU, "--set", "parallel.ep=4", "--set", "parallel.dispatch_chunks=2",
              "--set", "parallel.placement=quota", env=EMULATED)
        check(close(losses(on_gpu), losses(on_cpu), ROUNDING), f"{losses(on_gpu)} {losses(on_cpu)}")


def copies_of_experts_equal_the_cpu():
    with Folder() as on_cpu:
        train(on_cpu, 0, *SHORT)
        expected = losses(on_cpu)
    for policy, extra in (("shadow", []), ("swap", ["--set", "experts.reshard_every=2", "--set", "experts.reshard_cost=0"]), ("eplb", []), ("fssdp", ["--set", "train.recompute=block"]),
                          ("fssdp", ["--set", "experts.rematerialize=false"]), ("quota", [])):
        with Folder() as on_gpu:
            train(on_gpu, 4, *SHORT, *GPU, *extra, "--set", "parallel.ep=4", "--set", f"parallel.placement={policy}",
                  env=EMULATED)
            check(close(losses(on_gpu), expected, ROUNDING), f"{policy} {extra}: {losses(on_gpu)} {expected}")
    with Folder() as on_gpu:
        done = train(on_gpu, 2, *SHORT, *GPU, "--set", "parallel.ep=2", "--set", "parallel.placement=quota",
                     "--set", "parallel.collectives=mpi", env=EMULATED, code=2)
        check("placement = quota" in done.stderr and "collectives = nccl" in done.stderr, done.stderr)


def stopped_gpu_is_named():
    for chunks in (1, 3):
        with Folder() as folder:
            process = start(folder, 4, *GPU, "--set", "train.steps=1000000", "--set", "run.timeout_s=6",
                            "--set", "parallel.ep=4", "--set", "parallel.collectives=nccl",
                            "--set", f"parallel.dispatch_chunks={chunks}", env=EMULATED)
            os.kill(ranks_of(folder)[1], signal.SIGSTOP)
            code = finish(process, 40)
            check(code == 4 and "rank 1 does not respond" in log_of(folder), f"exit code {code}: {log_of(folder)}")


def same_run_repeats():
    with Folder() as first, Folder() as second:
        train(first, 2, *SHORT, *GPU, env=EMULATED)
        train(second, 2, *SHORT, *GPU, env=EMULATED)
        check(losses(first) == losses(second), f"{losses(first)} {losses(second)}")


def checkpoints_cross_devices():
    with Folder() as straight, Folder() as crossing:
        train(straight, 0, *SHORT)
        train(crossing, 2, *SHORT, *GPU, "--set", "parallel.ep=2", "--stop-at", "1", env=EMULATED)
        train(crossing, 3, *SHORT, "--resume", "latest", "--stop-at", "3")
        train(crossing, 1, *SHORT, *GPU, "--resume", "latest", env=EMULATED)
        check(close(losses(straight), losses(crossing), ROUNDING), f"{losses(straight)} {losses(crossing)}")
        words = ["eval", "run", "--data", "valid.txt", "--json", "--device"]
        cpu = json.loads(run(crossing, 0, *words, "cpu").stdout)["loss"]
        gpu = json.loads(run(crossing, 0, *words, "cuda", env=EMULATED).stdout)["loss"]
        check(abs(cpu - gpu) < 1e-5, f"{cpu} {gpu}")
        text = [run(crossing, 0, "generate", "run", "--prompt", "of", "--temperature", "0", "--max-new", "12",
                    "--device", device, env=EMULATED).stdout for device in ("cpu", "cuda")]
        check(text[0] == text[1] and len(text[0]) >= 14, f"{text}")


def every_operator_is_checked_and_timed():
    with Folder() as folder:
        done = run(folder, 0, "bench", "ops", "--device", "cuda", "--toy", "--rounds", "1", "--json", env=EMULATED)
        check(done.returncode == 0, done.stderr)
        figures = json.loads(done.stdout)
        check(figures["device"] == "cuda:emulated" and figures["copy_gb_per_s"] > 0, done.stdout[:300])
        names = {case["case"] for case in figures["cases"]}
        check({"gemm_forward", "gate_up_wgrad", "attention_backward", "sort_by_expert", "adamw"} <= names, f"{names}")
        check(all(case["us_bound"] > 0 and case["share"] > 0 for case in figures["cases"]), done.stdout)
        done = run(folder, 0, "bench", "ops", "--device", "cuda:x")
        check(done.returncode == 2 and "device = cuda:x" in done.stderr, done.stderr)


def doctor_says_what_was_taken():
    with Folder() as folder:
        emulated = json.loads(run(folder, 0, "doctor", "--json", env=EMULATED).stdout)
        check(emulated["ranks"][0]["gpu"] and "cuda:emulated" in emulated["ranks"][0]["cuda"], f"{emulated}")
        check(any(f.endswith("/libtessera_cuda_emulated.so") for f in emulated["cuda_files"]), f"{emulated}")
        absent = run(folder, 0, "doctor", env={"TESSERA_CUDA": "cuda:77"})
        check(absent.returncode == 0 and "cuda      none: device = cuda:77: " in absent.stdout, absent.stdout)


def missing_module_or_gpu_is_one_clear_error():
    with Folder() as folder:
        done = run(folder, 0, "train", "run.ini", *GPU)
        check(done.returncode == 2 or done.returncode == 1, f"exit code {done.returncode}")
        check(len(done.stderr.strip().splitlines()) == 1 and "cuda" in done.stderr, done.stderr)


if not os.path.exists(os.path.join(os.path.dirname(TESSERA), "libtessera_cuda_emulated.so")):
    print("the emulated CUDA module is not built: no CUDA toolkit headers")
    sys.exit(77)
TESTS = [f32_equals_the_cpu, bf16_equals_the_cpu, options_equal_the_cpu, experts_on_several_gpus_equal_the_cpu,
         chunks_of_rows_equal_the_cpu, copies_of_experts_equal_the_cpu, stopped_gpu_is_named, same_run_repeats,
         checkpoints_cross_devices, every_operator_is_checked_and_timed, doctor_says_what_was_taken,
         missing_module_or_gpu_is_one_clear_error]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
