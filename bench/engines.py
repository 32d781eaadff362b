"""A case on one of our backends; see `fastvae.bench.worker` for what a runner is."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae import backends
from fastvae.bench.cases import Case
from fastvae.data import Dataset
from fastvae.evaluation import encode, evaluate_bound
from fastvae.evaluation.inference import batch_rows
from fastvae.kernels import Array
from fastvae.network import initialise

__all__ = ["make"]


def make(case: Case, data: Dataset, *, n_threads: int, backend: str, precision: str) -> _Training | _Inference:
    """Return the runner of a case.

    Raises
    ------
    BackendError
        The backend cannot run here in this precision.
    """
    engine = backends.load(backend)
    rows = case.batch_size if case.kind == "train" else batch_rows(case.network)
    plan = engine.plan(case.network, rows=rows, draws=1, precision=precision, n_threads=n_threads)
    return _Training(case, data, plan) if case.kind == "train" else _Inference(case, data, plan)


class _Training:
    """Consecutive steps in one ``train_steps`` call."""

    def __init__(self, case: Case, data: Dataset, plan: Any) -> None:
        self.case, self.data, self.plan = case, data, plan
        self.done = np.zeros(1, np.int64)
        self.seen: dict[str, float] = {}
        self.reset()

    def reset(self) -> None:
        self.step, self.flat = 0, initialise(self.case.network, seed=0)
        self.state = np.zeros((self.case.optimizer.n_slots, self.flat.size), np.float32)

    def run(self, order: Array) -> None:
        stats = np.zeros((len(order), 2))
        self.plan.train_steps(
            params=self.flat,
            state=self.state,
            optimizer=self.case.optimizer,
            data=self.data.rows,
            order=order,
            scale=self.data.scale,
            binarize="none",
            seed=0,
            step=self.step,
            estimator="sgvb-b",
            kl_weight=1.0,
            kl_warmup=0,
            decay=0.0,
            stats=stats,
            done=self.done,
        )
        if self.done[0] < len(order):
            raise ArithmeticError(f"the bound of step {self.step + self.done[0]} is not finite")
        self.step += len(order)

    def params(self) -> Array:
        return self.flat

    def phases(self) -> dict[str, float] | None:
        before, self.seen = self.seen, getattr(self.plan, "phase_seconds", {})
        return {name: seconds - before.get(name, 0.0) for name, seconds in self.seen.items()} or None


class _Inference:
    """Passes over all rows by the functions that users call."""

    def __init__(self, case: Case, data: Dataset, plan: Any) -> None:
        self.case, self.data, self.plan = case, data, plan
        self.flat = initialise(case.network, seed=0)

    def run(self, order: Array) -> None:
        for _ in order:
            if self.case.kind == "encode":
                encode(self.plan, self.flat, self.data)
            else:
                evaluate_bound(self.plan, self.flat, self.data, n_draws=1, seed=0)
