#!/bin/bash
# pack.sh [--build DIR] OUT    make OUT and OUT.tar.gz: a folder that tests Tessera on a machine with a
#                              GPU where nothing can be installed (glibc, libstdc++ and the CUDA
#                              libraries are that machine's)
# pack.sh [--build DIR] --check    make one and run it, on the CPU, in a root that holds nothing else
#
# DIR: a build with the GPU modules and tests (build/release). Open MPI, HDF5, oneDNN and whatever else
# the program is linked with are copied from this machine, as packaged by Debian 12.
set -euo pipefail
source_dir=$(cd "$(dirname "$0")/../.." && pwd)
build=$source_dir/build/release
out='' root='' check=false
readonly LIMIT_MB=60 SYSTEM=/usr/lib/x86_64-linux-gnu
# of the other machine: glibc, the compiler's run time, and all of CUDA
readonly THEIRS='/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|resolv|util|anl|stdc\+\+|gcc_s|cuda|cudart|cublas|cublasLt|cudnn[^/]*|nccl|nvrtc[^/]*|nvJitLink|nvidia[^/]*))\.so'
# components for networks and launchers that a single machine does not have; some want large libraries
readonly ABSENT='ucx|ofi|psm|openib|usnic|portals|monitoring|slurm|gridengine|flux|jsm|oshmem|java'

fail() { echo "pack.sh: $*" >&2; exit 1; }

while [ $# -gt 0 ]; do
    case $1 in
        --build) [ $# -ge 2 ] || fail "--build: missing folder"; build=$(realpath "$2"); shift ;;
        --check) check=true ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
        -*) fail "$1: must be --build or --check" ;;
        *) [ -z "$out" ] || fail "one OUT, not also $1"; out=$1 ;;
    esac
    shift
done

# ---- the folder ---------------------------------------------------------------------------------

