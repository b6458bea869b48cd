#!/bin/bash
# Packages, build and every test, then once more under the sanitizers; the last line is
# "N passed, N failed" over all of it, and the exit code says the same.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    cat <<'TEXT'
usage: tests/run.sh [--fast]
  --fast   neither the sanitizers nor the linters that parse every file again
Tests with label `long` are not run; ctest --preset release -L long runs them.
TEXT
}

fast=
for word in "$@"; do
    case $word in
    --fast) fast=1 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "run.sh: unknown option $word" >&2; usage >&2; exit 2 ;;
    esac
done

passed=0 failed=0 skipped=0 failures=()

fail() { # a step that is no test counts as one failure
    failed=$((failed + 1))
    failures+=("$1")
}

count() { # lines of $report that match
    grep -cE "$1" "$report" || true
}

# run_tests PRESET [ctest options]: configure, build, test, and add up what the report says
run_tests() {
    local preset=$1 started=$SECONDS report rc=0 good bad skip all
    shift
    echo "== $preset: build"
    { cmake --preset "$preset" && cmake --build --preset "$preset"; } || { fail "$preset: build"; return; }
    echo "== $preset: test"
    report=$PWD/build/$preset/junit.xml
    rm -f "$report"
    ctest --preset "$preset" -j "$(nproc)" --output-junit "$report" "$@" || rc=$?
    [ -f "$report" ] || { fail "$preset: ctest wrote no report"; return; }
    all=$(count '<testcase ')
    good=$(count '<testcase .* status="run"')
    skip=$(count '<skipped message="SKIP_')
    bad=$((all - good - skip)) # a test that could not be started is a failure, not a skip
    passed=$((passed + good)) failed=$((failed + bad)) skipped=$((skipped + skip))
    while read -r name; do
        failures+=("$preset: $name")
    done < <(awk '/<testcase /{line = $0} /status="fail"/ || /<skipped message="[^S]/{print line}' "$report" |
        sed 's/.*<testcase name="\([^"]*\)".*/\1/' | sort -u)
    if [ "$bad" -eq 0 ] && [ "$rc" -ne 0 ]; then
        fail "$preset: ctest exit code $rc"
    fi
    echo "== $preset: $((SECONDS - started)) s"
}

ulimit -c 0 # tests kill processes on purpose
if ./launch/install-deps.sh; then
    if [ -n "$fast" ]; then
        run_tests release -LE '^(long|lint-slow)$'
    else
        run_tests release -LE '^long$'
        run_tests asan -L '^(unit|mpi)$'
    fi
else
    fail "packages"
fi

for name in "${failures[@]}"; do
    echo "failed: $name"
done
echo "$passed passed, $failed failed$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")"
[ "$failed" -eq 0 ]
