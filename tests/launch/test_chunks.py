#!/usr/bin/env python3
"""Rows of experts that travel in chunks: the same model as one rank's, bit for bit again, and really in chunks."""
import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import Folder, check, finish, log_of, losses, main, metrics, ranks_of, run, start, train

ROUNDING = 2e-4  # derived in test_equivalence.py: f32 sums in another order, 20 steps
# 6 experts on 4 ranks are uneven; 7 sequences in passes of 2 accumulate, the last rank's pass is short; 2 * 17 and 17
# tokens are not divided by 3
SETS = ("model.num_experts=6", "train.steps=10")


def words(*sets):
    return [word for key in sets for word in ("--set", key)]


def layout(ep, chunks):
    return (f"parallel.ep={ep}", f"parallel.dispatch_chunks={chunks}")


def close(a, b, tolerance=ROUNDING):
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b))


def agree(cases, *sets, tolerance=ROUNDING):
    """cases: (ranks, ep, chunks)."""
    with Folder() as one:
        train(one, 1, *words(*SETS, *sets))
        straight = losses(one)
    for ranks, ep, chunks in cases:
        with Folder() as many:
            train(many, ranks, *words(*SETS, *sets, *layout(ep, chunks)))
            check(close(losses(many), straight, tolerance), f"{ranks} ranks, ep {ep}, {chunks} chunks: {losses(many)} {straight}")


def every_mesh_equals_one_rank():
    agree([(ranks, ep, chunks) for ranks, ep in ((2, 2), (4, 4), (4, 2)) for chunks in (2, 3)], "train.valid_every=7")
    agree(((2, 1, 3),))  # nothing is dispatched


def options_agree():
    agree(((4, 4, 3), (4, 2, 2)), "train.recompute=block", "train.micro_batch=1", "model.n_shared_experts=1",
          "model.first_k_dense_replace=1", "model.intermediate_size=40")
    agree(((4, 4, 16),), "train.micro_batch=1", "data.seq_len=9", "train.steps=6")  # more chunks than tokens
    agree(((4, 4, 2),), "precision.compute=bf16", tolerance=0.02)  # as derived in test_equivalence.py


def copies_of_experts_agree():
    for policy in ("fssdp", "quota"):
        agree(((4, 4, 3), (4, 2, 2)), f"parallel.placement={policy}", "experts.slots=2", "train.steps=8")
    agree(((4, 4, 2),), "parallel.placement=quota", "experts.slots=2", "train.recompute=block", "train.steps=6")


def same_layout_repeats_and_any_resumes():
    for placement in ("ep", "quota"):
        with Folder() as first, Folder() as second:
            for folder, stops in ((first, (10,)), (second, (4, 10))):
                for stop in stops:
                    train(folder, 4, *words(*SETS, *layout(4, 3), f"parallel.placement={placement}"), "--resume", "auto",
                          "--stop-at", str(stop))
            check(losses(first) == losses(second), f"{placement}: {losses(first)} {losses(second)}")
            a, b = (json.loads(run(f, 0, "ckpt", "show", "run", "--json").stdout)["digest"] for f in (first, second))
            check(a == b, "the final states differ")
    with Folder() as straight, Folder() as moving:
        train(straight, 1, *words(*SETS))
        for ranks, ep, chunks, stop in ((4, 4, 2, 3), (1, 1, 1, 5), (2, 2, 3, 8), (4, 2, 1, 10)):
            train(moving, ranks, *words(*SETS, *layout(ep, chunks)), "--resume", "auto", "--stop-at", str(stop))
        check(close(losses(straight), losses(moving)), f"{losses(straight)} {losses(moving)}")


def spans(folder, name):
    with open(folder.at("run", "trace", "rank-0000.json")) as file:
        events = json.load(file)["traceEvents"]
    return [e for e in events if e["ph"] == "X" and e["name"] == name]


def chunks_are_used():
    """Two layers, three chunks: each move runs beside the layer that it belongs to, and moves no byte more."""
    counted, moved = {}, {}
    for chunks in (1, 3):
        with Folder() as folder:
            train(folder, 2, *words(*SETS, *layout(2, chunks), "run.trace_steps=2", "train.steps=6", "train.micro_batch=0"))
            counted[chunks] = [len(spans(folder, name)) for name in ("dispatch beside", "combine beside", "dispatch")]
            moved[chunks] = [row["bytes_by"][what] for row in metrics(folder)[0].values() for what in ("dispatch", "combine")]
            layers = spans(folder, "moe") + spans(folder, "feed-forward backward_input")
            for move in spans(folder, "dispatch beside") + spans(folder, "combine beside"):
                check(any(l["ts"] <= move["ts"] and move["ts"] + move["dur"] <= l["ts"] + l["dur"] + 0.01 and
                          l["args"]["number"] == move["args"]["number"] for l in layers), f"{move} is in no layer")
    # 2 steps * 2 layers, out and home, forward and backward; of lanes, rows and gradients an exchange each
    check(counted[1] == [0, 0, 12] and counted[3] == [24, 24, 36], f"{counted}")
    # the first step starts from the same weights, and sends the same rows
    check(moved[1][:2] == moved[3][:2], f"{moved}")


def stopped_rank_ends_the_run():
    with Folder() as folder:
        process = start(folder, 3, *words("parallel.ep=3", "parallel.dispatch_chunks=2", "train.steps=1000000", "run.timeout_s=3"))
        os.kill(ranks_of(folder)[1], signal.SIGSTOP)
        since = time.time()
        code = finish(process, 60)
        check(code == 4 and "rank 1 does not respond" in log_of(folder), f"exit code {code}: {log_of(folder)}")
        check(time.time() - since < 3 + 15, f"took {time.time() - since:.1f} s")


def bad_values_are_told():
    for value in ("0", "17", "two"):
        with Folder() as folder:
            done = train(folder, 0, *words(f"parallel.dispatch_chunks={value}"), code=2)
            check("dispatch_chunks" in done.stderr, done.stderr)
    with Folder() as folder:
        check("dispatch_chunks" in run(folder, 0, "train", "--help-config").stdout, "not in the help")


TESTS = [every_mesh_equals_one_rank, options_agree, copies_of_experts_agree, same_layout_repeats_and_any_resumes,
         chunks_are_used, stopped_rank_ends_the_run, bad_values_are_told]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
