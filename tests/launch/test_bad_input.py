#!/usr/bin/env python3
"""Broken corpora, checkpoints and disks: each gets its message and exit code, and nothing is lost."""
import glob
import json
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import Folder, check, losses, main, make_text, run, train

SHORT = ["--set", "train.steps=6", "--set", "checkpoint.every=2"]


def fails(done, code, *texts):
    check(done.returncode == code, f"exit code {done.returncode}, expected {code}: {done.stderr[-2000:]}")
    for text in texts:
        check(text in done.stderr, f"{text!r} is not in: {done.stderr[-2000:]}")


def corpora():
    with Folder() as folder:
        for ranks in (0, 2):
            fails(run(folder, ranks, "train", "run.ini", "--set", "data.train=none.txt"), 3, "none.txt")
            folder.write("empty.txt", b"")
            fails(run(folder, ranks, "train", "run.ini", "--set", "data.train=empty.txt"), 3, "empty.txt")
            folder.write("tiny.txt", b"too short")
            fails(run(folder, ranks, "train", "run.ini", "--set", "data.train=tiny.txt"), 3, "tiny.txt")
            fails(run(folder, ranks, "train", "run.ini", "--set", "data.train="), 2, "data.train")
        check(not os.path.exists(folder.at("run")), "a run folder was made")


def make_pair(folder, name, tokens, code=8):
    import struct
    text = b"".join(struct.pack("<H", t) for t in tokens)
    folder.write(name + ".bin", text)
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, 1, 2) + struct.pack("<i", len(tokens))
    folder.write(name + ".idx", index + struct.pack("<q", 0) + struct.pack("<qq", 0, 1))


def token_pairs():
    with Folder() as folder:
        make_pair(folder, "good", list(make_text(5000)))
        train(folder, 2, "--set", "data.train=good", "--set", "train.steps=2")
        shutil.rmtree(folder.at("run"))
        whole = open(folder.at("good.idx"), "rb").read()
        for length in (0, 5, 20, 34, len(whole) - 1):
            folder.write("good.idx", whole[:length])
            fails(run(folder, 0, "train", "run.ini", "--set", "data.train=good"), 3, "good.idx")
        text = list(make_text(5000))
        text[2500] = 999
        make_pair(folder, "high", text)
        done = run(folder, 3, "train", "run.ini", "--set", "data.train=high", "--set", "train.steps=200")
        fails(done, 3, "999", "high")


def saved(folder):
    train(folder, 2, *SHORT)
    names = sorted(glob.glob(folder.at("run", "checkpoints", "step-*")))
    check([os.path.basename(n) for n in names] == ["step-00000002", "step-00000004", "step-00000006"],
          f"{names}")
    return names


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x10]))


def damage(newest, kind):
    shard, manifest = os.path.join(newest, "shard-0001.h5"), os.path.join(newest, "manifest.h5")
    size = os.path.getsize(shard)
    if kind == "shard byte":
        flip(shard, size // 2)
    elif kind == "manifest byte":
        flip(manifest, os.path.getsize(manifest) // 2)
    elif kind == "missing shard":
        os.unlink(shard)
    elif kind == "truncated shard":
        os.truncate(shard, size - 100)
    elif kind == "truncated manifest":
        os.truncate(manifest, os.path.getsize(manifest) // 2)
    elif kind == "empty manifest":
        os.truncate(manifest, 0)
    elif kind == "no manifest":
        os.unlink(manifest)


def damaged_checkpoints_fall_back():
    with Folder() as folder:
        names = saved(folder)
        kept = folder.at("kept")
        shutil.copytree(folder.at("run"), kept, symlinks=True)
        straight = losses(folder)
        for kind in ("shard byte", "manifest byte", "missing shard", "truncated shard",
                     "truncated manifest", "empty manifest", "no manifest"):
            shutil.rmtree(folder.at("run"))
            shutil.copytree(kept, folder.at("run"), symlinks=True)
            damage(names[-1], kind)
            done = run(folder, 0, "ckpt", "verify", names[-1])
            check(done.returncode == 3, f"{kind}: verify ends with {done.returncode}: {done.stderr}")
            again = train(folder, 2, *SHORT, "--resume", "latest")
            check("step-00000004" in again.stderr, f"{kind}: {again.stderr}")
            if kind != "no manifest":
                check("step-00000006" in again.stderr, f"{kind}: the bad one is not named: {again.stderr}")
            check(losses(folder) == straight, f"{kind}: the curve changed")
            check(run(folder, 0, "ckpt", "verify", "run").returncode == 0, f"{kind}: not saved again")


def nothing_valid_is_an_error():
    with Folder() as folder:
        for name in saved(folder):
            damage(name, "shard byte")
        fails(run(folder, 2, "train", "run.ini", *SHORT, "--resume", "latest"), 3, "step-00000006")
        fails(run(folder, 0, "eval", "run", "--data", "valid.txt"), 3)
        fails(run(folder, 0, "train", "run.ini", "--resume", "auto"), 3)


def folder_may_move():
    with Folder() as folder:
        saved(folder)
        loss = json.loads(run(folder, 0, "eval", "run", "--data", "valid.txt").stdout)["loss"]
        os.rename(folder.at("run"), folder.at("elsewhere"))
        moved = json.loads(run(folder, 0, "eval", "elsewhere", "--data", "valid.txt").stdout)["loss"]
        check(loss == moved, f"{loss} {moved}")


def mounted(folder, *options):
    """A small file system of its own at folder/run; None without the right to mount."""
    os.makedirs(folder.at("run"), exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder.at("run")],
                          capture_output=True, text=True)
    if done.returncode != 0:
        print(f"skip: no right to mount a tmpfs: {done.stderr.strip()}", flush=True)
        return False
    return True


def full_disk():
    with Folder() as folder:
        train(folder, 2, "--set", "train.steps=2")
        one = sum(os.path.getsize(f) for f in glob.glob(folder.at("run/checkpoints/step-00000002/*")))
        shutil.rmtree(folder.at("run"))
        if not mounted(folder, f"size={int(2.5 * one)}"):
            return
        try:
            # two fit, the third does not: it is said, the run goes on, and the last good one remains
            done = run(folder, 2, "train", "run.ini", *SHORT)
            check("not saved" in done.stderr or done.returncode != 0, done.stderr[-2000:])
            check("No space" in done.stderr or "free" in done.stderr, done.stderr[-2000:])
            check(run(folder, 0, "ckpt", "verify", "run").returncode == 0, "no valid one is left")
        finally:
            subprocess.run(["umount", folder.at("run")], check=True)


def read_only_folder():
    with Folder() as folder:
        if not mounted(folder, "size=1m", "ro"):
            return
        try:
            fails(run(folder, 2, "train", "run.ini", *SHORT), 3, "Read-only file system")
        finally:
            subprocess.run(["umount", folder.at("run")], check=True)
    with Folder() as folder:
        folder.write("run", b"a file, not a folder")
        fails(run(folder, 0, "train", "run.ini", *SHORT), 3, "run")


TESTS = [corpora, token_pairs, damaged_checkpoints_fall_back, nothing_valid_is_an_error, folder_may_move,
         full_disk, read_only_folder]
main([t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
