#!/bin/bash
# install-deps.sh: the one list of Debian packages that building, testing and running Tessera needs.
# Safe to run again; uses sudo when not root; installs nothing that is there already.
set -euo pipefail

packages=(
    build-essential cmake ninja-build pkg-config          # compiler and build
    openmpi-bin libopenmpi-dev libhdf5-openmpi-dev        # MPI, parallel HDF5
    libdnnl-dev libhwloc-dev                              # oneDNN, hardware locality
    libinih-dev libjansson-dev libxxhash-dev              # run files, JSON, digests
    libcmocka-dev clang-format clang-tidy cppcheck        # tests and linters
    gnuplot-nox                                           # pictures of `tessera report`
    iproute2                                              # hosts and planes of tests/rig
    hdf5-tools python3 python3-h5py python3-numpy         # checkpoints read by others' tools in tests
)

missing=()
for package in "${packages[@]}"; do
    if ! dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
        missing+=("$package")
    fi
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "packages: all ${#packages[@]} installed"
    exit 0
fi

sudo=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "install-deps: not root and no sudo; ask an administrator to install: ${missing[*]}" >&2; exit 1; }
    sudo=(sudo)
fi
echo "packages: installing ${missing[*]}"
"${sudo[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "packages: done"
