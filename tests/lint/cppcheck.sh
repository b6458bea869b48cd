#!/bin/bash
# cppcheck.sh BUILD: cppcheck over every file of the build; findings are errors.
set -euo pipefail
# preprocessorErrorDirective: cppcheck knows no processor, the emulator is written for one
# invalidFunctionArg: takes loops over at least one score for empty ones, then log(sum) for log(0)
cppcheck --project="$1/compile_commands.json" --enable=warning,portability,performance \
    --inline-suppr --suppress=missingIncludeSystem \
    "--suppress=preprocessorErrorDirective:*tests/emulation/cuemu.cpp" \
    "--suppress=invalidFunctionArg:*runtime/cpu/plain/*" --error-exitcode=1 --quiet -j "$(nproc)"
