#!/usr/bin/env bash
# Install, test and time the CUDA engine on a machine with a GPU, in nine minutes; no internet is needed.
#
#   bench/gpu.sh OUTDIR [PART...]
#
# OUTDIR gets a log of every part, tests.xml, the JSON of each measurement and gpu.json, which joins them. A part that
# fails or is late takes no other with it; PARTs run these alone, after the install. FASTVAE_GPU_DRY_RUN=1 prints what
# would be run, with the limit of each part in seconds.
#
# The Python that PYTHON names (python3) needs CuPy with cuBLAS, NumPy, SciPy, scikit-learn, Numba, safetensors, click,
# tqdm, platformdirs, pytest, pytest-benchmark, scikit-build-core, pybind11, CMake and Ninja; PyTorch and JAX for the
# peers.
set -uo pipefail
out=$(realpath -m "${1:?usage: bench/gpu.sh OUTDIR [PART...]}")
shift
parts=" $* "
cd "$(dirname "$0")/.." || exit 1
dry=${FASTVAE_GPU_DRY_RUN:-}
failed=0

# part NAME SECONDS COMMAND...: run it for at most so long, its output in OUTDIR/NAME.log and the end of it here.
part() {
  local name=$1 seconds=$2 code
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
  timeout --kill-after=5 "$seconds" "$@" >"$out/$name.log" 2>&1
  code=$?
  tail -n 12 "$out/$name.log"
  if [ "$code" -ne 0 ]; then
    failed=1
    printf '%s failed with %s\n' "$name" "$code"
  fi
  return "$code"
}

[ -n "$dry" ] || mkdir -p "$out" || exit 1
# A folder of its own beside what the machine has: a virtual environment made from another one would not see the other's
# packages. -P keeps the checkout, which is not built, out of the way.
export PYTHONPATH=$PWD/build/gpu-site
python=("${PYTHON:-python3}" -P)
gpu=("${python[@]}" -m fastvae.bench.gpu)

# the limits add up to nine minutes
part device 10 nvidia-smi
part install 75 "${python[@]}" -m pip install --quiet --no-index --no-deps --no-build-isolation --upgrade \
  --target "$PYTHONPATH" . || exit 1
part info 15 "$PYTHONPATH/bin/fastvae" info
export FASTVAE_REQUIRE=cuda
part tests 110 "${python[@]}" -m pytest -m "gpu and not slow" --maxfail 40 --junitxml "$out/tests.xml"
part constants 25 "${gpu[@]}" constants --json "$out/constants.json"
part ours 28 "${gpu[@]}" steps ours --seconds 22 --json "$out/ours.json"
part torch 110 "${gpu[@]}" steps torch --seconds 85 --json "$out/torch.json"
part jax 37 "${gpu[@]}" steps jax --seconds 30 --json "$out/jax.json"
part ours-sweep 45 "${gpu[@]}" steps ours --sweep --seconds 38 --json "$out/ours-sweep.json"
part torch-sweep 25 "${gpu[@]}" steps torch --sweep --seconds 18 --json "$out/torch-sweep.json"
part jax-sweep 20 "${gpu[@]}" steps jax --sweep --seconds 12 --json "$out/jax-sweep.json"
results=()
for name in constants ours torch jax ours-sweep torch-sweep jax-sweep; do
  results+=("$out/$name.json")
done
part report 5 "${gpu[@]}" report "${results[@]}" --json "$out/gpu.json"
part sanitizer 35 "${python[@]}" -m pytest -m "gpu and slow" tests/test_cuda.py -k "memcheck or racecheck"
exit "$failed"
