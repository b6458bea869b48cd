#!/bin/bash
# clang_tidy.sh ROOT BUILD: clang-tidy over every file of the build; findings are errors.
set -euo pipefail
cd "$1"
build=$2

tidy() { # stderr holds counts of what was found in the system's headers
    clang-tidy --quiet -p "$1" "$2" 2>/dev/null || { echo "clang-tidy: $2"; return 1; }
}
export -f tidy

# not runtime/cpu/simd: clang does not know GCC's __builtin_shuffle, and its findings there are noise
# not .cu files, which clang 14 cannot parse, nor the emulation, whose names are CUDA's
sed -n 's/^ *"file": "\(.*\)",\{0,1\}$/\1/p' "$build/compile_commands.json" | sort -u |
    grep -vE "/runtime/cpu/simd/|/tests/runtime/test_vec.c|\.cu$|/tests/emulation/" | xargs -P "$(nproc)" -n 1 bash -c 'tidy "$0" "$1"' "$build"
