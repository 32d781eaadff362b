"""Seconds of training until the bound of test rows reaches a value, judged by one evaluation for everybody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from fastvae import backends
from fastvae.bench.cases import CASES, Case
from fastvae.bench.contestants import Contestant
from fastvae.bench.measure import identity
from fastvae.bench.processes import Process, SkippedError, rounds_of_turns, skip, started
from fastvae.data import Dataset
from fastvae.evaluation import evaluate_bound
from fastvae.evaluation.inference import batch_rows
from fastvae.optimizer import Optimizer

__all__ = ["CASE", "time_to_elbo"]

CASE = replace(
    CASES["mnist"],
    name="mnist, Adam",
    text="The paper's MNIST network, minibatches of 100, Adam 1e-3",
    optimizer=Optimizer("adam", learning_rate=1e-3),
    steps=300,
)


def time_to_elbo(
    target: float,
    contestants: Sequence[Contestant],
    *,
    threads: int,
    max_epochs: int,
    case: Case = CASE,
    test_source: str = "mnist test",
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train everybody in turn from the same parameters on the same minibatches, and note when they reach the bound.

    Only the training steps are on the clock: not the import, the compilation (a turn before the first step, which is
    taken back) nor the evaluation, for which everybody gives the parameters back.

    Parameters
    ----------
    target : float
        Mean bound of the test rows in nats per datapoint, one draw.
    contestants : sequence of Contestant
    threads : int
    max_epochs : int
        Who has not reached the target by then has not.
    case : Case
        A turn between two evaluations has its number of steps.
    test_source : str
        As in `fastvae.bench.data.load_rows`.
    say : callable
        Told what is going on.

    Returns
    -------
    dict
        JSON-serialisable.
    """
    test = replace(case, source=test_source, n_rows=10000).load()
    judge = _judge(case, test)
    curves: dict[Process, list[dict[str, float]]] = {}
    pairs = [(contestant, case) for contestant in contestants]
    with started(pairs, [threads], lambda line: say(f"time to ELBO: {line}")) as (processes, skipped):
        rounds_of_turns(processes, skipped, rounds=0, steps=lambda _: case.steps, say=lambda _: None)
        for process in processes:
            process.reset()
            curves[process] = [{"steps": 0, "seconds": 0.0, "elbo": judge(process)}]
        running = list(processes)
        while running:
            for process in tuple(running):
                last = curves[process][-1]
                try:
                    seconds = last["seconds"] + process.run(case.steps)["seconds"]
                    elbo = judge(process)
                    if not np.isfinite(elbo):
                        raise SkippedError(f"its bound is {elbo} after {last['steps'] + case.steps} steps")
                except SkippedError as reason:
                    running.remove(process)
                    skipped.append(skip(process.contestant, threads, reason))
                    continue
                point = {"steps": last["steps"] + case.steps, "seconds": seconds, "elbo": elbo}
                curves[process].append(point)
                say(f"time to ELBO: {process.contestant.key}: {elbo:.2f} after {seconds:.1f} s")
                seen = point["steps"] * case.batch_size
                if elbo >= target or seen >= max_epochs * process.ready["rows"]:
                    running.remove(process)
        rows = [{**identity(process), **_reached(curve, target), "curve": curve} for process, curve in curves.items()]
        data = processes[0].ready["data"] if processes else None
    return {
        "target": target,
        "case": case.name,
        "text": case.text,
        "data": data,
        "test_data": test.name,
        "threads": threads,
        "steps_between_evaluations": case.steps,
        "results": rows,
        "skipped": skipped,
    }


def _judge(case: Case, test: Dataset) -> Callable[[Process], float]:
    """Return the function that evaluates a worker's parameters by our default engine in float32."""
    n_threads, rows = backends.default_threads(), batch_rows(case.network)
    plan = backends.load().plan(case.network, rows=rows, draws=1, precision="fp32", n_threads=n_threads)

    def judge(process: Process) -> float:
        return float(evaluate_bound(plan, process.params(), test, n_draws=1, seed=0).elbo.mean())

    return judge


def _reached(curve: list[dict[str, float]], target: float) -> dict[str, float | None]:
    """Interpolate between two evaluations the seconds and steps at which the curve crosses the target.

    A turn that something else on the machine held up is in the seconds; not in those at the median pace of the turns.
    """
    paces = [(b["seconds"] - a["seconds"]) / (b["steps"] - a["steps"]) for a, b in pairwise(curve)]
    for before, after in pairwise(curve):
        if after["elbo"] >= target:
            share = min(max((target - before["elbo"]) / (after["elbo"] - before["elbo"]), 0.0), 1.0)
            seconds, steps = (before[key] + share * (after[key] - before[key]) for key in ("seconds", "steps"))
            return {"seconds": seconds, "steps": steps, "seconds_at_median_pace": steps * float(np.median(paces))}
    return {"seconds": None, "steps": None, "seconds_at_median_pace": None}
