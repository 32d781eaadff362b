"""What becomes of a run that diverges."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

from fastvae.arguments import integer, real
from fastvae.callbacks.base import Callback, History
from fastvae.errors import DivergenceError, one_line

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["Rollback", "TerminateOnNaN"]


class Rollback(Callback):
    """Go back to the end of the last epoch, and on from there with a lower learning rate, when training diverges.

    Without it a DivergenceError ends training. It is raised too when that has happened too often, with the model back
    in its last good state, also by ``times=0``; `TerminateOnNaN` keeps that state without an error.

    The steps gone back are made again, on the same minibatches. An epoch counts as good when the bound of the next
    minibatch is finite too, which takes the time of one more step. The state kept is as large as parameters, optimizer
    state and what the algorithm carries besides, in memory and in every checkpoint. `partial_fit` never goes back.

    Parameters
    ----------
    factor : float
        Of the learning rate, in (0, 1), for each time.
    times : int
        How often in one run.
    """

    def __init__(self, factor: float = 0.5, *, times: int = 3) -> None:
        self.factor, self.times = real("factor", factor), integer("times", times, low=0)
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must lie between 0 and 1, got {factor!r}")

    def before_training(self, model: Model, n_steps: int) -> None:
        """Keep the state that training begins with."""
        # Memory has that of the epoch's beginning, unless Ctrl-C cut it, or sessions without this came between.
        if self.memory.get("step", -1) < model.state_.epoch_begin:
            self._keep(model)

    def learning_rate(self, rate: float, *, epoch: int, step: int) -> float:
        """Lower the rate."""
        return rate * self.factor ** int(self.memory["times"])

    def after_epoch(self, model: Model, epoch: int, history: History) -> None:
        """Keep the state: the loop has found it good."""
        self._keep(model)

    def after_divergence(self, model: Model, error: DivergenceError) -> bool | Literal["end"]:
        """Go back."""
        is_stuck = self.memory["step"] == model.n_steps_  # a lower rate would not change the step that failed
        model.state_.rewind(self.memory)
        if is_stuck or self.memory["times"] >= self.times:
            return False
        self.memory["times"] += 1
        rate = f"the learning rate times {self.factor ** self.memory['times']:g}"
        _warn(error, f"going on from step {model.n_steps_} with {rate}")
        return True

    def _keep(self, model: Model) -> None:
        self.memory.update(times=self.memory.get("times", 0), **model.state_.snapshot())


class TerminateOnNaN(Rollback):
    """End training when it diverges, with a warning and the state at the end of the last epoch, instead of an error.

    It takes the place of a `Rollback`, which says what that state costs.

    Parameters
    ----------
    factor, times : float, int
        As of `Rollback`; by default training ends at the first time.
    """

    def __init__(self, factor: float = 0.5, *, times: int = 0) -> None:
        super().__init__(factor, times=times)

    def after_divergence(self, model: Model, error: DivergenceError) -> bool | Literal["end"]:
        """Go back, and on or to the end."""
        if super().after_divergence(model, error):
            return True
        _warn(error, f"training ends, and the model is that of step {model.n_steps_}")
        return "end"


def _warn(error: DivergenceError, outcome: str) -> None:
    warnings.warn(f"{one_line(error).split(';')[0]}; {outcome}", stacklevel=3)
