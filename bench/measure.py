"""Measure cases: everybody takes turns, beside the limits of the machine, and each reading is summarised."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from fastvae import __version__, backends
from fastvae.bench.cases import Case
from fastvae.bench.contestants import LIMITS, Contestant
from fastvae.bench.processes import Process, rounds_of_turns, started

__all__ = ["identity", "machine", "measure"]

# Repetitions of a limit's work in one turn.
_LIMIT_STEPS = 3


def measure(
    case: Case,
    contestants: Sequence[Contestant],
    *,
    threads: Sequence[int],
    rounds: int,
    steps: int | None = None,
    with_limits: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time a case.

    Parameters
    ----------
    case : Case
    contestants : sequence of Contestant
    threads : sequence of int
        Each contestant runs on each of these numbers of threads.
    rounds : int
        Turns of everybody that count; one before them does not.
    steps : int, optional
        Steps of a turn; by default the case's.
    with_limits : bool
        Measure the machine's limits in the same rounds.
    say : callable
        Told what is going on.

    Returns
    -------
    dict
        JSON-serialisable.
    """
    steps = steps or case.steps
    everybody: list[tuple[Contestant, Case | None]] = [(contestant, case) for contestant in contestants]
    if with_limits:
        everybody += [(limit, None) for limit in LIMITS]
    with started(everybody, threads, lambda line: say(f"{case.name}: {line}")) as (processes, skipped):
        rounds_of_turns(
            processes,
            skipped,
            rounds=rounds,
            steps=lambda process: _LIMIT_STEPS if process.contestant in LIMITS else steps,
            say=lambda line: say(f"{case.name}: {line}"),
        )
        limits = [_limit(process) for process in processes if process.contestant in LIMITS]
        rows = [_row(case, process, steps, limits) for process in processes if process.contestant not in LIMITS]
        data = next(
            (
                {key: process.ready[key] for key in ("data", "bytes")}
                for process in processes
                if process.contestant not in LIMITS
            ),
            {"data": None, "bytes": None},
        )
    _add_ratios(rows)
    return {
        "case": case.name,
        "text": case.text,
        "kind": case.kind,
        "data": data["data"],
        "batch_size": case.batch_size,
        "gflop_per_step": case.flops / 1e9,
        "megabytes_per_step": data["bytes"] and data["bytes"] / 1e6,
        "steps": steps,
        "rounds": rounds,
        "limits": limits,
        "results": rows,
        "skipped": skipped,
    }


def identity(process: Process) -> dict[str, Any]:
    """Name whom a result is of."""
    contestant = process.contestant
    return {
        "engine": contestant.name,
        "precision": contestant.precision,
        "threads": process.threads,
        "is_ours": contestant.is_ours,
    }


def _percentiles(values: Iterable[float]) -> dict[str, float]:
    p20, p50, p80 = np.percentile(list(values), (20, 50, 80)).tolist()
    return {"p20": p20, "p50": p50, "p80": p80}


def _limit(process: Process) -> dict[str, Any]:
    is_product = "gflop" in process.ready
    work = process.ready["gflop" if is_product else "gigabytes"] * _LIMIT_STEPS
    rates = [work / reading["seconds"] for reading in process.readings]
    return {
        "limit": process.contestant.name,
        "precision": process.contestant.precision,
        "threads": process.threads,
        "unit": "GFLOP/s" if is_product else "GB/s",
        "size": process.ready["size"],
        "median": float(np.median(rates)),
        "max": max(rates),
    }


def _gemm_limit(limits: list[dict[str, Any]], precision: str, threads: int) -> float | None:
    """Return the best median of a precision's matrix products."""
    medians = [
        limit["median"]
        for limit in limits
        if (limit["unit"], limit["precision"], limit["threads"]) == ("GFLOP/s", precision, threads)
    ]
    return max(medians, default=None)


def _row(case: Case, process: Process, steps: int, limits: list[dict[str, Any]]) -> dict[str, Any]:
    times = _percentiles(1e3 * reading["seconds"] / steps for reading in process.readings)
    gflops = case.flops / times["p50"] / 1e6
    limit = _gemm_limit(limits, process.contestant.precision, process.threads)
    peak = process.peak_bytes()
    return {
        **identity(process),
        "ms_per_step": times,
        "samples_per_second": 1e3 * case.batch_size / times["p50"],
        "gflops": gflops,
        "share_of_gemm_limit": gflops / limit if limit else None,
        "peak_megabytes": peak and peak / 1e6,
        "import_seconds": process.ready["import_seconds"],
        "first_step_seconds": process.ready["first_step_seconds"],
        "phases": _phases(case, process, steps, limit),
    }


def _phases(case: Case, process: Process, steps: int, limit: float | None) -> list[dict[str, Any]] | None:
    """Summarise the medians of an engine's phases, in the order in which it gives them."""
    readings = [reading["phases"] for reading in process.readings]
    if not readings or readings[0] is None:
        return None
    phases = []
    for name in readings[0]:
        seconds = float(np.median([reading.get(name, 0.0) for reading in readings])) / steps
        flops = case.phase_flops(name)
        gflops = flops / seconds / 1e9 if flops and seconds else None
        phases.append(
            {
                "phase": name,
                "ms_per_step": 1e3 * seconds,
                "gflop": flops and flops / 1e9,
                "gflops": gflops,
                "share_of_gemm_limit": gflops / limit if gflops and limit else None,
            }
        )
    return phases


def _add_ratios(rows: list[dict[str, Any]]) -> None:
    """Compare each time with the least of ours and of the peers', of the same precision and number of threads."""
    for row in rows:
        for name, is_ours in (("time_over_ours", True), ("time_over_fastest_peer", False)):
            rivals = [
                other["ms_per_step"]["p50"]
                for other in rows
                if other["is_ours"] == is_ours
                and (other["precision"], other["threads"]) == (row["precision"], row["threads"])
            ]
            row[name] = row["ms_per_step"]["p50"] / min(rivals) if rivals else None


def machine() -> dict[str, Any]:
    """Name the processor and the versions that a result depends on."""
    versions = {"fastvae": __version__, "python": platform.python_version(), "numpy": np.__version__}
    for peer in ("torch", "jax", "numba"):
        with contextlib.suppress(PackageNotFoundError):
            versions[peer] = version(peer)
    available = [name for name in backends.NAMES if backends.unavailable(name) is None]
    isa = {name: backends.isa_level(backends.load(name)) for name in available}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": backends.processor(),
        "processors": backends.default_threads(),
        "isa_level": next((level for name, level in isa.items() if level and name != "cuda"), None),
        "device": isa.get("cuda"),
        "versions": versions,
    }
