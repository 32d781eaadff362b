"""Auto-Encoding Variational Bayes (Algorithm 1) with either of its estimators, as contract operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastvae.kernels import Array, Plan
from fastvae.kernels.checks import check_estimator
from fastvae.network import Network
from fastvae.optimizer import Optimizer
from fastvae.rng import Stream, normal

__all__ = ["Buffers", "compose_step", "kl_weight_at"]


def kl_weight_at(step: int, *, kl_weight: float, kl_warmup: int) -> float:
    """Return the weight of the KL divergence at a step: linear from 0 over `kl_warmup` steps, then constant."""
    return kl_weight * min(1.0, step / kl_warmup) if kl_warmup else kl_weight


@dataclass
class Buffers:
    """The arrays between the operations of one step on M rows and L draws.

    The estimator says which it uses: SGVB-B `kl` (M,), SGVB-A `sampled_kl` and `weight` (L, M).
    """

    x: Array
    encoder_hidden: tuple[Array, ...]
    mu: Array
    logvar: Array
    eps: Array
    z: Array
    kl: Array
    sampled_kl: Array
    weight: Array
    decoder_hidden: tuple[Array, ...]
    out: Array
    log_px: Array
    dout: Array
    dz: Array
    dmu: Array
    dlogvar: Array
    grad: Array

    @classmethod
    def allocate(cls, network: Network, rows: int, draws: int, dtype: Any = np.float32) -> Buffers:
        """Allocate for a network."""
        wide, latent = (rows, network.latent_dim), (draws, rows, network.latent_dim)

        def empty(*shape: int) -> Array:
            return np.zeros(shape, dtype)

        return cls(
            x=empty(rows, network.data_dim),
            encoder_hidden=tuple(empty(rows, width) for width in network.encoder_hidden),
            mu=empty(*wide),
            logvar=empty(*wide),
            eps=empty(*latent),
            z=empty(*latent),
            kl=empty(rows),
            sampled_kl=empty(draws, rows),
            weight=empty(draws, rows),
            decoder_hidden=tuple(empty(draws * rows, width) for width in network.decoder_hidden),
            out=empty(draws * rows, network.decoder_dims[-1]),
            log_px=empty(draws * rows),
            dout=empty(draws * rows, network.decoder_dims[-1]),
            dz=empty(*latent),
            dmu=empty(*wide),
            dlogvar=empty(*wide),
            grad=empty(network.layout.size),
        )


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
    """Make one step of AEVB out of the operations: the law that every ``train_steps`` follows.

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
    check_estimator(estimator)
    sampled = estimator == "sgvb-a"
    draws, rows, latent_dim = b.z.shape
    flat_z, flat_dz = b.z.reshape(-1, latent_dim), b.dz.reshape(-1, latent_dim)

    plan.gather(data=data, index=index, scale=scale, binarize=binarize, seed=seed, step=step, x=b.x)
    b.eps[:] = normal(seed=seed, step=step, stream=Stream.LATENT, shape=b.eps.shape, dtype=b.eps.dtype)

    plan.encoder_forward(params=params, x=b.x, hidden=b.encoder_hidden, mu=b.mu, logvar=b.logvar)
    kl_terms = b.sampled_kl if sampled else b.kl
    latent_forward = plan.latent_forward_sampled if sampled else plan.latent_forward
    latent_forward(mu=b.mu, logvar=b.logvar, eps=b.eps, z=b.z, kl=kl_terms)
    plan.decoder_forward(params=params, z=flat_z, hidden=b.decoder_hidden, out=b.out)
    plan.likelihood(x=b.x, out=b.out, scale=1 / (draws * rows), log_px=b.log_px, dout=b.dout)
    log_px, kl = b.log_px.mean(dtype=np.float64).item(), kl_terms.mean(dtype=np.float64).item()
    if not np.isfinite(log_px - kl):
        return log_px, kl

    b.grad[:] = 0
    plan.decoder_backward(params=params, z=flat_z, hidden=b.decoder_hidden, dout=b.dout, dz=flat_dz, grad=b.grad)
    latent: dict[str, Array] = {"mu": b.mu, "logvar": b.logvar, "eps": b.eps, "dz": b.dz}
    if sampled:
        b.weight[:] = kl_weight / (draws * rows)
        plan.latent_backward_sampled(**latent, weight=b.weight, dmu=b.dmu, dlogvar=b.dlogvar)
    else:
        plan.latent_backward(**latent, kl_scale=kl_weight / rows, dmu=b.dmu, dlogvar=b.dlogvar)
    plan.encoder_backward(params=params, x=b.x, hidden=b.encoder_hidden, dmu=b.dmu, dlogvar=b.dlogvar, grad=b.grad)
    plan.update(optimizer=optimizer, params=params, grad=b.grad, state=state, step=step, decay=decay)
    return log_px, kl
