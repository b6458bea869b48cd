#!/usr/bin/env python3
"""Experts spread over ranks: every mesh trains the same model as one rank, repeats itself, and resumes any other."""
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import Folder, check, losses, main, metrics, run, train

# As derived in test_equivalence.py: f32 sums in another order, 20 steps.
ROUNDING = 2e-4
# (ranks, ep): 1x2, 1x3 and 1x4 with uneven experts (5 of them), 2x2, and plain data parallelism
MESHES = ((2, 2), (3, 3), (4, 4), (4, 2), (4, 1))


def mesh(ep):
    return ["--set", f"parallel.ep={ep}"]


def close(a, b, tolerance=ROUNDING):
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b))


def meshes_agree(*extra, tolerance=ROUNDING, meshes=MESHES):
    with Folder() as one:
        train(one, 1, *extra)
        straight = losses(one)
        for ranks, ep in meshes:
            with Folder() as many:
                train(many, ranks, *mesh(ep), *extra)
                check(close(losses(many), straight, tolerance),
                      f"{ranks} ranks, ep {ep}: {losses(many)} against {straight}")


def every_mesh_equals_one_rank():
    meshes_agree("--set", "train.valid_every=7")


def more_ranks_than_experts():
    # 3 experts on 4 ranks: one of them computes nothing; all tokens go to one of 2 experts with top-1
    meshes_agree("--set", "model.num_experts=3", "--set", "train.steps=8", meshes=((4, 4),))
    meshes_agree("--set", "model.num_experts=1", "--set", "model.num_experts_per_tok=1", "--set", "train.steps=8",
                 meshes=((4, 2),))


def every_token_to_every_expert():
    meshes_agree("--set", "model.num_experts_per_tok=5", "--set", "train.steps=8", "--set", "train.micro_batch=0",
                 meshes=((4, 4), (3, 3)))


def options_agree():
    meshes_agree("--set", "model.n_shared_experts=1", "--set", "model.scoring_func=sigmoid",
                 "--set", "model.router_bias_update_rate=0.001", "--set", "model.first_k_dense_replace=1",
                 "--set", "model.intermediate_size=40", "--set", "train.recompute=block", "--set", "train.micro_batch=1",
                 "--set", "model.router_z_loss_coef=0.001", "--set", "train.steps=10", meshes=((4, 4), (4, 2), (3, 3)))


def node_limited_routing_agrees():
    meshes_agree("--set", "model.num_experts=8", "--set", "model.n_group=4", "--set", "model.topk_group=2",
                 "--set", "model.scoring_func=sigmoid", "--set", "model.router_bias_update_rate=0.001",
                 "--set", "train.steps=10", meshes=((4, 4), (4, 2)))


def bf16_agrees():
    # 0.02 as derived in test_equivalence.py; rows are rounded to bf16 once more where they come home
    meshes_agree("--set", "precision.compute=bf16", tolerance=0.02, meshes=((4, 4), (4, 2)))


