"""How far a run has come, for whoever watches it."""

from __future__ import annotations

import sys
from copy import copy
from typing import TYPE_CHECKING, Any, TextIO

from fastvae.callbacks.base import Callback, History, lossy, say

if TYPE_CHECKING:
    from fastvae.model import Model
    from fastvae.training.composed import Composed

__all__ = ["Progress"]

_FIGURES = {"elbo": "elbo", "elbo_test": "test", "kl": "kl"}


class Progress(Callback):
    """One line per epoch on stderr, and a progress bar while it is a terminal. A run goes on when neither can be shown.

    The bar has the time left, the datapoints trained on per second, and the bound of the epoch so far.
    ``VAE(verbose=1)`` adds one.

    Parameters
    ----------
    stream : text stream, optional
        By default ``sys.stderr``.
    """

    every_epoch = False

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self.n_rows = 0
        self.bar: Any = None
        self.kind: type[Composed[Any]]

    def __deepcopy__(self, memo: dict[int, Any]) -> Progress:
        return copy(self)  # scikit-learn's clone copies callbacks deeply, and nothing can copy a stream

    def before_training(self, model: Model, n_steps: int) -> None:
        """Show the bar."""
        from fastvae.training.algorithm import algorithm_class

        self.kind = algorithm_class(model.algorithm_, model.estimator_)
        self.n_rows = model.state_.epochs_closed
        stream = self.stream if self.stream is not None else sys.stderr
        if stream is not None and not stream.closed and stream.isatty():
            from tqdm import tqdm

            bar = tqdm(
                total=n_steps, initial=model.n_steps_, unit=" steps", file=stream, leave=False, dynamic_ncols=True
            )
            self.bar = None if bar.disable else bar  # by TQDM_DISABLE

    def after_steps(self, model: Model, step: int) -> None:
        """Move the bar."""
        if self.bar is not None:
            with lossy():
                self.bar.set_postfix_str(self._so_far(model), refresh=False)
                self.bar.update(step - self.bar.n)

    def after_epoch(self, model: Model, epoch: int, history: History) -> None:
        """Print the figures of the epochs that are new."""
        for i in range(self.n_rows, epoch):
            self._print(model, {name: column[i] for name, column in history.items()})
        self.n_rows = epoch

    def _print(self, model: Model, row: dict[str, Any]) -> None:
        of = "" if model.fingerprint_ is None else f"/{model.n_epochs}"
        figures = _FIGURES if "elbo" in row else {name: name for name in self.kind.statistics}
        line = f"epoch {row['epoch']:>{max(len(of) - 1, 0)}}{of}"
        line += "".join(f"  {label} {row[name]:.3f}" for name, label in figures.items() if row.get(name) is not None)
        line += f"  {_speed(row['samples_per_second'])}"
        if self.bar is not None:
            with lossy():
                self.bar.write(line, file=self.bar.fp)
        else:
            say(line, self.stream)

    def after_training(self, model: Model, error: BaseException | None) -> None:
        """Remove the bar."""
        if self.bar is not None:
            with lossy():
                self.bar.close()
            self.bar = None

    def _so_far(self, model: Model) -> str:
        """Return the figures of the epoch so far, or of the last one at its end."""
        state, history, name = model.state_, model.history_, "elbo" if self.kind.has_bound else self.kind.statistics[0]
        n_steps = state.step - state.epoch_begin
        if n_steps == 0:
            return f"{name} {history[name][-1]:.2f}, {_speed(history['samples_per_second'][-1])}"
        objective = self.kind.objective((state.sums / n_steps).tolist())
        return f"{name} {objective:.2f}, {_speed(state.epoch_samples / max(state.epoch_seconds, 1e-9))}"


def _speed(rate: float) -> str:
    return f"{rate:,.0f} samples/s"
