#!/bin/bash
# headers.sh ROOT [include flags ...]: every header compiles alone, the public ones in C++ too.
# Not those of CUDA and its emulation, which are compiled by nvcc or within the emulation only.
set -euo pipefail
cd "$1"
shift
export flags="-fsyntax-only -Wall -Wextra -Werror -D_GNU_SOURCE -DOMPI_SKIP_MPICXX -I. $*"

check() { # header, language, standard
    echo "#include \"$1\"" | gcc -x "$2" "-std=$3" $flags - ||
        { echo "$1 does not compile alone as $3"; return 1; }
}
export -f check

find runtime collectives parallel optim checkpoints launch tests -name '*.h' | sort | while read -r header; do
    case $header in
    runtime/cuda/* | tests/emulation/*) continue ;;
    esac
    echo "$header c c17"
    case $header in
    tests/* | launch/* | */*/* | *_impl.h) ;; # not public
    *) echo "$header c++ c++17" ;;
    esac
done | xargs -P 2 -L 1 bash -c 'check "$@"' check
