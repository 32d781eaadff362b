#!/usr/bin/env bash
# Install, test and time the CUDA engine on a machine with a GPU; no internet is needed. Logs and JSON go to OUTDIR.
# It needs CuPy, NumPy, SciPy, scikit-learn, Numba, safetensors, click, tqdm, platformdirs, pytest, pytest-benchmark,
# scikit-build-core, pybind11, CMake and Ninja in the Python that PYTHON names (python3).
set -uo pipefail
out=$(realpath -m "${1:?usage: bench/gpu.sh OUTDIR}")
mkdir -p "$out"
cd "$(dirname "$0")/.."
failed=0

# step NAME SECONDS COMMAND...: run it for at most so long, its output in OUTDIR/NAME.log and the end of it here.
step() {
  local name=$1 seconds=$2
  shift 2
  printf '\n=== %s\n' "$name"
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1
  local code=$?
  tail -n 15 "$out/$name.log"
  [ "$code" -eq 0 ] || { failed=1; printf '%s failed with %s\n' "$name" "$code"; }
  return "$code"
}

# the limits add up to nine minutes
step device 20 nvidia-smi
step environment 30 "${PYTHON:-python3}" -m venv --clear --system-site-packages .venv-gpu
python=.venv-gpu/bin/python
step install 80 "$python" -m pip install --no-index --no-deps --no-build-isolation . || exit 1
step info 20 .venv-gpu/bin/fastvae info
export FASTVAE_REQUIRE=cuda
step tests 150 "$python" -m pytest -m "gpu and not slow" --junitxml "$out/tests.xml"
step steps 80 "$python" -m fastvae.bench.gpu --json "$out/steps.json"
step mnist 40 "$python" -m fastvae.bench --case mnist --engine "fastvae cuda" --engine jax --rounds 3 --json "$out/mnist.json"
step sanitizer 120 "$python" -m pytest -m "gpu and slow" tests/test_cuda.py
exit "$failed"