def gradients_equal_one_rank():
    """m after one step without clipping is 0.1 times the gradient: every tensor's, read from the checkpoint."""
    try:
        import h5py
        import numpy
    except ImportError:
        # Debian's own Python has python3-h5py; where that is missing too, parallel.moe_ranks compares them still
        debian, name = "/usr/bin/python3", "gradients_equal_one_rank"
        if subprocess.run([debian, "-c", "import h5py, numpy"], capture_output=True).returncode != 0:
            print(f"skip {name}: no Python here has h5py and numpy, so nothing is compared")
            return
        done = subprocess.run([debian, os.path.abspath(__file__), name], capture_output=True, text=True)
        check(done.returncode == 0, done.stdout + done.stderr)
        return
    extra = ["--set", "train.steps=1", "--set", "optim.warmup_steps=0", "--set", "optim.clip_norm=0",
             "--set", "optim.beta1=0.9"]

    def moments(folder):
        found = {}
        with h5py.File(folder.at("run", "checkpoints", "step-00000001", "manifest.h5")) as file:
            file["adam_m"].visititems(lambda name, item: found.update({name: item[()]})
                                      if isinstance(item, h5py.Dataset) else None)
        return found
    with Folder() as one:
        train(one, 1, *extra)
        straight = moments(one)
        check(len(straight) > 10 and all(numpy.abs(m).max() > 0 for m in straight.values()), "no gradients")
        for ranks, ep in MESHES:
            with Folder() as many:
                train(many, ranks, *mesh(ep), *extra)
                for name, m in moments(many).items():
                    # sums of up to 119 * 2 terms in f32: sqrt(238) * 2^-24 of the largest, times 10 layers' depth
                    error = numpy.abs(m - straight[name]).max() / numpy.abs(straight[name]).max()
                    check(error < 1e-5, f"{ranks} ranks, ep {ep}: {name} is off by {error}")


def same_mesh_repeats():
    for ranks, ep in ((4, 4), (4, 2)):
        with Folder() as first, Folder() as second:
            for folder in (first, second):
                train(folder, ranks, *mesh(ep))
            check(losses(first) == losses(second), f"{losses(first)} {losses(second)}")
            a, b = (json.loads(run(f, 0, "ckpt", "show", "run", "--json").stdout)["digest"] for f in (first, second))
            check(a == b, "the final states differ")


def any_mesh_resumes_any_other():
    with Folder() as straight, Folder() as moving:
        train(straight, 1)
        for ranks, ep, stop in ((4, 4, 4), (4, 2, 8), (4, 1, 11), (3, 3, 14), (1, 1, 17), (2, 2, 20)):
            train(moving, ranks, *mesh(ep), "--resume", "auto", "--stop-at", str(stop))
        check(close(losses(straight), losses(moving)), f"{losses(straight)} {losses(moving)}")


def same_mesh_resumes_bit_for_bit():
    with Folder() as straight, Folder() as resumed:
        train(straight, 4, *mesh(2))
        train(resumed, 4, *mesh(2), "--stop-at", "9")
        train(resumed, 4, *mesh(2), "--resume", "latest")
        check(losses(straight) == losses(resumed), f"{losses(straight)} {losses(resumed)}")


def bytes_are_told_by_purpose():
    with Folder() as folder:
        train(folder, 2, *mesh(2), "--set", "train.steps=3")
        steps, _ = metrics(folder)
        told = steps[3]
        by = told["bytes_by"]
        for link in ("self", "intra_node", "in_plane", "cross_plane"):
            check(sum(row.get(link, 0) for row in by.values()) == told["bytes"][link], f"{link}: {told}")
        check(by["dispatch"]["intra_node"] > 0 and by["combine"]["intra_node"] > 0, f"{by}")
        check(by["dispatch"]["self"] > 0 and told["bytes"]["in_plane"] == 0, f"{by}")


def bad_meshes_are_refused():
    for ranks, sets, texts in ((4, ["parallel.ep=3"], ("3", "1, 2, 4")), (2, ["parallel.ep=2", "parallel.dp=2"], ("dp", "ep")),
                               (2, ["parallel.ep=2", "parallel.dispatch=two_stage"], ("two_stage", "nodes"))):
        with Folder() as folder:
            words = [word for text in sets for word in ("--set", text)]
            done = train(folder, ranks, *words, code=2)
            for text in texts:
                check(text in done.stderr, f"{text!r} is not in {done.stderr}")


TESTS = [every_mesh_equals_one_rank, more_ranks_than_experts, every_token_to_every_expert, options_agree,
         node_limited_routing_agrees, bf16_agrees, gradients_equal_one_rank, same_mesh_repeats,
         any_mesh_resumes_any_other, same_mesh_resumes_bit_for_bit, bytes_are_told_by_purpose, bad_meshes_are_refused]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