copy_programs() {
    [ -x "$build/tessera" ] || fail "$build/tessera: not built; name the build folder by --build"
    mkdir -p "$out/bin"
    cp "$build/tessera" "$out/bin"
    for module in cuda cuda_emulated nccl nccl_emulated; do
        if [ -f "$build/libtessera_$module.so" ]; then
            cp "$build/libtessera_$module.so" "$out/bin"
        else
            echo "pack.sh: left out libtessera_$module.so, which $build does not have" >&2
        fi
    done
    for kind in '' _emulated; do
        [ ! -f "$out/bin/libtessera_cuda$kind.so" ] || check_module cuda$kind tsr_cuda_device_open
        [ ! -f "$out/bin/libtessera_nccl$kind.so" ] || check_module nccl$kind tsr_nccl_comm_create
    done
    for program in "$build"/tests/gpu_*; do # they find the modules in the folder above
        if [ -x "$program" ]; then
            cp "$program" "$out/bin"
        fi
    done
    cp -L "$(command -v awk)" "$out/bin/awk"
    strip --strip-unneeded "$out"/bin/*
}

# What a GPU machine would find out first: has the module its entry, the program all that it calls?
check_module() {
    local module=$out/bin/libtessera_$1.so missing
    [[ " $(nm -D --defined-only "$module" | awk '{print $3}' | tr '\n' ' ')" == *" $2 "* ]] ||
        fail "$module does not export $2: build it anew"
    missing=$(comm -23 <(nm -D --undefined-only "$module" | awk '$2 ~ /^tsr_/ {print $2}' | sort) \
        <(nm -D --defined-only "$out/bin/tessera" | awk '{print $3}' | sort))
    [ -z "$missing" ] || fail "$module needs of the program: $missing"
}

# Open MPI finds its parts below OPAL_PREFIX as they lie below /usr.
copy_mpi() {
    local usr=$out/usr
    mkdir -p "$usr/bin" "$usr/share" "$usr/lib/x86_64-linux-gnu/openmpi/lib"
    cp -L "$(command -v mpirun)" "$usr/bin/mpirun"
    cp -L "$(command -v orted)" "$usr/bin/orted"
    cp -aL /usr/share/openmpi "$usr/share/"
    cp -aL "$SYSTEM/openmpi/lib/openmpi3" "$usr/lib/x86_64-linux-gnu/openmpi/lib/"
    if [ -d "$SYSTEM/pmix2" ]; then
        mkdir -p "$usr/lib/x86_64-linux-gnu/pmix2/lib"
        cp -aL "$SYSTEM/pmix2/lib/pmix" "$usr/lib/x86_64-linux-gnu/pmix2/lib/"
    fi
    find "$usr/lib" -regextype posix-extended -type f \
        \( -regex ".*($ABSENT).*" -o -not -name '*.so' \) -delete
}

# Paths of what these files are linked with, as far as this machine has it
list_libraries() {
    for file in "$@"; do
        ldd "$file" 2>/dev/null || true
    done | awk '$3 ~ /^\// {print $3}' | sort -u
}

# What all of that is linked with, but for what the other machine must have.
copy_libraries() {
    local files
    mkdir -p "$out/lib"
    mapfile -t files < <(find "$out/bin" "$out/usr" -type f \( -name '*.so' -o -perm -u+x \))
    list_libraries "${files[@]}" | grep -vE "$THEIRS" | while read -r library; do
        cp -L "$library" "$out/lib/"
    done
}

# One megabyte of text, with some left for validation: the guide's corpus, or words from a generator.
copy_text() {
    local corpus=$source_dir/data/corpus
    mkdir -p "$out/data"
    if [ -f "$corpus/train.txt" ] && [ -f "$corpus/valid.txt" ]; then
        head -c 1000000 "$corpus/train.txt" >"$out/data/train.txt"
        head -c 50000 "$corpus/valid.txt" >"$out/data/valid.txt"
        return
    fi
    awk 'BEGIN {
        split("the of and to in that he shall for unto with not all is his they be from it which", w)
        for (state = 1; written < 1050000; written += length(line) + 1) {
            line = ""
            for (i = 0; i < 12; ++i) {
                state = state * 16807 % 2147483647
                line = line w[int(state / 107374183) + 1] " "
            }
            print line
        }
    }' >"$out/data/all"
    head -c 1000000 "$out/data/all" >"$out/data/train.txt"
    tail -c 50000 "$out/data/all" >"$out/data/valid.txt"
    rm "$out/data/all"
}

make_folder() {
    [ ! -e "$out" ] || fail "$out: exists already"
    mkdir -p "$out"
    out=$(realpath "$out")
    copy_programs
    copy_mpi
    copy_libraries
    copy_text
    cp "$source_dir"/tests/gpu/{run.sh,toy.ini,peer.ini} "$source_dir/launch/quickstart.ini" "$out"
    "$out/bin/tessera" --version >"$out/VERSION"
}

pack_folder() {
    local bytes
    tar -C "$(dirname "$out")" -czf "$out.tar.gz" "$(basename "$out")"
    bytes=$(stat -c %s "$out.tar.gz")
    echo "$out: $(du -sm "$out" | cut -f1) MB, packed $((bytes / 1000000)) MB in $out.tar.gz"
    [ "$bytes" -lt $((LIMIT_MB * 1000000)) ] || fail "$out.tar.gz: $bytes bytes, at most $LIMIT_MB MB"
}

# ---- the check ----------------------------------------------------------------------------------

# A root with a shell, a few commands, glibc and the compiler's run time: what any machine has.
make_root() {
    local tool
    mkdir -p "$root"/{bin,etc,proc,sys,dev/shm,tmp,lib64}
    ln -s . "$root/usr"
    ln -s lib64 "$root/lib"
    for tool in bash cat cp cut date dirname env head ls mkdir mktemp nproc rm sed sort tail timeout tr uname wc; do
        cp -L "$(command -v $tool)" "$root/bin/"
    done
    ln -s bash "$root/bin/sh"
    mkdir "$root/lib64/x86_64-linux-gnu"
    { list_libraries "$root"/bin/*
      list_libraries "$out"/bin/* "$out"/lib/* | grep -E "$THEIRS"; } | sort -u | while read -r library; do
        cp -L "$library" "$root/lib64/x86_64-linux-gnu/"
    done
    cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
    printf 'root:x:0:0::/:/bin/sh\n' >"$root/etc/passwd"
}

run_check() {
    if [ "$(id -u)" != 0 ] || ! unshare --mount true 2>/dev/null; then
        echo "pack.sh: --check needs the right to mount and to change the root" >&2
        exit 77
    fi
    root=$(mktemp -d)
    trap 'rm -rf --one-file-system "$root"' EXIT
    out=$root/tessera-gpu
    make_folder
    pack_folder
    rm "$out.tar.gz"
    make_root
    # The mounts are seen by these processes only, and go with them.
    unshare --mount --pid --fork bash -c '
        set -e
        mount -t proc proc "$1/proc"
        mount -t tmpfs tmpfs "$1/dev/shm"
        mount --rbind /sys "$1/sys"
        for node in null zero urandom; do
            : >"$1/dev/$node"
            mount --bind /dev/$node "$1/dev/$node"
        done
        exec chroot "$1" /bin/env -i PATH=/bin HOME=/tmp /tessera-gpu/run.sh --cpu' check "$root"
}

if $check; then
    run_check
else
    [ -n "$out" ] || fail "missing OUT, see --help"
    make_folder
    pack_folder
fi
