"""The hooks of a training run, each doing nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from fastvae.errors import DivergenceError
    from fastvae.model import Model

__all__ = ["Callback", "EpochMetrics", "History", "lossy", "say"]

History = dict[str, list[Any]]
_EPOCH_HOOKS = frozenset(
    ("learning_rate", "kl_weight", "after_steps", "epoch_columns", "after_epoch", "after_divergence")
)


class Callback:
    """The hooks. They run between chunks of steps, in the thread that trains.

    The model they are given is the one in training, its fitted attributes those that the last complete step left:
    `n_steps_`, `params_`, `history_`, and it can be asked for anything, `evaluate` or `sample` say. An exception that a
    hook raises ends training, and leaves the model in that state.

    Attributes
    ----------
    memory : dict
        What the rest of a run depends on, by name: plain JSON values and arrays (float32, float64 or int64). It is
        saved with every checkpoint, empty where a run starts afresh, and there again when one goes on.
    every_epoch : bool
        Whether training halts for it after every epoch, which a class says for itself and those that inherit from it;
        one that fills in another hook than `before_training`, `next_stop` and `after_training` does unless it says
        otherwise. Where no callback asks for it, epochs that take less than a second together are one call of the
        engine, and `after_steps` and `after_epoch` come once then, after the last of them, when the history has a row
        for each. On a GPU that can double the speed (docs/cuda.md). False is right where `after_epoch` looks at the
        history alone, `learning_rate` and `kl_weight` do not depend on the epoch, and the others do nothing.
    """

    memory: dict[str, Any]
    every_epoch: bool = False

    def __init_subclass__(cls) -> None:
        """Halt for hooks that a class brings and does not say to need no halt."""
        if not _EPOCH_HOOKS.isdisjoint(vars(cls)) and "every_epoch" not in vars(cls):
            cls.every_epoch = True

    def before_training(self, model: Model, n_steps: int) -> bool | None:
        """Before the first step of a session; ``n_steps`` is the step at which the run is complete.

        True ends it here: there is nothing left to do.
        """

    def learning_rate(self, rate: float, *, epoch: int, step: int) -> float:
        """Return the learning rate from a step on.

        Parameters
        ----------
        rate : float
            What it would be without this callback.
        epoch, step : int
            Epochs and steps done. It may change with the epoch, and at the steps that `next_stop` names.
        """
        return rate

    def kl_weight(self, weight: float, *, epoch: int, step: int) -> float:
        """Return the weight of the KL divergence from a step on.

        Parameters
        ----------
        weight : float
            What it would be without this callback.
        epoch, step : int
            As in `learning_rate`.
        """
        return weight

    def next_stop(self, step: int) -> int | None:
        """Return the next step after `step` at which `after_steps` must be called; None for any."""

    def after_steps(self, model: Model, step: int) -> None:
        """After some steps, about once a second, and after every epoch that training halts at.

        `step` of them are done in all.
        """

    def epoch_columns(self, model: Model, epoch: int) -> Mapping[str, Any]:
        """Return columns of the history for the epoch whose steps are done: numbers or other plain JSON values by name.

        They are none that the history has without this callback.
        """
        return MappingProxyType({})

    def after_epoch(self, model: Model, epoch: int, history: History) -> bool | None:
        """After an epoch whose row is in the history by now, or after several, see `every_epoch`. True ends training.

        Parameters
        ----------
        model : Model
        epoch : int
            Counted from 1.
        history : dict of str to list
            `history_`.
        """

    def after_divergence(self, model: Model, error: DivergenceError) -> bool | Literal["end"] | None:
        """When `fit` or `resume` met something that is not finite.

        True: the state was mended, training goes on. ``"end"``: it was, and training ends with it.
        """

    def after_training(self, model: Model, error: BaseException | None) -> None:
        """After the last step, or when `error`, a KeyboardInterrupt for Ctrl-C, ends the session early."""


class EpochMetrics(Callback):
    """Add the values of a function to the history after every epoch.

    Parameters
    ----------
    measure : callable
        Takes the model and returns columns by name.
    """

    def __init__(self, measure: Callable[[Any], Mapping[str, Any]]) -> None:
        self.measure = measure

    def epoch_columns(self, model: Model, epoch: int) -> Mapping[str, Any]:
        """Measure."""
        return self.measure(model)


def say(line: str, stream: TextIO | None = None) -> None:
    """Print a line, by default on stderr; it is lost when that is closed or whoever read it has left."""
    stream = sys.stderr if stream is None else stream
    if stream is not None:
        with lossy():
            print(line, file=stream)


def lossy() -> contextlib.suppress:
    """Go on when something cannot be printed: what is printed while a run goes on is never worth the run."""
    return contextlib.suppress(OSError, ValueError)
