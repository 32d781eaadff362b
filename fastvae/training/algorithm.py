"""A training algorithm as the loop sees it, and AEVB as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastvae.data import Dataset
from fastvae.kernels import Array, Plan
from fastvae.optimizer import Optimizer
from fastvae.training.aevb import Buffers, compose_step, kl_weight_at
from fastvae.training.state import State

__all__ = ["AEVB", "Algorithm"]


class Algorithm(Protocol):
    """What `fastvae.training.loop.train` asks of an algorithm."""

    @property
    def plan(self) -> Plan:
        """The plan that it runs on."""

    @property
    def optimizer(self) -> Optimizer:
        """Its optimizer."""

    @property
    def seed(self) -> int:
        """Key of all randomness, the minibatch order included."""

    def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
        """Make the steps of `order` from ``state.step`` on; `stats` and `done` as in `Plan.train_steps`."""

    def kl_weight_at(self, step: int) -> float:
        """Return the weight of the KL divergence at a step."""

    def diagnose(self, state: State, index: Array) -> str:
        """Name the first tensor that is not finite in the step that minibatch `index` would make."""


@dataclass(frozen=True)
class AEVB:
    """Algorithm 1 on one plan and one dataset; the attributes are arguments of `Plan.train_steps`."""

    plan: Plan
    optimizer: Optimizer
    dataset: Dataset
    binarize: str
    seed: int
    kl_weight: float
    kl_warmup: int
    decay: float
    estimator: str = "sgvb-b"

    def advance(self, state: State, *, order: Array, stats: Array, done: Array) -> None:
        """Run ``train_steps``."""
        self.plan.train_steps(
            params=state.params,
            state=state.slots,
            step=state.step,
            order=order,
            stats=stats,
            done=done,
            kl_weight=self.kl_weight,
            kl_warmup=self.kl_warmup,
            **self._shared(),
        )

    def _shared(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer,
            "data": self.dataset.rows,
            "scale": self.dataset.scale,
            "binarize": self.binarize,
            "seed": self.seed,
            "estimator": self.estimator,
            "decay": self.decay,
        }

    def kl_weight_at(self, step: int) -> float:
        """Return beta at a step."""
        return kl_weight_at(step, kl_weight=self.kl_weight, kl_warmup=self.kl_warmup)

    def diagnose(self, state: State, index: Array) -> str:
        """Repeat one step with the operations, on copies, and look at every tensor in the order of computation.

        Parameters
        ----------
        state : State
            As the last complete step left it; not changed.
        index : ndarray of shape (M,), int64
            The minibatch whose bound is not finite.

        Returns
        -------
        str
            ``"parameter encoder.0.W"``, ``"encoder hidden layer 0"``, ``"mu"``, ..., ``"log_px"``, or ``"the bound"``
            when every tensor of the operations is finite.
        """
        network = self.plan.network
        for name, view in network.layout.views(state.params).items():
            if not np.isfinite(view).all():
                return f"parameter {name}"
        b = Buffers.allocate(network, len(index), self.plan.draws, state.params.dtype)
        compose_step(
            self.plan,
            b,
            params=state.params.copy(),
            state=state.slots.copy(),
            index=index,
            step=state.step,
            kl_weight=self.kl_weight_at(state.step),
            **self._shared(),
        )
        encoder = ((f"encoder hidden layer {i}", h) for i, h in enumerate(b.encoder_hidden))
        decoder = ((f"decoder hidden layer {i}", h) for i, h in enumerate(b.decoder_hidden))
        kl = b.sampled_kl if self.estimator == "sgvb-a" else b.kl
        latent = (("mu", b.mu), ("logvar", b.logvar), ("z", b.z), ("kl", kl))
        tensors = (("x", b.x), *encoder, *latent, *decoder, ("the decoder's output", b.out), ("log_px", b.log_px))
        return next((name for name, tensor in tensors if not np.isfinite(tensor).all()), "the bound")
