"""The loop around every training algorithm: chunks of steps, epochs, callbacks, interruption, divergence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae.callbacks import Callback, Checkpoint
from fastvae.errors import DivergenceError
from fastvae.kernels import Array
from fastvae.rng import epoch_order
from fastvae.training.algorithm import Algorithm
from fastvae.training.interrupts import Interrupted, gated_interrupts
from fastvae.training.state import State

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["Run", "run_epochs", "run_pass"]

# Time between two looks at callbacks; Ctrl-C does not wait for it, the engine answers. Results do not depend on it.
CHUNK_SECONDS = 1.0
MAX_CHUNK_STEPS = 1 << 16
# Of a chunk of several epochs, whose order takes 16 bytes a row while it is put together.
_MAX_CHUNK_ROWS = 1 << 22


@dataclass
class Run:
    """A session of training as the loop sees it.

    Attributes
    ----------
    model : Model
        What the callbacks are given.
    algorithm : Algorithm
        As it is without what callbacks make of learning rate and weight of the KL divergence.
    batch_size : int
    steps_per_epoch : int
    n_steps : int
        Step at which the run is complete.
    callbacks : sequence of Callback
    stopped : bool
        Whether a callback has asked for the end.
    halts_every_epoch : bool
        Whether a chunk is never of several epochs, because a callback asks for it, or to find where one diverged.
    epochs_told : int
        Epochs closed when ``after_epoch`` was last called.
    """

    model: Model
    algorithm: Algorithm
    batch_size: int
    steps_per_epoch: int
    n_steps: int
    callbacks: Sequence[Callback]
    stopped: bool = False
    seconds_per_step: float = math.inf  # not known before the first chunk, which is one step
    halts_every_epoch: bool = False
    epochs_told: int = 0

    def __post_init__(self) -> None:
        self.halts_every_epoch = self.is_mendable or any(callback.every_epoch for callback in self.callbacks)
        self.epochs_told = self.state.epochs_closed

    @property
    def state(self) -> State:
        """Between two chunks always that after a complete step."""
        return self.model.state_

    @property
    def is_mendable(self) -> bool:
        """Whether a callback keeps a state to go back to: an epoch is not closed then unless a step can follow."""
        return any(type(callback).after_divergence is not Callback.after_divergence for callback in self.callbacks)

    def scheduled(self, step: int) -> Algorithm:
        """Return the algorithm with the learning rate and the weight of the KL divergence of a step of this epoch."""
        algorithm, epoch = self.algorithm, self.state.epochs_closed
        rate, weight = algorithm.optimizer.learning_rate, algorithm.kl_weight
        for callback in self.callbacks:
            rate = callback.learning_rate(rate, epoch=epoch, step=step)
            weight = callback.kl_weight(weight, epoch=epoch, step=step)
        if (rate, weight) == (algorithm.optimizer.learning_rate, algorithm.kl_weight):
            return algorithm
        return algorithm.adjusted(learning_rate=rate, kl_weight=weight)

    def diverged(self, tensor: str) -> DivergenceError:
        """Return the error for a run whose first tensor to stop being finite is `tensor`."""
        kept = next((c.newest for c in self.callbacks if isinstance(c, Checkpoint) and c.newest is not None), None)
        mend = f"lower learning_rate (it is {self.algorithm.optimizer.learning_rate:g}) or raise batch_size"
        if self.state.step == 0:
            mend = "the initial weights or the data are too large: set init='fan_in' or scale the data"
        return DivergenceError(
            f"training diverged at step {self.state.step}: {tensor} is not finite; {mend}; "
            + (f"the last good checkpoint is {kept}" if kept else "no checkpoint was kept")
        )


def run_epochs(
    model: Model,
    algorithm: Algorithm,
    *,
    n_rows: int,
    batch_size: int,
    n_epochs: int,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Train until `n_epochs` epochs are complete or a callback ends it, from wherever the model's state stands.

    Epoch e takes ``epoch_order(N, seed, e)`` in minibatches of M rows and leaves out the last N mod M rows of it, each
    epoch others. The step alone is the cursor: a run that was cut anywhere goes on as if it never was.

    Parameters
    ----------
    model : Model
        Its ``state_`` is updated; consistent also when an exception is raised.
    algorithm : Algorithm
    n_rows, batch_size, n_epochs : int
        N, M and the number of epochs.
    callbacks : sequence of Callback
        Those that save come last.

    Raises
    ------
    DivergenceError
        The bound of a minibatch, a parameter or the optimizer's state is not finite, and no callback mended it.
    Interrupted
        After Ctrl-C, once the engine has left off after a complete step and the callbacks are done.
    KeyboardInterrupt
        After another one while they were not.
    """
    per_epoch = n_rows // batch_size
    run = Run(model, algorithm, batch_size, per_epoch, n_epochs * per_epoch, callbacks)
    with _session(run):
        while not run.stopped:
            with _mended(run):
                epoch, cursor = divmod(run.state.step, per_epoch)
                # Also an epoch whose steps a session before this one made, cut before it could be closed.
                if cursor == 0 and run.state.epochs_closed < epoch:
                    if run.is_mendable:
                        _check_step(run, epoch_order(n_rows, seed=algorithm.seed, epoch=epoch)[:batch_size])
                    _close_epoch(run, epoch)
                elif run.state.step >= run.n_steps:
                    return
                else:
                    epochs = range(epoch, epoch + _epochs_at_once(run, per_epoch - cursor, n_rows))
                    orders = [epoch_order(n_rows, seed=algorithm.seed, epoch=e) for e in epochs]
                    steps = [order[: per_epoch * batch_size].reshape(per_epoch, batch_size) for order in orders]
                    steps[0] = steps[0][cursor:]
                    _advance(run, steps[0]) if len(steps) == 1 else _run_chunk(run, *steps)


