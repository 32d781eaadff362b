"""Learning rates and weights of the KL divergence that change as training goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import cos, pi, tanh
from typing import Self

from fastvae.arguments import integer, positive, real
from fastvae.callbacks.base import Callback

__all__ = ["KLAnneal", "LearningRateSchedule"]


class _Schedule(Callback):
    """A factor that is a function of the epochs done, or of the steps done.

    Parameters
    ----------
    factor : callable
        Takes the number of epochs done, from 0 on, and returns the factor for the next one; with `every` that of steps.
    every : int, optional
        Steps between two values; None for one value an epoch.
    until : int, optional
        Number from which on the factor stays what it is.
    """

    def __init__(self, factor: Callable[[int], float], *, every: int | None = None, until: int | None = None) -> None:
        if not callable(factor):
            raise ValueError(f"factor must be a function of the epochs done, got {factor!r}")
        self.factor = factor
        self.every = None if every is None else integer("every", every, low=1)
        self.until = None if until is None else integer("until", until, low=0)
        self.every_epoch = every is None

    def next_stop(self, step: int) -> int | None:
        """Return the next step with a value of its own."""
        if self.every is None:
            return None
        begun = step - step % self.every
        return None if self.until is not None and begun >= self.until else begun + self.every

    def value(self, epoch: int, step: int) -> float:
        """Return the factor."""
        done = epoch if self.every is None else step - step % self.every
        return real("the factor of a schedule", self.factor(done if self.until is None else min(done, self.until)))


class LearningRateSchedule(_Schedule):
    """Multiply the learning rate by a factor that changes from epoch to epoch, or every so many steps.

    The rate itself stays `learning_rate` of the model or its `Optimizer`; several schedules multiply. The history has
    the rate of each epoch's last step. Each value is a call of its own of the engine: by epochs that costs as good as
    nothing on a processor, and makes a GPU wait for the host (docs/cuda.md, "What the host does").

    Parameters
    ----------
    factor : callable
        Takes the number of epochs done, from 0 on, and returns the factor for the next one; with `every` that of steps.
    every : int, optional
        Steps between two values; None for one value an epoch.
    until : int, optional
        Number from which on the factor stays what it is.

    Examples
    --------
    >>> schedule = LearningRateSchedule(lambda epoch: 1 / (1 + 0.1 * epoch))
    """

    def learning_rate(self, rate: float, *, epoch: int, step: int) -> float:
        """Multiply."""
        return rate * self.value(epoch, step)

    @classmethod
    def step(cls, length: int, factor: float = 0.1, *, every: int | None = None) -> Self:
        """Multiply by a factor again and again.

        Parameters
        ----------
        length : int
            Epochs between two times; steps with `every`.
        factor : float
            Above 0.
        every : int, optional
            See the class.
        """
        length, factor = integer("length", length, low=1), positive("factor", factor)
        return cls(partial(_power, length=length, factor=factor), every=every)

    @classmethod
    def exponential(cls, factor: float, *, every: int | None = None) -> Self:
        """Multiply by `factor` after every epoch, or step with `every`."""
        return cls(partial(_power, length=1, factor=positive("factor", factor)), every=every)

    @classmethod
    def cosine(cls, length: int, final: float = 0.01, *, every: int | None = None) -> Self:
        """Fall from 1 along half a cosine, and stay there.

        Parameters
        ----------
        length : int
            Epochs until then; steps with `every`.
        final : float
            The factor from then on, above 0.
        every : int, optional
            See the class.
        """
        length, final = integer("length", length, low=1), positive("final", final)
        return cls(partial(_cosine, length=length, final=final), every=every, until=length)

    @classmethod
    def warmup(cls, length: int, *, every: int | None = 1) -> Self:
        """Rise linearly from 1 / `length` to 1 in `length` steps, or epochs with ``every=None``."""
        length = integer("length", length, low=1)
        return cls(partial(_rise, length=length), every=every, until=length)


class KLAnneal(_Schedule):
    """Multiply `kl_weight` by a factor that changes from epoch to epoch, or every so many steps.

    The bounds reported stay unweighted. A weight that rises in a straight line from step to step is the model's
    `kl_warmup`, which the engines do without any cost; here each value is a call of its own of the engine, as in
    `LearningRateSchedule`.

    Parameters
    ----------
    factor : callable
        Takes the number of epochs done, from 0 on, and returns the factor for the next one; with `every` that of steps.
    every : int, optional
        Steps between two values; None for one value an epoch.
    until : int, optional
        Number from which on the factor stays what it is.
    """

    def kl_weight(self, weight: float, *, epoch: int, step: int) -> float:
        """Multiply."""
        return weight * self.value(epoch, step)

    @classmethod
    def linear(cls, length: int, start: float = 0.0, *, every: int | None = None) -> Self:
        """Rise to 1 in a straight line, and stay there.

        Parameters
        ----------
        length : int
            Epochs until then; steps with `every`.
        start : float
            The factor in the beginning.
        every : int, optional
            See the class.
        """
        length, start = integer("length", length, low=1), real("start", start)
        return cls(partial(_line, length=length, start=start), every=every, until=length)

    @classmethod
    def sigmoid(cls, length: int, steepness: float = 10.0, *, every: int | None = None) -> Self:
        """Rise along ``1 / (1 + exp(-steepness (t - 1/2)))``, t from 0 to 1, and stay there.

        Parameters
        ----------
        length : int
            Epochs until then; steps with `every`.
        steepness : float
            Above 0.
        every : int, optional
            See the class.
        """
        length, steepness = integer("length", length, low=1), positive("steepness", steepness)
        return cls(partial(_sigmoid, length=length, steepness=steepness), every=every, until=length)

    @classmethod
    def cyclical(cls, length: int, rising: float = 0.5, *, every: int | None = None) -> Self:
        """Rise from 0 to 1 and stay there for a while, again and again (Fu et al. 2019).

        Parameters
        ----------
        length : int
            Epochs of a cycle; steps with `every`.
        rising : float
            Which part of a cycle it rises in, above 0.
        every : int, optional
            See the class.
        """
        length, rising = integer("length", length, low=2), positive("rising", rising)
        return cls(partial(_cycle, length=length, rising=rising), every=every)


# Not within the methods, so that a model with its callbacks can be pickled.


def _power(done: int, *, length: int, factor: float) -> float:
    return float(factor ** (done // length))


def _cosine(done: int, *, length: int, final: float) -> float:
    return final + (1 - final) * (1 + cos(pi * min(done / length, 1))) / 2


def _line(done: int, *, length: int, start: float) -> float:
    return start + (1 - start) * min(done / length, 1)


def _rise(done: int, *, length: int) -> float:
    return min((done + 1) / length, 1)


def _sigmoid(done: int, *, length: int, steepness: float) -> float:
    return (1 + tanh(steepness * (min(done / length, 1) - 0.5) / 2)) / 2  # the same, and never overflows


def _cycle(done: int, *, length: int, rising: float) -> float:
    return min(done % length / (rising * length), 1)
