"""One training step out of the contract's operations: the law that every ``train_steps`` follows."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae.kernels import Array, Plan
from fastvae.optimizer import Optimizer
from fastvae.rng import Stream, normal
from fastvae.training.aevb import Buffers, compose_gradient
from fastvae.training.importance_weighted import compose_importance_weighted
from fastvae.training.wake_sleep import compose_wake_sleep

__all__ = ["compose_step"]


def compose_step(
    plan: Plan,
    b: Buffers,
    *,
    params: Array,
    state: Array,
    optimizer: Optimizer,
    data: Any,
    index: Array,
    scale: float,
    binarize: str,
    seed: int,
    step: int,
    estimator: str,
    kl_weight: float,
    decay: float,
) -> tuple[float, float]:
    """Make one step out of the operations.

    Arguments are those of `fastvae.kernels.Plan.train_steps`; `kl_weight` is the weight at this step.

    Returns
    -------
    log_px, kl : float
        Means over the minibatch, in nats. When their difference is not finite, nothing is updated.

    Raises
    ------
    ValueError
        An unknown estimator.
    """

    def draw(out: Array, *, stream: Stream, step: int) -> None:
        out[:] = normal(seed=seed, step=step, stream=stream, shape=out.shape, dtype=out.dtype)

    plan.gather(data=data, index=index, scale=scale, binarize=binarize, seed=seed, step=step, x=b.x)
    draw(b.eps, stream=Stream.LATENT, step=step)
    if estimator == "wake-sleep":
        log_px, kl = compose_wake_sleep(plan, b, params=params, seed=seed, step=step, draw=draw)
    elif estimator == "iwae":
        log_px, kl = compose_importance_weighted(plan, b, params=params)
    else:
        log_px, kl = compose_gradient(plan, b, params=params, estimator=estimator, kl_weight=kl_weight)
    if np.isfinite(log_px - kl):
        plan.update(optimizer=optimizer, params=params, grad=b.grad, state=state, step=step, decay=decay)
    return log_px, kl
