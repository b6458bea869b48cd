#!/usr/bin/env python3
"""The job scripts: signals save and stop, the next start goes on. srun and scontrol are made up."""
import json
import os
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import MPIRUN, TESSERA, Folder, check, main, metrics

JOBS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "launch", "jobs")
SRUN = f"""#!/bin/sh
while [ "${{1#-}}" != "$1" ]; do shift; done
exec {MPIRUN} -n 2 "$@"
"""
SCONTROL = """#!/bin/sh
echo "$@" >>requeued
"""


def start(folder, *words):
    environment = {**os.environ, "TESSERA": TESSERA, "MPIRUN": MPIRUN, "SLURM_JOB_ID": "77",
                   "PATH": folder.at("bin") + ":" + os.environ["PATH"]}
    with open(folder.at("log.txt"), "ab") as log:
        return subprocess.Popen(words, cwd=folder.path, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                env=environment)


def steps_of(folder):
    try:
        return len(metrics(folder)[0])
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def finish(folder, process, code=0):
    try:
        ended = process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        ended = "none"
    with open(folder.at("log.txt"), errors="replace") as log:
        check(ended == code, f"exit code {ended}, expected {code}\n{log.read()[-3000:]}")


def stop_and_go_on(folder, words, number):
    """Stop the endless run by the signal; start again, to a few steps more."""
    process = start(folder, *words, "--set", "train.steps=1000000")
    deadline = time.time() + 60
    while steps_of(folder) < 5 and process.poll() is None and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    finish(folder, process)
    done = steps_of(folder)
    check(5 <= done < 1000000, f"{done} steps")
    finish(folder, start(folder, *words, "--set", "train.steps=1000000", "--stop-at", str(done + 3)))
    check(steps_of(folder) == done + 3, f"{steps_of(folder)} steps, expected {done + 3}")
    with open(folder.at("run", "metrics.jsonl")) as file:
        check(f'{{"resumed_from":{done}}}' in file.read(), "it did not go on")


def mpirun_script():
    for number in (signal.SIGTERM, signal.SIGUSR1):
        with Folder() as folder:
            folder.write("hosts", b"localhost slots=2\n")
            stop_and_go_on(folder, [os.path.join(JOBS, "mpirun.sh"), "hosts", "run.ini"], number)
    with Folder() as folder:
        folder.write("hosts", b"localhost slots=2\n")
        script = os.path.join(JOBS, "mpirun.sh")
        finish(folder, start(folder, script, "hosts", "run.ini", "--set", "train.steps=none"), 2)
        finish(folder, start(folder, script, "hosts"), 2)


def slurm_script():
    with Folder() as folder:
        os.mkdir(folder.at("bin"))
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            folder.write(os.path.join("bin", name), text.encode())
            os.chmod(folder.at("bin", name), 0o755)
        script = os.path.join(JOBS, "slurm.sbatch")
        stop_and_go_on(folder, [script, "run.ini"], signal.SIGUSR1)
        with open(folder.at("requeued")) as file:
            check(file.read() == "requeue 77\n", "queued again once, by the signal alone")
        finish(folder, start(folder, script, "run.ini", "--set", "train.steps=none"), 2)
        finish(folder, start(folder, script), 2)


TESTS = [mpirun_script, slurm_script]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
