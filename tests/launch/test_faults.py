#!/usr/bin/env python3
"""Signals, stuck and dead ranks, and death at every point of saving."""
import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import Folder, check, finish, log_of, losses, main, metrics, ranks_of, run, start, train

ENDLESS = ["--set", "train.steps=1000000"]


def signals_save_and_stop():
    for number, ranks in ((signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGUSR1, 3)):
        with Folder() as folder:
            process = start(folder, ranks, *ENDLESS)
            process.send_signal(number)
            check(finish(process, 40) == 0, f"{number}: {process.returncode}: {log_of(folder)}")
            shown = json.loads(run(folder, 0, "ckpt", "show", "run", "--json").stdout)
            check(shown["step"] == len(losses(folder)), f"{shown['step']} {len(losses(folder))}")
    with Folder() as folder:  # to one rank alone, as a scheduler may do
        process = start(folder, 2, *ENDLESS)
        os.kill(ranks_of(folder)[1], signal.SIGTERM)
        check(finish(process, 40) == 0, log_of(folder))
        check(run(folder, 0, "ckpt", "verify", "run").returncode == 0, "not valid")


def stopped_rank_is_named():
    with Folder() as folder:
        process = start(folder, 3, *ENDLESS, "--set", "run.timeout_s=3")
        os.kill(ranks_of(folder)[1], signal.SIGSTOP)
        since = time.time()
        code = finish(process, 60)
        took = time.time() - since
        check(code == 4, f"exit code {code}: {log_of(folder)}")
        check("rank 1 does not respond" in log_of(folder), log_of(folder))
        check("step" in log_of(folder).split("error:")[-1], log_of(folder))
        check(took < 3 + 15, f"took {took:.1f} s")


def killed_rank_ends_the_run():
    with Folder() as folder:
        process = start(folder, 3, *ENDLESS, "--set", "checkpoint.every=2", "--set", "run.timeout_s=5",
                        "--set", "checkpoint.keep=2")
        os.kill(ranks_of(folder)[2], signal.SIGKILL)
        check(finish(process, 60) != 0, "exit code 0")
        time.sleep(0.5)
        check(not ranks_of(folder), "ranks are left")
        train(folder, 2, "--resume", "latest", "--set", "train.steps=1000000", "--stop-at",
              str(max(metrics(folder)[0]) + 3))


def death_at_every_point_of_saving():
    points = 0
    with Folder() as folder:
        train(folder, 0, "--set", "train.steps=8", "--stop-at", "2")
        for point in range(1, 500):
            done = run(folder, 0, "train", "run.ini", "--set", "train.steps=100000", "--resume", "latest",
                       "--set", "checkpoint.keep=2", "--set", "checkpoint.async=false", "--stop-at",
                       str(4 + point), env={"TESSERA_TEST_KILL_AT": str(point)})
            check(run(folder, 0, "ckpt", "verify", "run").returncode == 0,
                  f"killed at point {point}: no valid checkpoint is left")
            if done.returncode == 0:
                break
            check(done.returncode == -signal.SIGKILL, f"{done.returncode}: {done.stderr[-1000:]}")
            points = point
    check(points >= 30, f"only {points} points")


TESTS = [signals_save_and_stop, stopped_rank_is_named, killed_rank_ends_the_run,
         death_at_every_point_of_saving]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
