#!/usr/bin/env python3
"""Any number of ranks trains the same model; the same layout repeats it; a resumed run continues it."""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import Folder, check, losses, main, metrics, run, train

# Losses are near 5 and differ only by the order of f32 sums. One sum of n terms has a relative error
# of about sqrt(n) * 2^-24; 20 steps of lr 3e-3 amplify it by less than 10 (measured: below 3).
# With n = 119 tokens and matrices of 32: 5 * sqrt(3808) * 6e-8 * 10 = 2e-4.
ROUNDING = 2e-4


def close(a, b):
    return len(a) == len(b) and all(abs(x - y) <= ROUNDING for x, y in zip(a, b))


def ranks_agree():
    with Folder() as one:
        train(one, 0)
        straight = losses(one)
        check(len(straight) == 20 and straight[-1] < straight[0] - 0.5, f"does not learn: {straight}")
        for ranks in (1, 2, 3, 4):
            with Folder() as many:
                train(many, ranks)
                check(close(losses(many), straight), f"{ranks} ranks: {losses(many)} against {straight}")


def bf16_ranks_agree():
    # bf16 rounds activations at 2^-9 relative; a different order of f32 sums flips single roundings.
    # Each flip moves a loss by less than 5 * 2^-9 / sqrt(119); 20 steps: below 5 * 2^-9 * 2 = 0.02.
    with Folder() as one, Folder() as three:
        train(one, 0, "--set", "precision.compute=bf16")
        train(three, 3, "--set", "precision.compute=bf16")
        pairs = list(zip(losses(one), losses(three)))
        check(len(pairs) == 20 and all(abs(a - b) < 0.02 for a, b in pairs), f"{pairs}")


def same_layout_repeats():
    for ranks in (1, 3):
        with Folder() as first, Folder() as second:
            train(first, ranks)
            train(second, ranks)
            check(losses(first) == losses(second), f"{ranks} ranks: {losses(first)} {losses(second)}")


def resumed_run_continues():
    for ranks, extra in ((1, []), (2, ["--set", "precision.compute=bf16"]), (3, [])):
        with Folder() as straight, Folder() as resumed:
            train(straight, ranks, *extra)
            train(resumed, ranks, *extra, "--set", "checkpoint.every=10")
            # forget the end and its checkpoint: what follows must come from step 10
            last = resumed.at("run", "checkpoints", "step-00000020")
            for name in os.listdir(last):
                os.unlink(os.path.join(last, name))
            os.rmdir(last)
            again = train(resumed, ranks, *extra, "--resume", "latest")
            check("step-00000010" in again.stderr, again.stderr)
            check(losses(straight) == losses(resumed),
                  f"{ranks} ranks: {losses(straight)[9:]} {losses(resumed)[9:]}")
            with open(resumed.at("run", "metrics.jsonl")) as file:
                check('{"resumed_from":10}' in file.read(), "no line tells of the resumption")
            a, b = (run(f, 0, "ckpt", "show", "run", "--json").stdout for f in (straight, resumed))
            check(json.loads(a)["digest"] == json.loads(b)["digest"], "the final states differ")


def layouts_change():
    with Folder() as straight, Folder() as moving:
        train(straight, 1)
        for ranks, stop in ((4, 7), (2, 13), (3, 20)):
            train(moving, ranks, "--resume", "auto", "--stop-at", str(stop))
        check(close(losses(straight), losses(moving)), f"{losses(straight)} {losses(moving)}")


def options_learn():
    # recompute, tied embeddings, shared experts, dense first layer, sigmoid gate with bias: still equal
    extra = ["--set", "model.tie_word_embeddings=true", "--set", "model.n_shared_experts=1",
             "--set", "model.first_k_dense_replace=1", "--set", "model.intermediate_size=40",
             "--set", "model.scoring_func=sigmoid", "--set", "model.router_bias_update_rate=0.001",
             "--set", "model.router_z_loss_coef=0.001"]
    with Folder() as one, Folder() as two, Folder() as saving:
        train(one, 0, *extra)
        train(two, 2, *extra, "--set", "train.micro_batch=3")
        train(saving, 0, *extra, "--set", "train.recompute=block")
        check(close(losses(one), losses(two)), f"{losses(one)} {losses(two)}")
        check(losses(one) == losses(saving), "recomputing changes the numbers")


def validation_does_not_depend_on_ranks():
    values = []
    for ranks in (0, 3):
        with Folder() as folder:
            train(folder, ranks, "--set", "train.valid_every=10", "--set", "train.valid_tokens=2000")
            _, validations = metrics(folder)
            check(sorted(validations) == [10, 20], f"validated at {sorted(validations)}")
            values.append([validations[s]["valid_loss"] for s in (10, 20)])
            shown = run(folder, ranks, "eval", "run", "--data", "valid.txt", "--max-tokens", "2000")
            check(abs(json.loads(shown.stdout)["loss"] - values[-1][1]) < 1e-6, shown.stdout)
    check(close(*values), f"{values}")


TESTS = [ranks_agree, bf16_ranks_agree, same_layout_repeats, resumed_run_continues, layouts_change,
         options_learn, validation_does_not_depend_on_ranks]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