def run_pass(
    model: Model, algorithm: Algorithm, *, n_rows: int, batch_size: int, callbacks: Sequence[Callback] = ()
) -> None:
    """Train once on all rows in the order they come in, the last minibatch being what is left over.

    Parameters, callbacks and exceptions are as for `run_epochs`; but it is always one pass, and divergence ends it.
    """
    n_full, rest = divmod(n_rows, batch_size)
    n_steps = model.state_.step + n_full + (rest > 0)
    run = Run(model, algorithm, batch_size, n_full + (rest > 0), n_steps, callbacks)
    rows = np.arange(n_rows, dtype=np.int64)
    model.state_.start_epoch()
    with _session(run):
        full = rows[: n_full * batch_size].reshape(n_full, batch_size)
        _advance(run, full, rows[n_full * batch_size :].reshape(-1, max(rest, 1)))
        _close_epoch(run, run.state.epochs_closed + 1)


@contextmanager
def _session(run: Run) -> Iterator[None]:
    """Give the callbacks their memory, and tell them where the session begins and how it ends."""
    count: Counter[str] = Counter()
    for callback in run.callbacks:
        name = type(callback).__name__
        key = f"{name}-{count[name]}" if count[name] else name
        callback.memory = run.state.memory.setdefault(key, {})
        count[name] += 1
    try:
        run.stopped = any([callback.before_training(run.model, run.n_steps) for callback in run.callbacks])
        yield
    except KeyboardInterrupt as error:
        raise _interrupted(run, error) from error
    except BaseException as error:
        _end(run, error)
        raise
    try:
        _end(run, None)
    except KeyboardInterrupt as error:
        raise _interrupted(run, error) from error


def _interrupted(run: Run, error: KeyboardInterrupt) -> Interrupted:
    _end(run, error)
    return Interrupted(*error.args)


def _end(run: Run, error: BaseException | None) -> None:
    """Tell every callback, also of epochs that a cut chunk has closed, and raise what the first of them raises."""
    failures, epoch = [], run.state.epochs_closed
    for callback in run.callbacks:
        hooks: list[tuple[Callable[..., Any], Any]] = [(callback.after_training, (error,))]
        if epoch > run.epochs_told:
            hooks.insert(0, (callback.after_epoch, (epoch, run.state.history)))
        for hook, arguments in hooks:
            try:
                hook(run.model, *arguments)
            except Exception as failure:
                failures.append(failure)
    if failures:
        raise failures[0]


@contextmanager
def _mended(run: Run) -> Iterator[None]:
    """Go on, or end, after a divergence when a callback has mended the state."""
    try:
        yield
    except DivergenceError as error:
        answers = [callback.after_divergence(run.model, error) for callback in run.callbacks]
        if not any(answers):
            raise
        run.stopped = "end" in answers


def _advance(run: Run, *orders: Array) -> None:
    """Make the steps of each of `orders` (T, M), which end an epoch, in chunks."""
    n_left = sum(map(len, orders))
    for order in orders:
        while len(order):
            length = min(len(order), _chunk_length(run))
            _run_chunk(run, order[:length])
            order, n_left = order[length:], n_left - length
            if n_left:
                _tell_steps(run)


def _tell_steps(run: Run) -> None:
    for callback in run.callbacks:
        callback.after_steps(run.model, run.state.step)


