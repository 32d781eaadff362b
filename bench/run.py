"""A whole run by the names of its parts, and its result as one JSON document."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastvae import backends
from fastvae.bench.cases import CASES
from fastvae.bench.contestants import Contestant, everybody
from fastvae.bench.measure import machine, measure
from fastvae.bench.sweeps import AXES, sweep
from fastvae.bench.time_to_elbo import time_to_elbo
from fastvae.errors import DataError, one_line
from fastvae.optional import require

__all__ = ["read", "run"]

FORMAT = "fastvae bench 1"
# Who stands for the peers where everybody would take long: on the paper's step the fastest of each precision, and eager
# PyTorch, which a compiled one was within 6 % of there.
_BEST_PEERS = ("torch eager", "jax fp32")
_ROUNDS, _SWEEP_ROUNDS = 15, 5


def run(
    *,
    cases: Sequence[str],
    axes: Sequence[str],
    target: float | None,
    engines: Sequence[str],
    threads: Sequence[int],
    rounds: int | None = None,
    steps: int | None = None,
    max_epochs: int = 20,
    with_page: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure cases, sweeps and the time to a bound.

    Parameters
    ----------
    cases, axes : sequence of str
        Names of `CASES` and `AXES`, or ``"all"``.
    target : float, optional
        Bound to reach.
    engines : sequence of str
        Beginnings of the names of those that take part; none for the default choice.
    threads : sequence of int
        Sweeps and the time to a bound use the largest.
    rounds, steps, max_epochs
        As in `measure`, `sweep` and `time_to_elbo`.
    with_page : bool
        Fail now, and not after the run, when matplotlib is missing.
    say : callable
        Told what is going on.

    Returns
    -------
    dict
        JSON-serialisable.

    Raises
    ------
    ValueError
        A name is unknown.
    ImportError
        matplotlib is needed and missing.
    """
    if with_page:
        require("matplotlib", extra="plot", for_what="a plot").use("svg")
    case_names, axis_names = _names("case", cases, CASES), _names("sweep", axes, AXES)
    known = everybody()
    chosen = _chosen(known, engines)
    few = chosen if engines else _chosen(known, (f"fastvae {backends.resolve()}", *_BEST_PEERS))
    return {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": machine(),
        "cases": [
            measure(CASES[name], chosen, threads=threads, rounds=rounds or _ROUNDS, steps=steps, say=say)
            for name in case_names
        ],
        "sweeps": [
            sweep(axis, few, max_threads=max(threads), rounds=rounds or _SWEEP_ROUNDS, steps=steps, say=say)
            for axis in axis_names
        ],
        "times_to_elbo": []
        if target is None
        else [time_to_elbo(target, few, threads=max(threads), max_epochs=max_epochs, say=say)],
    }


def read(path: Path) -> dict[str, Any]:
    """Read a document that `run` made and somebody saved.

    Raises
    ------
    DataError
        The file is no such document.
    """
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({one_line(error)}): give a file that --json has written") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise DataError(f"{path} is not a result of this fastvae bench: give a file that its --json has written")
    return document


def _names(option: str, names: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    for name in names:
        if name not in known and name != "all":
            raise ValueError(f"unknown {option} {name!r}: choose from all, {', '.join(known)}")
    return list(known) if "all" in names else list(dict.fromkeys(names))


def _chosen(known: Mapping[str, Contestant], starts: Sequence[str]) -> list[Contestant]:
    for start in starts:
        if not any(key.startswith(start) for key in known):
            raise ValueError(f"no engine's name starts with {start!r}: choose from {', '.join(known)}")
    return [one for key, one in known.items() if not starts or key.startswith(tuple(starts))]
