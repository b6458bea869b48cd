#!/bin/bash
# cppcheck.sh BUILD: cppcheck over every file of the build; findings are errors.
set -euo pipefail
cppcheck --project="$1/compile_commands.json" --enable=warning,portability,performance \
    --inline-suppr --suppress=missingIncludeSystem --error-exitcode=1 --quiet -j "$(nproc)"
