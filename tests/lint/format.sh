#!/bin/bash
# format.sh ROOT: every source is laid out as .clang-format says.
set -euo pipefail
cd "$1"
find runtime collectives parallel optim checkpoints launch tests -regex '.*\.\(c\|h\|cu\|cuh\|cpp\)' -print0 |
    xargs -0 clang-format --dry-run -Werror ||
    { echo "run clang-format -i on these files"; exit 1; }
