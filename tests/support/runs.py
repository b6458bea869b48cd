"""What the end-to-end tests share: a small text, a small run file, tessera under mpirun, its outputs."""
import json
import os
import subprocess
import sys
import tempfile
import time

TESSERA = os.environ["TESSERA"]
MPIRUN = os.environ.get("MPIRUN", "mpirun")

RUN_FILE = """
[run]
dir = run
seed = 7
threads = 1
timeout_s = 60
[model]
family = mixtral
vocab_size = 256
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
moe_intermediate_size = 24
num_experts = 5
num_experts_per_tok = 2
rms_norm_eps = 1e-5
rope_theta = 10000
router_aux_loss_coef = 0.01
[data]
train = train.txt
valid = valid.txt
seq_len = 17
[train]
steps = 20
global_batch = 7
micro_batch = 2
[optim]
lr = 3e-3
warmup_steps = 2
[checkpoint]
every = 0
keep = 0
async = true
"""


def make_text(size, seed=1):
    """Words in an order that a small model can learn something of; the same bytes everywhere."""
    words = "the of and to in that he shall for unto with not all is his they be from it which".split()
    state, out, length = seed, [], 0
    while length < size:
        state = (state * 1103515245 + 12345) % 2**31
        word = words[(state >> 16) % len(words)]
        out.append(word)
        length += len(word) + 1
    return " ".join(out)[:size].encode()


class Folder:
    """A temporary folder with run.ini, train.txt and valid.txt; removed at the end."""

    def __init__(self, run_file=RUN_FILE, base=None):
        self.temporary = tempfile.TemporaryDirectory(prefix="tessera-", dir=base)
        self.path = self.temporary.name
        self.write("run.ini", run_file.encode())
        self.write("train.txt", make_text(20000))
        self.write("valid.txt", make_text(3000, seed=2))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.temporary.cleanup()

    def at(self, *parts):
        return os.path.join(self.path, *parts)

    def write(self, name, data):
        with open(self.at(name), "wb") as file:
            file.write(data)


def command(ranks, *arguments):
    words = [TESSERA, *arguments]
    return words if ranks == 0 else [MPIRUN, "-n", str(ranks), *words]


def run(folder, ranks, *arguments, timeout=100, env=None):
    """Run tessera (ranks 0: without mpirun) in the folder; returns the finished process."""
    return subprocess.run(command(ranks, *arguments), cwd=folder.path, capture_output=True, text=True,
                          timeout=timeout, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL)


def train(folder, ranks, *arguments, code=0, **keywords):
    done = run(folder, ranks, "train", "run.ini", *arguments, **keywords)
    check(done.returncode == code, f"exit code {done.returncode}, expected {code}\n{done.stderr[-3000:]}")
    return done


def metrics(folder, run_dir="run"):
    """{step: object} of the steps, the later line counts; validations apart."""
    steps, validations = {}, {}
    with open(folder.at(run_dir, "metrics.jsonl")) as file:
        for line in file:
            row = json.loads(line)
            if "loss" in row:
                steps[row["step"]] = row
            elif "valid_loss" in row:
                validations[row["step"]] = row
    return steps, validations


def losses(folder, run_dir="run"):
    steps, _ = metrics(folder, run_dir)
    return [steps[s]["loss"] for s in sorted(steps)]


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def start(folder, ranks, *arguments, env=None):
    """Train in the background; returns once 5 steps are done."""
    log = open(folder.at("log.txt"), "wb")
    process = subprocess.Popen(command(ranks, "train", "run.ini", *arguments), cwd=folder.path, stdout=log,
                               stderr=log, stdin=subprocess.DEVNULL,
                               env={**os.environ, **(env or {})})
    deadline = time.time() + 60
    while time.time() < deadline and process.poll() is None:
        try:
            if len(metrics(folder)[0]) >= 5:
                return process
        except (FileNotFoundError, json.JSONDecodeError):
            pass
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no step was made: {log_of(folder)}")


def log_of(folder):
    with open(folder.at("log.txt"), errors="replace") as file:
        return file.read()[-3000:]


def ranks_of(folder):
    """Process numbers of this folder's ranks, by their working folder."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = open(f"/proc/{name}/cmdline", "rb").read().split(b"\0")
                if words[0].endswith(b"tessera") and os.readlink(f"/proc/{name}/cwd") == folder.path:
                    found.append(int(name))
            except OSError:
                pass
    return sorted(found)


def finish(process, limit):
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {limit} s")


def main(tests):
    """Run the functions; all of them, then fail if any failed."""
    failed = 0
    for test in tests:
        try:
            test()
            print(f"ok   {test.__name__}", flush=True)
        except Exception as error:  # a failing test must not hide the next one
            failed += 1
            print(f"FAIL {test.__name__}: {error}", flush=True)
    sys.exit(1 if failed else 0)
