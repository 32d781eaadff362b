"""Time training steps side by side: our backends, eager PyTorch and JAX, interleaved, medians and ratios.

``python -m fastvae.bench [--case mnist] [--threads N] [--steps 100] [--rounds 15]`` prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from fastvae import __version__, backends
from fastvae.bench.cases import CASES, Case
from fastvae.bench.engines import engine_runner
from fastvae.bench.peers import jax_runner, torch_runner


def compare(case: Case, *, n_threads: int, steps: int, rounds: int) -> dict[str, Any]:
    """Run every engine and peer in turn, `rounds` times, and summarise the time per step."""
    data, source = case.data()
    makers: dict[str, Any] = {
        f"fastvae {name}": partial(engine_runner, case, data, backend=name, n_threads=n_threads)
        for name in backends.NAMES
        if backends.unavailable(name) is None
    }
    makers["torch eager"] = partial(torch_runner, case, data, n_threads=n_threads, fused=False)
    makers["torch eager, fused optimizer"] = partial(torch_runner, case, data, n_threads=n_threads, fused=True)
    makers["jax, jit and scan"] = partial(jax_runner, case, data, n_threads=n_threads)
    runners = {}
    for name, make in makers.items():
        try:
            runners[name] = make()
        except ImportError as error:
            print(f"{name}: skipped: {error}", file=sys.stderr)
    times: dict[str, list[float]] = {name: [] for name in runners}
    for round_ in range(rounds + 1):
        for name, run in runners.items():
            start = perf_counter()
            run(steps)
            if round_:  # the first round warms up
                times[name].append((perf_counter() - start) / steps)
    ours = np.median(times[f"fastvae {backends.resolve()}"])
    rows = []
    for name, seconds in times.items():
        p20, p50, p80 = np.percentile(seconds, (20, 50, 80))
        rows.append(
            {
                "engine": name,
                "ms_per_step": {"p20": 1e3 * p20, "p50": 1e3 * p50, "p80": 1e3 * p80},
                "samples_per_second": case.batch_size / p50,
                "dense_gflops": case.flops / p50 / 1e9,
                "time_over_ours": p50 / ours,
            }
        )
    return {
        "case": case.name,
        "data": source,
        "batch_size": case.batch_size,
        "dense_gflop_per_step": case.flops / 1e9,
        "threads": n_threads,
        "steps": steps,
        "rounds": rounds,
        "machine": machine(),
        "results": rows,
    }


def machine() -> dict[str, Any]:
    """Name the processor and the versions that a result depends on."""
    versions = {"fastvae": __version__, "python": platform.python_version(), "numpy": np.__version__}
    for peer in ("torch", "jax"):
        with contextlib.suppress(PackageNotFoundError):
            versions[peer] = version(peer)
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "isa_level": backends.isa_level(backends.load()),
        "versions": versions,
    }


def processor() -> str:
    """Return the processor's model name where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    """Parse the command line and print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m fastvae.bench", description=__doc__)
    parser.add_argument("--case", choices=CASES, default="mnist")
    parser.add_argument("--threads", type=int, default=backends.default_threads())
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    result = compare(CASES[options.case], n_threads=options.threads, steps=options.steps, rounds=options.rounds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
