#!/bin/bash
# long.sh [PYTHON]: proofs that take too long, or need too much, for every change. PYTHON (default: python3)
# has torch, transformers >= 5 and h5py. Needs the release build.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
export TESSERA=$PWD/build/release/tessera
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1

echo "== Hugging Face's Mixtral computes the same loss"
"$python" tests/long/hf_parity.py
echo "== kernels, models and ranks under the sanitizers"
cmake --preset asan >/dev/null && cmake --build --preset asan >/dev/null && ctest --preset asan -L 'unit|mpi' -j2
