"""What all training algorithms share: the run around one step that is made of the contract's operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from fastvae.arguments import non_negative
from fastvae.data.arrays import on_host
from fastvae.kernels.places import place_of
from fastvae.rng import normal
from fastvae.training.interrupts import gated_interrupts

if TYPE_CHECKING:
    from fastvae.data import Dataset
    from fastvae.kernels import Array, Engine, Plan
    from fastvae.network import Network
    from fastvae.optimizer import Optimizer
    from fastvae.rng import Stream
    from fastvae.training.state import State

__all__ = ["Composed", "StepBuffers", "kl_weight_at"]


def kl_weight_at(step: int, *, kl_weight: float, kl_warmup: int) -> float:
    """Return the weight of the KL divergence at a step: linear from 0 over `kl_warmup` steps, then constant."""
    return kl_weight * min(1.0, step / kl_warmup) if kl_warmup else kl_weight


class StepBuffers(Protocol):
    """The arrays of one step."""

    @property
    def grad(self) -> Array:
        """Gradient of what the step ascends, shape (P,)."""

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Name the arrays in the order in which a step fills them."""


B = TypeVar("B", bound=StepBuffers)


@dataclass(frozen=True)
class Composed(Generic[B]):
    """An algorithm on one engine and one dataset, whose steps `measure` and `apply` make.

    The fields are those of `fastvae.kernels.Plan.train_steps`, and the engine that the plan is of. `decay` is 1 / N
    with a weight prior N(0, I), else 0.

    Attributes
    ----------
    statistics : tuple of str
        What every step reports, means over its minibatch; columns of the history.
    has_bound : bool
        Whether ``statistics[0]`` less the others is a variational bound.
    encodes : bool
        Whether it trains the encoder.
    weighs_kl : bool
        Whether `kl_weight` and `kl_warmup` mean something to it.
    updated_extra : tuple of str
        What of `extra` operations update, as they do the parameters and the optimizer's state.
    """

    statistics: ClassVar[tuple[str, ...]] = ("log_px", "kl")
    has_bound: ClassVar[bool] = True
    encodes: ClassVar[bool] = True
    weighs_kl: ClassVar[bool] = False
    updated_extra: ClassVar[tuple[str, ...]] = ()

    engine: Engine
    plan: Plan
    optimizer: Optimizer
    dataset: Dataset
    binarize: str
    seed: int
    kl_weight: float
    kl_warmup: int
    decay: float

    @staticmethod
    def extra_shapes(network: Network, *, n_slots: int, n_rows: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what the algorithm carries from step to step besides parameters and optimizer state.

        Parameters
        ----------
        network : Network
        n_slots : int
            State values of the optimizer per parameter.
        n_rows : int
            N.
        """
        return {}

    @staticmethod
    def initialise_extra(extra: dict[str, Array], *, seed: int) -> None:
        """Fill those arrays, zeros so far, for step 0."""

    def allocate(self, rows: int, dtype: Any) -> B:
        """Allocate the arrays of a step on M rows."""
        raise NotImplementedError

    def measure(self, state: State, b: B, *, index: Array, step: int) -> tuple[float, ...]:
        """Compute a step's gradient into ``b.grad``; return its statistics. Changes nothing but `b`."""
        raise NotImplementedError

    def apply(self, state: State, b: B, *, index: Array, step: int) -> None:
        """Make the step that `measure` has computed."""
        self.plan.update(
            optimizer=self.optimizer, params=state.params, grad=b.grad, state=state.slots, step=step, decay=self.decay
        )

    def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
        """Make the steps of `order` from ``state.step`` on, each wholly or not at all.

        Ctrl-C is held back while a step is applied; before that there is nothing to undo. Between the steps the arrays
        that operations update lie where the plan computes.

        Parameters
        ----------
        state : State
            ``params``, ``slots`` and ``extra`` are updated, counters are not.
        order : ndarray of shape (T, M), int64
        stats : ndarray of shape (T, n_statistics), float64
            Output, per completed step.
        done : ndarray of shape (1,), int64
            Output: completed steps. Fewer than T when a statistic was not finite; its row is filled. None when a device
            fails, which leaves `state` as it was.
        """
        done[0] = 0
        with gated_interrupts() as gate:
            b, there = self.allocate(order.shape[1], state.params.dtype), self._placed(state)
            try:
                for i, index in enumerate(order):
                    if gate.holds:
                        return
                    step, gate.open = state.step + i, True
                    stats[i] = self.measure(there, b, index=index, step=step)
                    gate.open = False
                    if not np.isfinite(stats[i]).all():
                        return
                    self.apply(there, b, index=index, step=step)
                    done[0] = i + 1
            finally:
                gate.open, n_done, done[0] = False, int(done[0]), 0
                state.take(there)
                done[0] = n_done

    def _placed(self, state: State) -> State:
        """Return a state to work on: what operations update lies where the plan computes, the rest are copies."""
        placed = place_of(self.plan).placed
        extra = {
            name: placed(part) if name in self.updated_extra else part.copy() for name, part in state.extra.items()
        }
        return replace(state, params=placed(state.params), slots=placed(state.slots), extra=extra)

    def history_row(self, means: list[float], *, step: int) -> dict[str, Any]:
        """Return the columns of the history for an epoch's mean statistics, `step` being its last one."""
        row: dict[str, Any] = dict(zip(self.statistics, means, strict=True))
        if self.has_bound:
            row = {"elbo": self.objective(means), **row}
        if self.weighs_kl:
            row["kl_weight"] = self.kl_weight_at(step)
        return row

    @classmethod
    def objective(cls, means: list[float]) -> float:
        """Return the bound that mean statistics make, or where there is none the first of them."""
        return means[0] - sum(means[1:]) if cls.has_bound else means[0]

    def adjusted(self, *, learning_rate: float, kl_weight: float) -> Self:
        """Return the same algorithm with another learning rate and weight of the KL divergence."""
        optimizer = replace(self.optimizer, learning_rate=learning_rate)
        return replace(self, optimizer=optimizer, kl_weight=non_negative("kl_weight", kl_weight))

    def kl_weight_at(self, step: int) -> float:
        """Return beta at a step."""
        return kl_weight_at(step, kl_weight=self.kl_weight, kl_warmup=self.kl_warmup)

    def diagnose(self, state: State, index: Array) -> str | None:
        """Repeat one step up to its gradient and look at every tensor in the order of computation.

        Parameters
        ----------
        state : State
            As the last complete step left it; not changed.
        index : ndarray of shape (M,), int64
            Its minibatch.

        Returns
        -------
        str or None
            The first that is not finite: ``"parameter encoder.0.W"``, ``"encoder hidden layer 0"``, ``"mu"``, ...,
            ``"log_px"``, or ``"the bound"``; None when all are.
        """
        if tensor := state.first_not_finite(self.plan.network.layout):
            return tensor
        b = self.allocate(len(index), state.params.dtype)
        statistics = self.measure(state, b, index=index, step=state.step)
        bound = None if np.isfinite(statistics).all() else "the bound"
        return next((name for name, tensor in b.tensors() if not np.isfinite(on_host(tensor)).all()), bound)

    def draw(self, out: Array, *, stream: Stream, step: int) -> None:
        """Fill an array with standard normals: the engine's, except in float64, which only the reference has."""
        if out.dtype == np.float32:
            self.engine.normal(seed=self.seed, step=step, stream=stream, out=out)
        else:
            out[:] = normal(seed=self.seed, step=step, stream=stream, shape=out.shape, dtype=out.dtype)

    def gather(self, x: Array, *, index: Array, step: int) -> None:
        """Fetch a minibatch."""
        self.plan.gather(
            data=self.dataset.rows,
            index=index,
            scale=self.dataset.scale,
            binarize=self.binarize,
            seed=self.seed,
            step=step,
            x=x,
        )
