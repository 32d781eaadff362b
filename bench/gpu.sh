#!/usr/bin/env bash
# Install, test and time the CUDA engine on a machine with a GPU, in nine minutes; no internet is needed.
#
#   bench/gpu.sh OUTDIR            everything
#   bench/gpu.sh OUTDIR check      in five minutes: do the kernels run, are they right, how long do they take
#   bench/gpu.sh OUTDIR measure    in seven: every timing, ours and the peers', for the report
#   bench/gpu.sh OUTDIR PART...    these alone, after the install
#
# Where time on the device is short, `check` comes first, so that what it finds is mended before the peers are timed.
# OUTDIR gets few files: gpu.log, what every part has printed; tests.log and tests.xml; the JSON of each measurement and
# gpu.json, which joins them. A part that fails or is late takes no other with it. FASTVAE_GPU_DRY_RUN=1 prints what
# would be run, with the limit of each part in seconds.
#
# The Python that PYTHON names (python3) needs CuPy with NVRTC, cuBLAS and CUDA's headers, NumPy, SciPy, scikit-learn,
# Numba, safetensors, click, tqdm, joblib, pandas, pytest, pytest-benchmark, scikit-build-core, pybind11, CMake and Ninja;
# PyTorch and JAX for the peers. With pytest-xdist and pytest-timeout the tests survive kernels that hang or fail badly.
set -uo pipefail
out=$(realpath -m "${1:?usage: bench/gpu.sh OUTDIR [PART...]}")
shift
parts=" $* "
first_parts="device packages cupy info"
parts=${parts/ check / $first_parts tests constants ours report sanitizer }
parts=${parts/ measure / $first_parts constants ours run estimators torch jax ours-sweep torch-sweep jax-sweep report }
cd "$(dirname "$0")/.." || exit 1
dry=${FASTVAE_GPU_DRY_RUN:-}
failed=0
summary=()

# part NAME SECONDS COMMAND...: run it for at most so long, its output in the log and the end of it here. It is
# interrupted first, by itself alone, so that it can tell what it has, and killed a quarter of a minute later.
part() {
  local name=$1 seconds=$2 log=$out/gpu.log before code
  shift 2
  case $parts in
    "  " | *" $name "*) ;;
    *) [ "$name" = install ] || return 0 ;;
  esac
  printf '=== %s %s\n' "$name" "$seconds"
  if [ -n "$dry" ]; then
    printf '%s\n' "$*"
    return 0
  fi
  [ "$name" = tests ] && log=$out/tests.log
  printf '=== %s %s\n' "$name" "$*" >>"$log"
  before=$(wc -l <"$log")
  timeout --foreground --signal=INT --kill-after=15 "$seconds" "$@" >>"$log" 2>&1
  code=$?
  tail -n "+$((before + 1))" "$log" | tail -n 12
  summary+=("$name: $code, $(tail -n 1 "$log" | cut -c -200)")
  if [ "$code" -ne 0 ]; then
    failed=1
    printf '%s failed with %s\n' "$name" "$code" | tee -a "$log"
  fi
  return "$code"
}

[ -n "$dry" ] || mkdir -p "$out" || exit 1
# A folder of its own beside what the machine has: a virtual environment made from another one would not see the other's
# packages. -P keeps the checkout, which is not built, out of the way.
export PYTHONPATH=$PWD/build/gpu-site
python=("${PYTHON:-python3}" -P)
gpu=("${python[@]}" -m fastvae.bench.gpu)
# Eight processes for the tests, each replaced when it is lost.
workers=()
"${python[@]}" -c 'import pytest_timeout, xdist' 2>/dev/null &&
  workers=(-n 8 --timeout 40 --timeout-method thread)

# the limits add up to nine minutes
part device 5 nvidia-smi
part packages 5 "${python[@]}" -m pip list
part install 50 "${python[@]}" -m pip install --quiet --no-index --no-deps --no-build-isolation --upgrade \
  --target "$PYTHONPATH" . || exit 1
part cupy 10 "${python[@]}" -c 'import cupy; cupy.show_config()'
part info 10 "$PYTHONPATH/bin/fastvae" info
export FASTVAE_REQUIRE=cuda
part tests 100 env OPENBLAS_NUM_THREADS=2 COLUMNS=250 "${python[@]}" -m pytest -m "gpu and not slow" "${workers[@]}" --maxfail 40 \
  --continue-on-collection-errors --junitxml "$out/tests.xml"
part constants 25 "${gpu[@]}" constants --json "$out/constants.json"
part ours 38 "${gpu[@]}" steps ours --seconds 32 --json "$out/ours.json"
part run 45 "${gpu[@]}" run --seconds 35 --json "$out/ours.json"
part estimators 12 "${gpu[@]}" estimators --json "$out/ours.json"
part torch 83 "${gpu[@]}" steps torch --seconds 60 --json "$out/torch.json"
part jax 37 "${gpu[@]}" steps jax --seconds 30 --json "$out/jax.json"
part ours-sweep 28 "${gpu[@]}" steps ours --sweep --go-on --seconds 22 --json "$out/ours.json"
part torch-sweep 22 "${gpu[@]}" steps torch --sweep --go-on --seconds 16 --json "$out/torch.json"
part jax-sweep 20 "${gpu[@]}" steps jax --sweep --go-on --seconds 12 --json "$out/jax.json"
part report 5 "${gpu[@]}" report "$out"/{constants,ours,torch,jax}.json --json "$out/gpu.json"
[ ${#workers[@]} -eq 0 ] || workers+=(--timeout 50)
part sanitizer 45 "${python[@]}" -m pytest -m "gpu and slow" "${workers[@]}" tests/test_cuda.py
if [ -z "$dry" ]; then
  printf '=== failed tests, exit codes\n'
  grep -sE '^(FAILED|ERROR) ' "$out/tests.log" | cut -c -200 | head -n 40
  printf '%s\n' "${summary[@]}"
fi
exit "$failed"
