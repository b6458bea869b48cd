#!/bin/bash
# test_run.sh BUILD: pack.sh and run.sh themselves, on the emulated GPU.
set -euo pipefail
build=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packed=$folder/tessera-gpu

expect() { # CODE COMMAND...
    local code=0
    "${@:2}" || code=$?
    [ $code = "$1" ] || { echo "exit code $code, expected $1: ${*:2}" >&2; exit 1; }
}

"$(dirname "$0")/pack.sh" --build "$build" "$packed"
if [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ]; then
    expect 77 env -u TESSERA_CUDA "$packed/run.sh"
fi
expect 2 "$packed/run.sh" --gpu
expect 0 env TESSERA_CUDA=emulated RESULTS="$folder/emulated" "$packed/run.sh"
! grep -E 'skipped|FAILED' "$folder/emulated/table.md"

# A test that fails is seen: the text it trains on is gone.
: >"$packed/data/train.txt"
expect 1 env RESULTS="$folder/failing" "$packed/run.sh" --cpu
grep -q 'FAILED' "$folder/failing/table.md"
