#!/usr/bin/env bash
# All checks and measurements on a GPU, the most important first, within 9 minutes:
#
#     OUT=gpu_day bash benchmarks/gpu_day.sh                     # everything
#     OUT=gpu_day bash benchmarks/gpu_day.sh trainings compile   # only these
#     TOY=1 bash benchmarks/gpu_day.sh                           # the same commands at a small size on a CPU
#
# Needs one GPU, a CUDA build of torch, and numpy. Each command has a time limit; the limits add up to BUDGET (540 s).
# If a command fails or runs out of time, the next still runs. All output is printed and kept in $OUT (default:
# gpu_day), one log per command and all of it in summary.txt. The exit status is the number of commands that failed.
# PYTHON sets the interpreter.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-gpu_day} PYTHON=${PYTHON:-python} BUDGET=${BUDGET:-540} TOY=${TOY:-}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$OUT"

chosen=" $* "
failed=0
slower=1
# measure NAME LIMIT COMMAND...: run a command for at most LIMIT seconds; what it prints is shown and kept in NAME.log
measure() {
    local name=$1 limit=$(($2 * slower)) start=$SECONDS status=0
    shift 2
    [[ $chosen == "  " || $chosen == *" $name "* ]] || return 0
    [ "$limit" -le $((BUDGET - SECONDS - 3)) ] || limit=$((BUDGET - SECONDS - 3)) # 3 s to end it
    if [ "$limit" -lt 5 ]; then
        printf '\n== %s: skipped, %s s are used up\n' "$name" "$BUDGET"
        failed=$((failed + 1))
        return 0
    fi
    printf '\n== %s (at most %s s): %s\n' "$name" "$limit" "$*"
    timeout --kill-after=3 "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
    status=${PIPESTATUS[0]}
    echo "== $name: exit status $status after $((SECONDS - start)) s"
    [ "$status" -eq 0 ] || failed=$((failed + 1))
}

device=cuda replogle=replogle shapes="replogle norman" few=2000 times=(--repeats 3 --least 0.1) precision=tf32
if [ -n "$TOY" ]; then
    slower=10 BUDGET=$((10 * BUDGET)) # a CPU may be busy
    device=cpu replogle=toy shapes=toy few=20 times=(--repeats 1 --least 0.01) precision=float32
    export TORCHDYNAMO_DISABLE=1 # compiling takes a minute
fi
step=("$PYTHON" benchmarks/step.py --device "$device")
gpu=("$PYTHON" benchmarks/gpu.py --device "$device")
runs=("$PYTHON" benchmarks/gpu_runs.py --device "$device" --shape "$replogle" --steps "$few" --precision "$precision")

main() {
    date -u
    [ -n "$TOY" ] || measure machine 10 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
    measure check 45 "${step[@]}" --shape "$replogle" --check
    measure check_gpu 55 "${gpu[@]}" --shape $shapes --check
    measure step_replogle 60 "${step[@]}" --shape "$replogle" "${times[@]}"
    [ -n "$TOY" ] || measure step_norman 70 "${step[@]}" --shape norman "${times[@]}"
    measure together 70 "${gpu[@]}" --shape "$replogle" --parts together
    measure compile 75 "${gpu[@]}" --shape "$replogle" --parts compiled
    measure trainings 35 "${runs[@]}" --parts trainings
    measure evaluation 30 "${runs[@]}" --parts evaluation
    measure kernels 25 "${runs[@]}" --parts kernels
    measure gpu 65 "${gpu[@]}" --shape $shapes
    printf '\n%s commands failed or were skipped; the logs are in %s\n' "$failed" "$OUT"
    return "$failed"
}

main 2>&1 | tee "$OUT/summary.txt"
exit "${PIPESTATUS[0]}"
