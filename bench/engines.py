"""One case on one of our backends, as a function that runs a number of training steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastvae import backends
from fastvae.bench.cases import Case
from fastvae.data import Dataset
from fastvae.network import initialise
from fastvae.rng import epoch_order

__all__ = ["engine_runner"]


def engine_runner(case: Case, data: Dataset, *, backend: str, n_threads: int) -> Callable[[int], None]:
    """Return ``run(n_steps)``: consecutive steps in one ``train_steps`` call."""
    engine = backends.load(backend)
    plan = engine.plan(case.network, rows=case.batch_size, draws=1, precision="fp32", n_threads=n_threads)
    params = initialise(case.network, seed=0)
    state = np.zeros((case.optimizer.n_slots, params.size), np.float32)
    order = epoch_order(data.n_rows, seed=0, epoch=0)
    done = np.zeros(1, np.int64)
    step = 0

    def run(n_steps: int) -> None:
        nonlocal step
        rows = order[: n_steps * case.batch_size].reshape(n_steps, case.batch_size)
        plan.train_steps(
            params=params,
            state=state,
            optimizer=case.optimizer,
            data=data.rows,
            order=rows,
            scale=data.scale,
            binarize="none",
            seed=0,
            step=step,
            kl_weight=1.0,
            kl_warmup=0,
            decay=0.0,
            stats=np.zeros((n_steps, 2)),
            done=done,
        )
        step += n_steps

    return run
