"""The loop around every training algorithm: chunks of steps, epochs, callbacks, interruption, divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from fastvae.callbacks import Callback
from fastvae.errors import DivergenceError
from fastvae.kernels import Array
from fastvae.rng import epoch_order
from fastvae.training.algorithm import Algorithm
from fastvae.training.interrupts import gated_interrupts
from fastvae.training.state import State

__all__ = ["Run", "run_epochs", "run_pass"]

# Time between two looks at callbacks; Ctrl-C does not wait for it, the engine answers. Results do not depend on it.
CHUNK_SECONDS = 1.0
MAX_CHUNK_STEPS = 1 << 16


@dataclass
class Run:
    """A training run as its callbacks see it.

    Attributes
    ----------
    algorithm : Algorithm
    state : State
        Between two chunks always that after a complete step.
    batch_size : int
    steps_per_epoch : int
    n_steps : int
        Step at which the run is complete.
    n_epochs : int or None
        Epochs in all; None for a single pass.
    callbacks : sequence of Callback
    """

    algorithm: Algorithm
    state: State
    batch_size: int
    steps_per_epoch: int
    n_steps: int
    n_epochs: int | None
    callbacks: Sequence[Callback]
    seconds_per_step: float = math.inf  # not known before the first chunk, which is one step

    def check_finite(self) -> None:
        """Raise DivergenceError when a part of the state is not finite."""
        if tensor := self.state.first_not_finite(self.algorithm.plan.network.layout):
            raise self.diverged(tensor)

    def diverged(self, tensor: str) -> DivergenceError:
        """Return the error for a run whose first tensor to stop being finite is `tensor`."""
        kept = next((c.newest for c in self.callbacks if c.newest is not None), None)
        mend = f"lower learning_rate (it is {self.algorithm.optimizer.learning_rate:g}) or raise batch_size"
        if self.state.step == 0:
            mend = "the initial weights or the data are too large: set init='fan_in' or scale the data"
        return DivergenceError(
            f"training diverged at step {self.state.step}: {tensor} is not finite; {mend}; "
            + (f"the last good checkpoint is {kept}" if kept else "no checkpoint was kept")
        )


def run_epochs(
    algorithm: Algorithm,
    state: State,
    *,
    n_rows: int,
    batch_size: int,
    n_epochs: int,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train until `n_epochs` epochs are complete, from wherever `state` stands.

    Epoch e takes ``epoch_order(N, seed, e)`` in minibatches of M rows and leaves out the last N mod M rows of it, each
    epoch others. The step alone is the cursor: a run that was cut anywhere goes on as if it never was.

    Parameters
    ----------
    algorithm : Algorithm
    state : State
        Updated; consistent also when an exception is raised.
    n_rows, batch_size, n_epochs : int
        N, M and the number of epochs.
    callbacks : sequence of Callback

    Raises
    ------
    DivergenceError
        The bound of a minibatch, a parameter or the optimizer's state is not finite.
    KeyboardInterrupt
        After Ctrl-C, once the engine has left off after a complete step.
    """
    per_epoch = n_rows // batch_size
    run = Run(algorithm, state, batch_size, per_epoch, n_epochs * per_epoch, n_epochs, callbacks)
    with _reported(run):
        while True:
            epoch, cursor = divmod(state.step, per_epoch)
            # Also an epoch whose steps a session before this one made, cut before it could be closed.
            if cursor == 0 and state.epochs_closed < epoch:
                _close_epoch(run, epoch)
            if state.step >= run.n_steps:
                return
            order = epoch_order(n_rows, seed=algorithm.seed, epoch=epoch)
            _advance(run, order[: per_epoch * batch_size].reshape(per_epoch, batch_size)[cursor:])


def run_pass(
    algorithm: Algorithm, state: State, *, n_rows: int, batch_size: int, callbacks: Sequence[Callback] = ()
) -> None:
    """Train once on all rows in the order they come in, the last minibatch being what is left over.

    Parameters, callbacks and exceptions are as for `run_epochs`.
    """
    n_full, rest = divmod(n_rows, batch_size)
    n_steps = state.step + n_full + (rest > 0)
    run = Run(algorithm, state, batch_size, n_full + (rest > 0), n_steps, None, callbacks)
    rows = np.arange(n_rows, dtype=np.int64)
    state.start_epoch()
    with _reported(run):
        _advance(run, rows[: n_full * batch_size].reshape(n_full, batch_size))
        _advance(run, rows[n_full * batch_size :].reshape(-1, max(rest, 1)))
        _close_epoch(run, state.epochs_closed + 1)


@contextmanager
def _reported(run: Run) -> Iterator[None]:
    """Tell the callbacks where the run begins and how it ends."""
    for callback in run.callbacks:
        callback.on_begin(run)
    try:
        yield
    except BaseException as error:
        for callback in run.callbacks:
            callback.on_end(run, error)
        raise
    for callback in run.callbacks:
        callback.on_end(run, None)


def _advance(run: Run, order: Array) -> None:
    """Make the steps of `order` (T, M) in chunks."""
    while len(order):
        length = min(len(order), _chunk_length(run))
        _run_chunk(run, order[:length])
        order = order[length:]
        for callback in run.callbacks:
            callback.on_steps(run)


def _chunk_length(run: Run) -> int:
    step = run.state.step
    stops = [stop - step for c in run.callbacks if (stop := c.next_stop(step)) is not None]
    return max(1, min(int(CHUNK_SECONDS / run.seconds_per_step), MAX_CHUNK_STEPS, *stops))


def _run_chunk(run: Run, order: Array) -> None:
    state, (n_steps, batch_size) = run.state, order.shape
    stats, done = np.empty((n_steps, len(run.algorithm.statistics))), np.zeros(1, np.int64)
    with gated_interrupts() as gate, np.errstate(all="ignore"):  # what is not finite is looked for below
        start = perf_counter()
        try:
            gate.open = True
            run.algorithm.advance(state, order=order, stats=stats, done=done)
        finally:
            gate.open = False
            n_done, seconds = int(done[0]), perf_counter() - start
            state.count(stats[:n_done], batch_size=batch_size, seconds=seconds)
    if n_done:
        run.seconds_per_step = max(seconds / n_done, 1e-9)
    if n_done < n_steps:
        with np.errstate(all="ignore"):
            tensor = run.algorithm.diagnose(state, order[n_done])
        raise run.diverged(tensor)


def _close_epoch(run: Run, epoch: int) -> None:
    """Gather the epoch's row of the history from its sums and the callbacks."""
    run.check_finite()  # the bound of a step is looked at before its update
    state, n_steps = run.state, run.steps_per_epoch
    row: dict[str, Any] = {
        "epoch": epoch,
        "step": state.step,
        **run.algorithm.history_row((state.sums / n_steps).tolist(), step=max(state.step - 1, 0)),
        "seconds": state.epoch_seconds,
        "samples_per_second": state.epoch_samples / max(state.epoch_seconds, 1e-9),
    }
    for callback in run.callbacks:
        callback.on_epoch_metrics(run, row)
    state.close_epoch(row)
    for callback in run.callbacks:
        callback.on_epoch_end(run, row)
