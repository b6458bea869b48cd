#!/usr/bin/env python3
"""Training over several hosts and planes: equal to one rank, in its planes, and what happens when they fail.

usage: test_rig.py [NAME...]: these tests, else those that CI runs
"""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from rig import Rig, difference, why_not
from runs import TESSERA, Folder, check, losses, main, metrics, train

PLANES = ["--set", "topology.nics=p0,p1"]
# As in tests/launch/test_equivalence.py: losses differ by the order of f32 sums only.
ROUNDING = 2e-4
# One frame of Ethernet carries at most 1,448 bytes of payload and 66 of headers below, and is answered
# by an acknowledgement of 66 bytes: 9 % at most for full frames.
FRAMES = 1.10


def close(a, b):
    return len(a) == len(b) and all(abs(x - y) <= ROUNDING for x, y in zip(a, b))


def train_on(rig, folder, *arguments, code=0, timeout=60, **keywords):
    """Train on the rig's hosts; returns the log and the bytes of each interface."""
    before = rig.counters()
    with open(folder.at("log.txt"), "wb") as log:
        process = rig.start([TESSERA, "train", "run.ini", *PLANES, *arguments], cwd=folder.path, stdout=log,
                            stderr=log, **keywords)
        ended = process.wait(timeout)
    with open(folder.at("log.txt"), errors="replace") as log:
        text = log.read()
    check(ended == code, f"exit code {ended}, expected {code}\n{text[-3000:]}")
    return text, difference(before, rig.counters())


def sent(bytes_of, nic):
    return sum(host[nic]["tx"] for host in bytes_of.values())


def check_planes(folder, bytes_of, planes=2):
    """Nothing crosses planes, neither by the program's count nor on the wire."""
    steps, _ = metrics(folder)
    counted = {link: sum(step["bytes"][link] for step in steps.values()) for link in ("in_plane", "cross_plane")}
    wire = [sent(bytes_of, f"p{plane}") for plane in range(planes)]
    crossed = sent(bytes_of, "cross")
    text = f"counted {counted}, on the planes {wire}, between them {crossed}"
    check(counted["cross_plane"] == 0, text)
    check(crossed <= 1e-3 * sum(wire), text)
    check(sum(wire) >= counted["in_plane"], text)
    return counted["in_plane"], wire, crossed


def data_parallel_equals_one_rank():
    with Folder() as one, Folder() as many, Rig(hosts=2, planes=2) as rig:
        train(one, 0)
        _, bytes_of = train_on(rig, many)
        check(close(losses(many), losses(one)), f"{losses(many)} against {losses(one)}")
        print(*check_planes(many, bytes_of))


TESTS = [data_parallel_equals_one_rank]
if __name__ == "__main__":
    reason = why_not()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(77)
    main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
