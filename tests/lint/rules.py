#!/usr/bin/env python3
"""Rules of the house that a pattern can check: include direction, size, forbidden calls.

usage: rules.py ROOT        prints FILE:LINE: what is wrong; exit code 1 if anything is
"""
import re
import sys
from pathlib import Path

# Who may include whom; a folder's code may always include its own folder.
MAY_INCLUDE = {
    "runtime": [],
    "collectives": ["runtime"],
    "parallel": ["runtime", "collectives"],
    "optim": ["runtime", "collectives"],
    "checkpoints": ["runtime", "collectives"],
    "launch": ["runtime", "collectives", "parallel", "optim", "checkpoints"],
    "tests": ["runtime", "collectives", "parallel", "optim", "checkpoints", "launch"],
}
# Outside headers, by the paths (beginnings) that may include them; launch and tests may include all.
OUTSIDE = {
    r"mpi\.h": ["collectives/mpi/", "collectives/mpi_bridge.h"],
    r"nccl\.h": ["collectives/nccl/"],
    r"hdf5\w*\.h": ["checkpoints/"],
    r"xxh(ash|3)\.h": ["checkpoints/"],
    r"(dnnl|oneapi)\b.*": ["runtime/cpu/"],
    r"(omp|immintrin)\.h": ["runtime/cpu/"],
    r"(cuda|cublas|cudnn).*": ["runtime/cuda/", "collectives/nccl/"],
    r"ini\.h": ["runtime/config/"],
    r"cmocka\.h": [],
    r"jansson\.h": [],
    r"hwloc.*": [],
}
EMULATION = "tests/emulation/"  # CUDA on the CPU, for runtime/cuda built as a test
BRIDGE = "collectives/mpi_bridge.h"
BRIDGE_USERS = ("collectives", "checkpoints", "launch", "tests")
ENDS_PROCESS = re.compile(r"(?<![\w.>])(getenv|secure_getenv|exit|_exit|quick_exit|abort)\s*\(")
ALLOCATES = re.compile(r"(?<![\w.>])(malloc|calloc|realloc|aligned_alloc|posix_memalign|strdup)\s*\(")
MPI_PROCESS = re.compile(r"\bMPI_(Init|Init_thread|COMM_WORLD|Abort|Finalize)\b")
RAW_FIGURE = re.compile(r'\bjson_real\s*\(|"[^"]*\bs:f\b')  # jansson refuses NaN, and with it the whole object
FIGURE = "launch/figure.h"
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
INCLUDE = re.compile(r'\s*#\s*include\s*([<"])([^>"]+)[>"]')
COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|/\*.*?\*/|//[^\n]*', re.S)
MAX_LINES = 600
MAX_COLUMNS = 100


def without_comments(text):
    """The code alone, line for line: comments and texts in quotes are emptied (not those of includes)."""
    def blank(match):
        return "\n" * match[0].count("\n") if match[0][0] == "/" else '""'

    lines = text.split("\n")
    kept = [line if INCLUDE.match(line) else None for line in lines]
    code = COMMENT.sub(blank, text).split("\n")
    return [old if old is not None else new for old, new in zip(kept, code)]


def include_problem(path, quote, target):
    folder = path.parts[0]
    if quote == "<":
        for pattern, places in OUTSIDE.items():
            allowed = folder in ("launch", "tests") or path.as_posix().startswith(tuple(places))
            if re.fullmatch(pattern, target) and not allowed:
                return f"<{target}> may be included by {', '.join(places + ['launch', 'tests'])} only"
        return None
    other = target.split("/")[0]
    if other not in MAY_INCLUDE:
        return f'"{target}" must be named from the root of the repository'
    if other == folder or folder == "tests":
        return None
    if path.as_posix().startswith("runtime/cuda/") and target.startswith(EMULATION):
        return None
    if other not in MAY_INCLUDE[folder]:
        return f"{folder} may not include {other}"
    if target == BRIDGE:
        return None if folder in BRIDGE_USERS else f"{BRIDGE} is not for {folder}"
    if target != f"{other}/{other}.h":
        return f'"{target}" belongs to {other}: include "{other}/{other}.h"'
    return None


def line_problems(path, line, code):
    folder = path.parts[0]
    include = INCLUDE.match(code)
    if include:
        yield include_problem(path, include[1], include[2])
    if folder not in ("launch", "tests"):
        if ENDS_PROCESS.search(code):
            yield "only launch reads the environment or ends the process"
        if MPI_PROCESS.search(code):
            yield "only launch knows the MPI world"
        if ALLOCATES.search(code) and path.as_posix() != "runtime/memory.c":
            yield "memory comes from tsr_mem_alloc()"
    if folder == "launch" and RAW_FIGURE.search(line) and path.as_posix() != FIGURE:
        yield f"numbers go into JSON by figure_json() of {FIGURE}"
    if UNFINISHED.search(line):
        yield "unfinished work is not committed"
    if len(line) > MAX_COLUMNS:
        yield f"{len(line)} columns, at most {MAX_COLUMNS}"
    if line != line.rstrip() or "\t" in line:
        yield "tab or space that nobody sees"


def problems(root):
    files = [path for folder in MAY_INCLUDE for path in (root / folder).rglob("*")
             if path.suffix in (".c", ".h", ".cu", ".cuh", ".cpp")]
    for file in sorted(files):
        path, text = file.relative_to(root), file.read_text()
        lines = text.split("\n")
        if len(lines) - 1 > MAX_LINES:
            yield f"{path}:{MAX_LINES + 1}: {len(lines) - 1} lines, at most {MAX_LINES}: split it by concept"
        for number, (line, code) in enumerate(zip(lines, without_comments(text)), 1):
            for problem in line_problems(path, line, code):
                if problem is not None:
                    yield f"{path}:{number}: {problem}"
    if not files:
        yield f"{root}: holds no sources"


def main():
    found = list(problems(Path(sys.argv[1])))
    print("\n".join(found) if found else "rules: kept")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
