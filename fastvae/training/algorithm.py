"""A training algorithm as the loop sees it, and all of them by name."""

from __future__ import annotations

from typing import Any, Protocol

from fastvae.kernels import Array, Plan
from fastvae.optimizer import Optimizer
from fastvae.training.aevb import AEVB, SampledAEVB
from fastvae.training.autoencoder import Autoencoder
from fastvae.training.composed import Composed
from fastvae.training.full_vb import FullVB
from fastvae.training.importance_weighted import ImportanceWeighted
from fastvae.training.mcem import MCEM
from fastvae.training.state import State
from fastvae.training.wake_sleep import WakeSleep

__all__ = ["ALGORITHMS", "ESTIMATORS", "Algorithm", "algorithm_class"]

ALGORITHMS: dict[str, type[Composed[Any]]] = {
    "aevb": AEVB,
    "wake-sleep": WakeSleep,
    "mcem": MCEM,
    "full-vb": FullVB,
    "autoencoder": Autoencoder,
}
# What "aevb" ascends: the paper's two estimators of the bound, or the importance-weighted one.
ESTIMATORS: dict[str, type[Composed[Any]]] = {
    "sgvb-b": AEVB,
    "sgvb-a": SampledAEVB,
    "iwae": ImportanceWeighted,
}


def algorithm_class(algorithm: str, estimator: str) -> type[Composed[Any]]:
    """Return the class that trains by an algorithm with an estimator."""
    return ESTIMATORS[estimator] if algorithm == "aevb" else ALGORITHMS[algorithm]


class Algorithm(Protocol):
    """What `fastvae.training.loop.run_epochs` asks of an algorithm; `Composed` describes it."""

    @property
    def plan(self) -> Plan:
        """The plan that it runs on."""

    @property
    def optimizer(self) -> Optimizer:
        """Its optimizer."""

    @property
    def seed(self) -> int:
        """Key of all randomness, the minibatch order included."""

    @property
    def kl_weight(self) -> float:
        """Weight of the KL divergence in its objective."""

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of what every step reports."""

    def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
        """Make the steps of `order` from ``state.step`` on."""

    def history_row(self, means: list[float], *, step: int) -> dict[str, Any]:
        """Return the columns of the history for an epoch's mean statistics, `step` being its last one."""

    def adjusted(self, *, learning_rate: float, kl_weight: float) -> Algorithm:
        """Return the same algorithm with another learning rate and weight of the KL divergence."""

    def diagnose(self, state: State, index: Array) -> str | None:
        """Name the first tensor that is not finite in the step that minibatch `index` would make, None without any."""
