"""How the time of a step grows with threads, minibatch and widths: the paper's MNIST step with one of them changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fastvae.bench.cases import CASES, Case
from fastvae.bench.contestants import Contestant
from fastvae.bench.measure import measure

__all__ = ["AXES", "sweep"]

# axis -> (what it is, values); those of the threads are given by the machine
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "threads": ("threads", ()),
    "M": ("rows of a minibatch", (100, 200, 500, 1000, 2000, 4000)),
    "H": ("hidden units", (128, 256, 512, 1024, 2048)),
    "D": ("data dimensions", (196, 392, 784, 1568, 3136)),
}

# FLOPs of a turn.
_TURN_FLOPS = 1e11


def sweep(
    axis: str,
    contestants: Sequence[Contestant],
    *,
    max_threads: int,
    rounds: int,
    base: Case = CASES["mnist"],
    values: Sequence[int] | None = None,
    steps: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Time the base case at each value of an axis, everybody in turn at each point.

    Parameters
    ----------
    axis : {"threads", "M", "H", "D"}
    contestants : sequence of Contestant
    max_threads : int
        The end of the axis of threads; every point of the others runs on this many.
    rounds : int
        Turns of each point.
    base : Case
    values : sequence of int, optional
        By default those of `AXES`.
    steps : int, optional
        Steps of a turn; by default as many at each point as make the turns equally long in FLOPs.
    say : callable
        Told what is going on.

    Returns
    -------
    dict
        JSON-serialisable.
    """
    text, default = AXES[axis]
    points, skipped = [], []
    for value in values or default or _thread_counts(max_threads):
        case = _at(base, axis, value)
        result = measure(
            case,
            contestants,
            threads=[value if axis == "threads" else max_threads],
            rounds=rounds,
            steps=steps or max(1, round(_TURN_FLOPS / case.flops)),
            with_limits=False,
            say=lambda line: say(f"{axis} = {value}, {line}"),  # noqa: B023
        )
        skipped += [{**skip, "value": value} for skip in result["skipped"]]
        points += [
            {
                "engine": row["engine"],
                "precision": row["precision"],
                "is_ours": row["is_ours"],
                "value": value,
                "ms_per_step": row["ms_per_step"],
                "samples_per_second": row["samples_per_second"],
                "gflops": row["gflops"],
            }
            for row in result["results"]
        ]
    return {"axis": axis, "text": text, "case": base.name, "threads": max_threads, "points": points, "skipped": skipped}


def _thread_counts(most: int) -> list[int]:
    """Return the powers of two up to `most`, and `most`."""
    return sorted({2**i for i in range(most.bit_length())} | {most})


def _at(base: Case, axis: str, value: int) -> Case:
    if axis == "threads":
        return base
    name = f"{base.name}, {axis} = {value}"
    if axis == "M":
        return replace(base, name=name, batch_size=value)
    if axis == "H":
        return replace(base, name=name, network=replace(base.network, encoder_hidden=(value,), decoder_hidden=(value,)))
    return replace(base, name=name, network=replace(base.network, data_dim=value), source="grey levels", n_rows=10000)
