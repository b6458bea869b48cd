#!/bin/bash
# run.sh          run every GPU test and benchmark of this folder; prints a table, ends with 1 if any
#                 failed and with 77 where there is no GPU. Takes minutes.
# run.sh --cpu    what needs no GPU: train on 2 ranks, resume, evaluate
#
# TESSERA_CUDA=emulated: all tests on the emulated GPU, shorter, no benchmarks; a test of this script.
# Outputs are kept in results/ (RESULTS names another folder, which must not exist).
set -u
here=$(cd "$(dirname "$0")" && pwd)
results=${RESULTS:-$here/results}
tessera=$here/bin/tessera
kind=gpu
# Bounds on the difference of two losses: derived in tests/launch/test_equivalence.py
readonly ROUNDING=2e-4 ROUNDING_BF16=0.02
# PyTorch's compiled step of peer.ini's model on one H100
readonly PEER_TOKENS_PER_S=133300

case ${1:-} in
    '') ;;
    --cpu) kind=cpu ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "run.sh: $1: must be --cpu or nothing" >&2; exit 2 ;;
esac
if [ "$kind" = gpu ]; then
    if [ "${TESSERA_CUDA:-}" = emulated ]; then
        kind=emulated
    elif [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ]; then
        echo "run.sh: no GPU here (neither /dev/nvidiactl nor /dev/dxg): nothing was run"
        exit 77
    fi
fi

# The program, its libraries and Open MPI are those of this folder.
export LD_LIBRARY_PATH=$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} OPAL_PREFIX=$here/usr
export PATH=$here/usr/bin:$here/bin:$PATH
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_plm=isolated
export OMPI_MCA_btl=self,vader OMPI_MCA_btl_vader_single_copy_mechanism=none
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_mpi_yield_when_idle=1 PMIX_MCA_pcompress_base_silence_warning=1

mkdir "$results" || exit 2
results=$(cd "$results" && pwd)
rows=() failed=0

# check NAME COMMAND...: the command prints its figure on stdout and its log on stderr
check() {
    local name=$1 figure code result=ok started=$SECONDS
    shift
    (set -e; "$@") >"$results/$name.figure" 2>"$results/$name.log" </dev/null
    code=$?
    figure=$(tail -n 1 "$results/$name.figure")
    if [ $code = 77 ]; then
        result=skipped
    elif [ $code != 0 ]; then
        result=FAILED
        failed=$((failed + 1))
        tail -n 15 "$results/$name.log" >&2
    fi
    rows+=("| $name | $result | $figure |")
    printf '%-28s %-8s %4d s  %s\n' "$name" $result $((SECONDS - started)) "$figure"
}

# train NAME RANKS OPTION...: toy.ini's model into results/NAME; RANKS 0: without mpirun
train() {
    local name=$1 ranks=$2 start=()
    shift 2
    [ "$ranks" = 0 ] || start=(mpirun -n "$ranks")
    timeout 300 "${start[@]}" "$tessera" train "$here/toy.ini" --set run.dir="$results/$name" "${short[@]}" "$@" >&2
}

# The number behind "KEY": in a file of JSON; the last one if there are several
number() {
    awk -v key="\"$1\":" '{
        while ((at = index($0, key)) > 0) {
            $0 = substr($0, at + length(key))
            if (match($0, /^ *-?[0-9.]+([eE][-+]?[0-9]+)?/)) value = substr($0, RSTART, RLENGTH)
        }
    } END { if (value == "") exit 1; print value + 0 }' "$2"
}

# Step and loss, one line a step; of a step that was repeated the later line
losses() {
    awk 'match($0, /"step": *[0-9]+/) {
        step = substr($0, RSTART + 7, RLENGTH - 7) + 0
        if (match($0, /"loss": *[-+.0-9a-zA-Z]+/)) {
            loss[step] = substr($0, RSTART + 7, RLENGTH - 7)
            last = step > last ? step : last
        }
    } END { for (step = 1; step <= last; ++step) print step, loss[step] }' "$results/$1/metrics.jsonl"
}

