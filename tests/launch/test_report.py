#!/usr/bin/env python3
"""`tessera report`: figures, pictures, and what it says of damaged runs."""
import json
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
from runs import TESSERA, Folder, check, main, train


def report(folder, *words):
    return subprocess.run([TESSERA, "report", str(folder), *words], capture_output=True, text=True, timeout=120)


def step(n, **more):
    return {"step": n, "tokens": 64 * n, "loss": 5.0 - 0.1 * n, "ms": 10.0 + n, "tokens_per_s": 6400.0 / (10 + n),
            "expert_max_over_mean": 1.5, "bytes": {"self": 1, "intra_node": 100, "in_plane": 50, "cross_plane": 0},
            "parts_ms": {"forward_backward": 6.0, "reduce": 2.0, "totals": 1.0, "update": 1.0 + n},
            "moe": {"before": [1.5, 2.5], "after": [1.0, 1.1], "copies": [2, 4], "exposed_ms": [0.0, 0.5]}, **more}


def write_run(folder, lines, loads=None):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "metrics.jsonl"), "w") as file:
        file.writelines(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    if loads is not None:
        with open(os.path.join(folder, "loads.csv"), "w") as file:
            file.write(loads)


def later_lines_count_and_damage_is_told():
    with Folder() as made:
        folder = made.path
        lines = [step(n) for n in range(1, 9)] + [{"step": 4, "valid_loss": 4.4, "valid_tokens": 10}]
        lines += [{"resumed_from": 6}] + [step(n, loss=1.0) for n in range(7, 11)]
        lines += [{"step": 10, "valid_loss": 4.2, "valid_tokens": 10}, '{"step": 11, "lo']
        write_run(folder, lines)
        done = report(folder, "--json")
        check(done.returncode == 0, done.stderr)
        told = json.loads(done.stdout)
        check((told["first_step"], told["last_step"], told["resumes"], told["bad_lines"]) == (1, 10, 1, 1), told)
        check(abs(told["first_loss"] - 4.9) < 1e-9 and abs(told["last_loss"] - 1.0) < 1e-9, told)
        check(told["best_valid_loss"] == 4.2 and told["best_valid_step"] == 10, told)
        check("1 lines" in done.stderr, done.stderr)
        over = told["over_steps"]
        check(over["before"]["median"] == 2.0 and over["copies"]["median"] == 3.0, over)
        check(over["ms"]["last"] == 20.0 and over["ms"]["p10"] == 12.0, over["ms"])
        rows = open(os.path.join(folder, "report", "steps.dat")).read().splitlines()
        check(len(rows) == 11 and rows[7].split()[0] == "7", rows)


def what_a_resumed_run_left_behind_is_dropped():
    def valid(n, loss):
        return {"step": n, "valid_loss": loss, "valid_tokens": 10}

    first = [step(n, loss=9.0) for n in range(1, 5)] + [valid(4, 4.4)] + [step(n) for n in range(5, 9)] + [valid(8, 2.0)]
    with Folder() as made:
        for again, last, best in (([], 5, (4.4, 4)),                                    # nothing was done since
                                  ([step(n, loss=1.0) for n in (6, 7)], 7, (4.4, 4)),   # stopped before the old end
                                  ([step(n, loss=1.0) for n in range(6, 11)] + [valid(10, 3.0)], 10, (3.0, 10))):
            write_run(made.path, first + [{"resumed_from": 5}] + again)
            told = json.loads(report(made.path, "--json").stdout)
            check((told["last_step"], told["resumes"], told["bad_lines"]) == (last, 1, 0), told)
            check((told["best_valid_loss"], told["best_valid_step"]) == best, told)
            for name, count in (("steps", last), ("validations", len([line for line in again if "valid_loss" in line]) + 1)):
                rows = open(os.path.join(made.path, "report", name + ".dat")).read().splitlines()
                check(len(rows) == count + 1, rows)
        write_run(made.path, first + [step(n, loss=1.0) for n in range(5, 8)])  # a run again, without a word
        told = json.loads(report(made.path, "--json").stdout)
        check((told["last_step"], told["best_valid_step"]) == (7, 4), told)


def what_is_no_number_is_null():
    with Folder() as made:
        lines = [step(n) for n in range(1, 5)] + [{"step": 2, "valid_loss": None, "valid_tokens": 10}]
        for line in lines[:2]:
            line.pop("loss", None)
        lines[3].update(loss=None, moe={"before": [1.5, None]})
        write_run(made.path, lines)
        done = report(made.path, "--json")
        told = json.loads(done.stdout)
        check(done.returncode == 0 and told["first_loss"] is None and told["last_loss"] is None, done.stdout)
        check(abs(told["over_steps"]["loss"]["median"] - 4.7) < 1e-9, told)
        check(told["over_steps"]["loss"]["last"] is None and told["over_steps"]["before"]["last"] is None, told)
        check(told["bad_lines"] == 0 and "best_valid_loss" not in told, told)
        write_run(made.path, lines + [{"step": 4, "valid_loss": 4.0, "valid_tokens": 10}])
        check(json.loads(report(made.path, "--json").stdout)["best_valid_step"] == 4, "best validation")


def pictures_are_drawn():
    if shutil.which("gnuplot") is None:
        print("gnuplot is not installed: pictures are not tested")
        return
    with Folder() as made:
        folder = made.path
        loads = "step,layer,e0,e1\n" + "".join(f"{n},{l},{n},{10 - n}\n" for n in range(1, 9) for l in range(2))
        write_run(folder, [step(n) for n in range(1, 9)], loads)
        done = report(folder, "--out", os.path.join(folder, "pictures"))
        check(done.returncode == 0 and "6 pictures" in done.stdout, done.stdout + done.stderr)
        for name in ("loss", "speed", "parts", "imbalance", "bytes", "loads"):
            text = open(os.path.join(folder, "pictures", name + ".svg")).read()
            check("</svg>" in text and len(re.findall("<path|<image", text)) > 0, f"{name}.svg is empty")


def a_run_records_loads_and_a_trace():
    with Folder() as folder:
        train(folder, 2, "--set", "run.loads_every=2", "--set", "run.trace_steps=2", "--set", "train.steps=6")
        rows = [line.split(",") for line in open(folder.at("run", "loads.csv")).read().splitlines()]
        check([row[:2] for row in rows] == [[str(step), str(layer)] for step in (2, 4, 6) for layer in (0, 1)], rows)
        check(all(sum(map(int, row[2:])) == 7 * 17 * 2 for row in rows), rows)  # batch * S * K
        for rank in range(2):
            spans = json.load(open(folder.at("run", "trace", f"rank-{rank:04d}.json")))
            steps = {span["args"]["number"] for span in spans["traceEvents"] if span.get("tid") == 0 and span["ph"] == "X"}
            check(spans["spansLeftOut"] == 0 and steps == {3, 4}, spans)
        told = json.loads(report(folder.at("run"), "--json").stdout)
        check(told["over_steps"]["forward_backward"]["median"] > 0, told)
        check(os.path.exists(folder.at("run", "report", "loads.svg")) or shutil.which("gnuplot") is None, "no heat map")


def bad_runs_are_told():
    with Folder() as made:
        folder = made.path
        done = report(os.path.join(folder, "none"))
        check(done.returncode == 3 and "No such file" in done.stderr, done.stderr)
        write_run(folder, ["not json\n", {"resumed_from": 3}])
        done = report(folder)
        check(done.returncode == 3 and "no step" in done.stderr, done.stderr)
        write_run(folder, [step(1)], "step,layer,e0\n1,0\n")
        done = report(folder)
        check(done.returncode == 3 and "loads.csv" in done.stderr and "line 2" in done.stderr, done.stderr)



main([later_lines_count_and_damage_is_told, what_a_resumed_run_left_behind_is_dropped, what_is_no_number_is_null, pictures_are_drawn, a_run_records_loads_and_a_trace, bad_runs_are_told])
