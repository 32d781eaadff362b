"""Callbacks of a training run: the hooks, and the ones that fastvae itself uses."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from fastvae.checkpoint import Checkpoint
    from fastvae.training.loop import Run

__all__ = ["Callback", "Checkpointing", "EpochMetrics", "Progress", "say"]


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line, by default on stderr; it is lost when that is closed or whoever read it has left."""
    stream = sys.stderr if stream is None else stream
    if stream is not None:
        with _lossy():
            print(line, file=stream)


def _lossy() -> contextlib.suppress:
    """Go on when something cannot be printed: what is printed while a run goes on is never worth the run."""
    return contextlib.suppress(OSError, ValueError)


class Callback:
    """The hooks, each doing nothing. They run between chunks of steps, in the thread of the run.

    Attributes
    ----------
    newest : Path or None
        The newest checkpoint that this callback knows to be good.
    """

    newest: Path | None = None

    def on_begin(self, run: Run) -> None:
        """Before the first step."""

    def next_stop(self, step: int) -> int | None:
        """Return the next step after `step` at which `on_steps` must be called; None for any."""

    def on_steps(self, run: Run) -> None:
        """After some steps, about twice a second."""

    def on_epoch_metrics(self, run: Run, row: dict[str, Any]) -> None:
        """When an epoch's steps are done: add columns to its row of the history (plain JSON values)."""

    def on_epoch_end(self, run: Run, row: dict[str, Any]) -> None:
        """After the row went into the history."""

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """After the last step, or when `error` ends the run early."""


class EpochMetrics(Callback):
    """Add the values of a function to the history after every epoch.

    Parameters
    ----------
    measure : callable
        Takes no argument and returns columns by name.
    """

    def __init__(self, measure: Callable[[], dict[str, Any]]) -> None:
        self.measure = measure

    def on_epoch_metrics(self, run: Run, row: dict[str, Any]) -> None:
        """Measure."""
        row.update(self.measure())


class Checkpointing(Callback):
    """Save checkpoints into a folder: at the begin, on the way, at the end and on Ctrl-C.

    A state that is not finite is never saved.

    Parameters
    ----------
    folder : path-like
    capture : callable
        Returns the `Checkpoint` of the present state.
    every : int or None
        Steps between two checkpoints; None for one at the end of an epoch, at most one in `min_seconds`.
    keep : int
        How many checkpoints to keep.
    on_saved : callable, optional
        Called with the run after each save.
    """

    min_seconds = 10.0

    def __init__(
        self,
        folder: Path,
        capture: Callable[[], Checkpoint],
        *,
        every: int | None = None,
        keep: int = 3,
        on_saved: Callable[[Run], None] | None = None,
    ) -> None:
        self.folder, self.capture, self.every, self.keep, self.on_saved = folder, capture, every, keep, on_saved
        self.saved_step = -1
        self.saved_at = -self.min_seconds

    def _save(self, run: Run) -> None:
        from fastvae.checkpoint import save

        run.check_finite()
        self.newest = save(self.folder, self.capture(), step=run.state.step, keep=self.keep)
        self.saved_step, self.saved_at = run.state.step, monotonic()
        if self.on_saved is not None:
            self.on_saved(run)

    def on_begin(self, run: Run) -> None:
        """Save, so that a folder that cannot be written is found before the first step."""
        self._save(run)

    def next_stop(self, step: int) -> int | None:
        """Return the next multiple of `every`."""
        return None if self.every is None else step - step % self.every + self.every

    def on_steps(self, run: Run) -> None:
        """Save at multiples of `every`; at the end of an epoch `on_epoch_end` does, with its row in the history."""
        step = run.state.step
        if self.every is not None and step % self.every == 0 and step % run.steps_per_epoch:
            self._save(run)

    def on_epoch_end(self, run: Run, row: dict[str, Any]) -> None:
        """Save if it is due."""
        due = monotonic() - self.saved_at >= self.min_seconds
        if due if self.every is None else run.state.step % self.every == 0:
            self._save(run)

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Save the last state, unless the run failed."""
        if error is None or (isinstance(error, KeyboardInterrupt) and self.saved_step != run.state.step):
            self._save(run)


class Progress(Callback):
    """One line per epoch on stderr, and a progress bar while it is a terminal. A run goes on when neither can be shown.

    Parameters
    ----------
    stream : text stream, optional
        By default ``sys.stderr``.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self.bar: Any = None

    def on_begin(self, run: Run) -> None:
        """Show the bar."""
        stream = self.stream if self.stream is not None else sys.stderr
        if stream is not None and not stream.closed and stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=run.n_steps, initial=run.state.step, unit=" steps", file=stream, leave=False, dynamic_ncols=True
            )

    def on_steps(self, run: Run) -> None:
        """Move the bar."""
        if self.bar is not None:
            with _lossy():
                self.bar.update(run.state.step - self.bar.n)

    def on_epoch_end(self, run: Run, row: dict[str, Any]) -> None:
        """Print the epoch's figures."""
        of = "" if run.n_epochs is None else f"/{run.n_epochs}"
        figures = {"elbo": "elbo", "elbo_test": "test", "kl": "kl"}
        if "elbo" not in row:
            figures = {name: name for name in run.algorithm.statistics}
        line = f"epoch {row['epoch']:>{max(len(of) - 1, 0)}}{of}"
        line += "".join(f"  {label} {row[name]:.3f}" for name, label in figures.items() if row.get(name) is not None)
        line += f"  {row['samples_per_second']:,.0f} samples/s"
        if self.bar is not None:
            with _lossy():
                self.bar.write(line, file=self.bar.fp)
        else:
            say(line, self.stream)

    def on_end(self, run: Run, error: BaseException | None) -> None:
        """Remove the bar."""
        if self.bar is not None:
            with _lossy():
                self.bar.close()
            self.bar = None
