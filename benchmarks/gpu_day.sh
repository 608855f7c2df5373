#!/usr/bin/env bash
# All measurements on a GPU, the most important first, within 14 minutes:
#
#     OUT=gpu_day bash benchmarks/gpu_day.sh                # everything
#     OUT=gpu_day bash benchmarks/gpu_day.sh runs compile   # only these
#
# Needs one GPU, a CUDA build of torch, and numpy. Each command has a time limit and its own log. If one fails or runs
# out of time, the next still runs. All logs are written to $OUT (default: gpu_day). The exit status is the number of
# commands that failed. PYTHON sets the interpreter, BUDGET the seconds for everything (840).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=${OUT:-gpu_day} PYTHON=${PYTHON:-python} BUDGET=${BUDGET:-840}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$OUT"
exec > >(tee "$OUT/summary.txt") 2>&1

chosen=" $* "
failed=0
# measure NAME LIMIT COMMAND...: run a command for at most LIMIT seconds, write all it prints to NAME.log, show the end
measure() {
    local name=$1 limit=$2 start=$SECONDS status=0
    shift 2
    [[ $chosen == "  " || $chosen == *" $name "* ]] || return 0
    [ "$limit" -le $((BUDGET - SECONDS)) ] || limit=$((BUDGET - SECONDS))
    if [ "$limit" -lt 20 ]; then
        echo "== $name: skipped, $BUDGET s are used up"
        failed=$((failed + 1))
        return 0
    fi
    printf '\n== %s (at most %s s): %s\n' "$name" "$limit" "$*"
    timeout --kill-after=10 "$limit" "$@" >"$OUT/$name.log" 2>&1 || status=$?
    tail -n 40 "$OUT/$name.log"
    echo "== $name: exit status $status after $((SECONDS - start)) s"
    [ "$status" -eq 0 ] || failed=$((failed + 1))
}

date -u
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || echo "nvidia-smi failed: is there a GPU?"
"$PYTHON" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda); print(torch.cuda.get_device_name())'

step=("$PYTHON" benchmarks/step.py --device cuda)
measure check 60 "${step[@]}" --check
measure gpu 120 "$PYTHON" benchmarks/gpu.py
measure step_replogle 80 "${step[@]}" --matmul tf32 --repeats 5
measure step_norman 100 "${step[@]}" --matmul tf32 --repeats 3 --shape norman
measure runs 80 "$PYTHON" benchmarks/gpu_runs.py
measure together 140 "$PYTHON" benchmarks/gpu.py --together
# The same under NVIDIA's MPS, if this user may start it: processes then run on the GPU at the same time.
if command -v nvidia-cuda-mps-control >/dev/null; then
    CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)
    CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY
    export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    if nvidia-cuda-mps-control -d; then
        measure together_mps 120 "$PYTHON" benchmarks/gpu.py --together
        echo quit | nvidia-cuda-mps-control
    fi
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
fi
measure compile 140 "$PYTHON" benchmarks/gpu.py --compile

printf '\n%s commands failed or were skipped; the logs are in %s\n' "$failed" "$OUT"
exit "$failed"