# close BOUND A B: are the losses of two runs that close? Prints the largest difference.
close() {
    losses "$2" >"$results/$2.losses"
    losses "$3" >"$results/$3.losses"
    awk -v bound="$1" '
        NR == FNR { first[$1] = $2; count = NR; next }
        { difference = first[$1] - $2
          difference = difference < 0 ? -difference : difference
          worst = difference > worst ? difference : worst
          if (!(difference <= bound) || first[$1] !~ /^[0-9.e+-]+$/ || $2 !~ /^[0-9.e+-]+$/) bad = 1 }
        END { printf "losses of %d steps differ by %.2g, at most %g\n", FNR, worst, bound
              exit bad || FNR != count || count == 0 }' "$results/$2.losses" "$results/$3.losses"
}

# ---- tests --------------------------------------------------------------------------------------

kernels() {
    "$here/bin/$1" >&2
    awk 'match($0, /PASSED *\] [0-9]+ test/) { split(substr($0, RSTART), w, " "); count = w[3] }
         END { print (count ? count : "no") " tests"; exit !count }' "$results/$1.log"
}

same_as_cpu() {
    local bound=$1 name=$2
    shift 2
    train "$name.cpu" 0 --set run.device=cpu "$@"
    train "$name.cuda" 0 --set run.device=cuda "$@"
    close "$bound" "$name.cpu" "$name.cuda"
}

# Sizes that the tensor core kernels and cuDNN take
readonly ALIGNED=(--set model.hidden_size=128 --set model.num_attention_heads=2
    --set model.num_key_value_heads=1 --set model.head_dim=64 --set model.moe_intermediate_size=64
    --set data.seq_len=32 --set precision.compute=bf16)

# A bound of 0 would be too much: the algorithms of dense products are chosen by timing, anew by every process.
same_again() {
    train again.1 0 --set run.device=cuda
    train again.2 0 --set run.device=cuda
    close $ROUNDING again.1 again.2
}

# Both ranks on GPU 0: what they exchange goes through pinned memory and MPI, as NCCL refuses that.
two_ranks() {
    local name=$1
    shift
    train "$name.cpu" 0 --set run.device=cpu
    [ $kind = emulated ] || export TESSERA_CUDA=cuda:0
    train "$name.cuda" 2 --set run.device=cuda --set parallel.collectives=mpi "$@"
    close $ROUNDING "$name.cpu" "$name.cuda"
}

resumed() {
    local device=$1 ranks=$2 bound=$3
    train "straight.$device" "$ranks" --set run.device="$device"
    train "resumed.$device" "$ranks" --set run.device="$device" --stop-at 2
    train "resumed.$device" "$ranks" --set run.device="$device" --resume latest
    close "$bound" "straight.$device" "resumed.$device"
}

crossing() {
    train crossing.cpu 0 --set run.device=cpu
    train crossing.both 0 --set run.device=cuda --stop-at 1
    train crossing.both 2 --set run.device=cpu --resume latest --stop-at 2
    train crossing.both 0 --set run.device=cuda --resume latest
    close $ROUNDING crossing.cpu crossing.both
}

evaluated() {
    local first=''
    for device in "$@"; do
        timeout 300 "$tessera" eval "$results/straight.$1" --data "$here/data/valid.txt" --max-tokens 2000 \
            --json --device "$device" >"$results/eval.$device.json"
        loss=$(number loss "$results/eval.$device.json")
        first=${first:-$loss}
        awk -v a="$first" -v b="$loss" -v bound=$ROUNDING 'BEGIN { exit !(a - b <= bound && b - a <= bound) }'
    done
    echo "loss $loss on $(IFS=,; echo "$*")"
}