def _chunk_length(run: Run) -> int:
    step = run.state.step
    stops = [stop - step for c in run.callbacks if (stop := c.next_stop(step)) is not None]
    return max(1, min(int(CHUNK_SECONDS / run.seconds_per_step), MAX_CHUNK_STEPS, *stops))


def _epochs_at_once(run: Run, n_left: int, n_rows: int) -> int:
    """Return how many epochs the next chunk goes to the end of, the one that has `n_left` steps left among them."""
    if run.halts_every_epoch:
        return 1
    most = min(_chunk_length(run), run.n_steps - run.state.step)
    return 1 + max(0, min((most - n_left) // run.steps_per_epoch, _MAX_CHUNK_ROWS // n_rows - 1))


def _run_chunk(run: Run, *orders: Array) -> None:
    """Make the steps of `orders`, all but the last of which go to the end of an epoch."""
    order = np.concatenate(orders) if len(orders) > 1 else orders[0]
    state, algorithm, n_steps = run.state, run.scheduled(run.state.step), len(order)
    before = state.snapshot() if len(orders) > 1 else None
    stats, done = np.empty((n_steps, len(algorithm.statistics))), np.zeros(1, np.int64)
    with gated_interrupts() as gate, np.errstate(all="ignore"):  # what is not finite is looked for below
        start = perf_counter()
        try:
            gate.open = True
            algorithm.advance(state, order=order, stats=stats, done=done)
        finally:
            gate.open = False
            n_done, seconds = int(done[0]), perf_counter() - start
            if before is not None and state.first_not_finite(algorithm.plan.network.layout):
                state.rewind(before)  # epoch by epoch again: it must not depend on the chunk which one is named
                run.halts_every_epoch, n_done, n_steps = True, 0, 0
            _count(run, algorithm, stats[:n_done], orders, seconds=seconds)
    if n_done:
        run.seconds_per_step = max((perf_counter() - start) / n_done, 1e-9)
    if n_done < n_steps:
        if before is not None and n_done:
            return  # the step that failed comes again, as the first of a chunk, once the epoch before it is closed
        _check_step(run, order[n_done])
        raise run.diverged("the bound")  # of the fused step alone


def _count(run: Run, algorithm: Algorithm, stats: Array, orders: Sequence[Array], *, seconds: float) -> None:
    """Account for the steps whose `stats` these are, and close each epoch of `orders` that others of them follow."""
    share = seconds / max(len(stats), 1)
    for order in orders:
        part, stats = stats[: len(order)], stats[len(order) :]
        run.state.count(part, batch_size=order.shape[1], seconds=share * len(part))
        if not len(stats):
            return
        run.state.close_epoch(_row(run, algorithm, run.state.epochs_closed + 1))


def _check_step(run: Run, index: Array) -> None:
    """Raise when something is not finite in the step that a minibatch would make."""
    with np.errstate(all="ignore"):
        tensor = run.algorithm.diagnose(run.state, index)
    if tensor is not None:
        raise run.diverged(tensor)


def _close_epoch(run: Run, epoch: int) -> None:
    """Gather the epoch's row of the history from its sums and the callbacks."""
    state = run.state
    # The bound of a step is looked at before its update.
    if tensor := state.first_not_finite(run.algorithm.plan.network.layout):
        raise run.diverged(tensor)
    row = _row(run, run.scheduled(max(state.step - 1, 0)), epoch)
    for callback in run.callbacks:
        columns = callback.epoch_columns(run.model, epoch)
        if taken := row.keys() & columns.keys():
            raise ValueError(f"{type(callback).__name__} measures {', '.join(sorted(taken))}, a column that is there")
        row |= {name: value.item() if isinstance(value, np.generic) else value for name, value in columns.items()}
    with gated_interrupts():
        state.close_epoch(row)
    run.epochs_told = epoch
    run.stopped = any([callback.after_epoch(run.model, epoch, state.history) for callback in run.callbacks])
    _tell_steps(run)


def _row(run: Run, algorithm: Algorithm, epoch: int) -> dict[str, Any]:
    """Return the epoch's row of the history but for what callbacks measure; its last step was the algorithm's."""
    state, means = run.state, (run.state.sums / run.steps_per_epoch).tolist()
    return {
        "epoch": epoch,
        "step": state.step,
        **algorithm.history_row(means, step=max(state.step - 1, 0)),
        "learning_rate": algorithm.optimizer.learning_rate,
        "seconds": state.epoch_seconds,
        "samples_per_second": state.epoch_samples / max(state.epoch_seconds, 1e-9),
    }
