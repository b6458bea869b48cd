#!/bin/bash
# quickstart.sh: from a fresh clone to text written by a model of your own, in about six minutes on two
# cores: packages, build, corpus, train on 2 ranks, interrupt, resume, sample.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    -h | --help)
        echo "usage: ./launch/quickstart.sh [--set section.key=value]...   (see launch/quickstart.ini)"
        exit 0 ;;
esac

say() { printf '\n== %s\n' "$*"; }

# mpirun as root (containers) and with more ranks than cores; waiting ranks give up their core
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_base_warn_component_unused=0

say "packages"
./launch/install-deps.sh

say "build"
cmake --preset release -DTSR_TESTS=OFF >build-quickstart.log 2>&1 && cmake --build --preset release >>build-quickstart.log 2>&1 ||
    { tail -30 build-quickstart.log; echo "quickstart: the build failed, see build-quickstart.log" >&2; exit 1; }
rm -f build-quickstart.log
tessera=build/release/tessera
"$tessera" --version

say "corpus"
python3 launch/corpus/make_corpus.py data/corpus

# bf16 where the processor multiplies it, else f32
compute=f32
if grep -qm1 avx512_bf16 /proc/cpuinfo; then compute=bf16; fi
train=(mpirun -n 2 "$tessera" train launch/quickstart.ini --set precision.compute=$compute "$@")

rm -rf runs/quickstart
say "train on 2 ranks, until it is interrupted"
"${train[@]}" &
pid=$!
until [ -f runs/quickstart/metrics.jsonl ] && [ "$(wc -l <runs/quickstart/metrics.jsonl)" -ge 300 ]; do
    kill -0 $pid 2>/dev/null || break
    sleep 0.5
done
say "interrupt: SIGUSR1, which mpirun passes on, saves and stops"
kill -USR1 $pid 2>/dev/null || true
wait $pid

say "resume"
"${train[@]}" --resume latest

say "checkpoints"
"$tessera" ckpt ls runs/quickstart
"$tessera" ckpt verify runs/quickstart

say "a sample"
"$tessera" generate runs/quickstart --prompt "And God said" --max-new 300 --temperature 0.7 --seed 1