quickstart() {
    local size=(--set train.steps=200) fall=1.5
    if [ $kind = emulated ]; then
        size=(--set train.steps=2 --set train.global_batch=1 --set data.seq_len=16
            --set model.num_hidden_layers=1 --set optim.warmup_steps=1)
        fall=0
    fi
    timeout 600 "$tessera" train "$here/quickstart.ini" --set run.dir="$results/quickstart" \
        --set run.device=cuda --set precision.compute=bf16 --set train.valid_every=0 \
        --set checkpoint.every=0 --set data.train="$here/data/train.txt" \
        --set data.valid="$here/data/valid.txt" "${size[@]}" >&2
    losses quickstart >"$results/quickstart.losses"
    awk -v fall=$fall -v rate="$(number tokens_per_s "$results/quickstart/metrics.jsonl" || echo unknown)" '
        NR == 1 { first = $2 }
        END { printf "loss %.3f to %.3f in %d steps, %s tokens/s\n", first, $2, NR, rate
              exit !(NR > 1 && first - $2 > fall) }' "$results/quickstart.losses"
}

# ---- benchmarks ---------------------------------------------------------------------------------

# GPU memory in use by second, while the command runs; the largest is what it needed.
watch_memory() {
    local log=$1 watcher code=0
    shift
    : >"$log"
    if ! command -v nvidia-smi >/dev/null; then
        "$@"
        return
    fi
    while sleep 1; do nvidia-smi -i 0 --query-gpu=memory.used --format=csv,noheader,nounits; done >"$log" &
    watcher=$!
    "$@" || code=$?
    kill $watcher
    return $code
}

peer_step() {
    watch_memory "$results/peer.memory" timeout 600 \
        "$tessera" bench step "$here/peer.ini" --steps 20 --profile --json >"$results/peer.json"
    awk -v rate="$(number tokens_per_s "$results/peer.json")" -v peer=$PEER_TOKENS_PER_S '
        $1 > most { most = $1 }
        END { printf "%.0f tokens/s, %.2f of PyTorch on an H100, ", rate, rate / peer
              if (most) printf "%.1f GiB on the GPU\n", most / 1024
              else print "GPU memory unknown: no nvidia-smi" }' "$results/peer.memory"
}

operators() {
    timeout 600 "$tessera" bench ops --device cuda --json >"$results/ops.json"
    awk -F'"case"' '{ cases += NF - 1 } END { print cases " cases, see ops.json"; exit !cases }' "$results/ops.json"
}

short=()
if [ $kind = cpu ]; then
    short=(--set train.steps=6)
    check resume-on-cpu-2-ranks resumed cpu 2 0
    check evaluation evaluated cpu
else
    if [ $kind = emulated ]; then
        short=(--set train.steps=3)
    fi
    for program in "$here"/bin/gpu_*; do
        check "${program##*/}" kernels "${program##*/}"
    done
    check step-f32 same_as_cpu $ROUNDING f32
    check step-bf16 same_as_cpu $ROUNDING_BF16 bf16 --set precision.compute=bf16
    check step-bf16-aligned same_as_cpu $ROUNDING_BF16 aligned "${ALIGNED[@]}"
    check same-run-repeats same_again
    check two-ranks-one-gpu two_ranks two
    check experts-on-two-ranks two_ranks experts --set parallel.ep=2
    check resume-on-cuda resumed cuda 0 $ROUNDING
    check checkpoint-cuda-cpu-cuda crossing
    check evaluation evaluated cuda cpu
    check quickstart quickstart
    if [ $kind = gpu ]; then
        check bench-step-peer peer_step
        check bench-ops operators
    fi
fi

{
    echo "$(date -u +%F), $(head -n 1 "$here/VERSION" 2>/dev/null), $kind"
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null
    printf '\n| test | result | figure |\n|---|---|---|\n'
    printf '%s\n' "${rows[@]}"
} >"$results/table.md"
cat "$results/table.md"
[ $failed = 0 ]
