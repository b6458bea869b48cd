#!/usr/bin/env python3
"""Placement over time: resumed runs place experts as straight ones do, and owners that move change nothing else."""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import Folder, check, losses, main, run, train

ROUNDING = 2e-4  # derived in test_equivalence.py: f32 sums in another order, 20 steps


def words(ep, policy, *sets):
    keys = (f"parallel.ep={ep}", f"parallel.placement={policy}", *sets)
    return [word for key in keys for word in ("--set", key)]


def close(a, b, tolerance=ROUNDING):
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b))


def digest(folder):
    return json.loads(run(folder, 0, "ckpt", "show", "run", "--json").stdout)["digest"]


def resumes_exactly(ranks, ep, policy, *sets, stop=9):
    arguments = words(ep, policy, *sets)
    with Folder() as straight, Folder() as cut:
        train(straight, ranks, *arguments)
        train(cut, ranks, *arguments, "--stop-at", str(stop))
        done = train(cut, ranks, *arguments, "--resume", "latest")
        check(losses(cut) == losses(straight), f"{ranks} ranks, ep {ep}, {policy}: {losses(cut)} {losses(straight)}")
        check(digest(cut) == digest(straight), f"{ranks} ranks, ep {ep}, {policy}: the final states differ")
        return done.stderr


def resumed_loads_are_the_straight_runs():
    check("begins anew" not in resumes_exactly(4, 4, "fssdp", "train.micro_batch=1"), "the loads were not found")
    resumes_exactly(4, 2, "quota")
    resumes_exactly(4, 4, "quota", "experts.prediction=ema", "train.steps=14")


def any_placement_resumes_any_other():
    with Folder() as one, Folder() as many:
        train(one, 1)
        train(many, 1, "--stop-at", "6")
        done = train(many, 4, *words(4, "fssdp"), "--stop-at", "10", "--resume", "latest")
        check("begins anew" in done.stderr, f"a run without past loads does not say so: {done.stderr}")
        train(many, 4, *words(2, "quota"), "--stop-at", "14", "--resume", "latest")
        train(many, 3, *words(3, "ep"), "--resume", "latest")
        check(close(losses(many), losses(one)), f"{losses(many)} {losses(one)}")


TESTS = [resumed_loads_are_the_straight_runs, any_placement_resumes_any_other]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
