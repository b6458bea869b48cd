#!/usr/bin/env python3
"""What is said of a mesh before training: sizes that do not fit, ranks without experts, memory by part."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import Folder, check, main, train


def impossible_meshes_are_told_once():
    dense = ["model.first_k_dense_replace=2", "model.intermediate_size=40"]
    cases = ((["parallel.ep=3"], "parallel.ep = 3 does not divide the 4 ranks, valid are 1, 2, 4"),
             (["parallel.dp=8"], "parallel.dp = 8 does not divide the 4 ranks, valid are 1, 2, 4"),
             (["parallel.pp=2"], "parallel.pp = 2: pipelines are not built yet"),
             (["parallel.ep=2", *dense], "the model has no experts to spread"),
             (["train.global_batch=3"], "each of the 4 ranks needs at least one sequence"))
    with Folder() as folder:
        for keys, text in cases:
            words = [word for key in keys for word in ("--set", key)]
            for dry in ([], ["--dry-run"]):
                done = train(folder, 4, *words, *dry, code=2)
                check(done.stderr.count(text) == 1, done.stderr)


def ranks_without_experts_are_told():
    with Folder() as folder:
        done = train(folder, 4, "--set", "model.num_experts=3", "--set", "parallel.ep=4", "--dry-run")
        check(done.stderr.count("of each expert group's ranks 1 hold none") == 1, done.stderr)


def plan_knows_the_mesh():
    """200 million parameters, of which the experts are all but a few: their memory follows ep, not dp."""
    sizes = ["hidden_size=512", "num_hidden_layers=8", "head_dim=64", "moe_intermediate_size=1024", "num_experts=16"]
    words = [word for size in sizes for word in ("--set", f"model.{size}")]
    with Folder() as folder:
        seen = {}
        for ep in (1, 2, 4):
            done = train(folder, 4, *words, "--set", f"parallel.ep={ep}", "--dry-run")
            parts = re.search(r"weights ([\d.]+), gradients ([\d.]+), optimizer ([\d.]+)", done.stderr)
            check(f"dp {4 // ep} x ep {ep}" in done.stderr and parts, done.stderr)
            seen[ep] = [float(part) for part in parts.groups()]
        # 16 * 8 * 3 * 512 * 1024 expert parameters of 4 bytes are 0.75 GiB, split by ep; the rest is below 0.04
        for ep, (weights, gradients, optimizer) in seen.items():
            check(abs(weights - 0.75 / ep) < 0.05 and weights == gradients, f"{seen}")
            check(abs(optimizer - 2 * 0.75 / 4) < 0.05, f"{seen}")  # two moments, cut over all four, whatever the mesh


TESTS = [impossible_meshes_are_told_once, ranks_without_experts_are_told, plan_knows_the_mesh]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
