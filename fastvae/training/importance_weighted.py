"""The importance-weighted bound (Burda, Grosse & Salakhutdinov 2016) as an objective."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastvae.kernels import Array, Plan
from fastvae.rng import Stream
from fastvae.training.aevb import Buffers, Fused

if TYPE_CHECKING:
    from fastvae.training.state import State

__all__ = ["ImportanceWeighted", "compose_importance_weighted", "importance_weights"]


def importance_weights(log_w: Array) -> tuple[Array, Array]:
    """Return log 1/k sum_l w_l of each datapoint and the weights w_l / sum w, from log w of shape (k, M)."""
    with np.errstate(all="ignore"):  # what is not finite comes through as values
        largest = log_w.max(axis=0)
        w = np.exp(log_w - largest)
        total = w.sum(axis=0)
        return largest + np.log(total / len(log_w)), w / total


def compose_importance_weighted(plan: Plan, b: Buffers, *, params: Array) -> tuple[float, float]:
    """Compute the gradient of the importance-weighted bound of ``b.x`` with the noise ``b.eps`` into ``b.grad``.

    NumPy weighs the rows of ``b.dout``.

    Returns
    -------
    log_px, kl : float
        As `ImportanceWeighted` has them. When their difference is not finite, there is no gradient.
    """
    draws, rows, latent_dim = b.z.shape
    flat_z, flat_dz = b.z.reshape(-1, latent_dim), b.dz.reshape(-1, latent_dim)
    plan.encoder_forward(params=params, x=b.x, hidden=b.encoder_hidden, mu=b.mu, logvar=b.logvar)
    plan.latent_forward_sampled(mu=b.mu, logvar=b.logvar, eps=b.eps, z=b.z, kl=b.sampled_kl)
    plan.decoder_forward(params=params, z=flat_z, hidden=b.decoder_hidden, out=b.out)
    plan.likelihood(x=b.x, out=b.out, scale=1 / rows, log_px=b.log_px, dout=b.dout)

    log_px = b.log_px.reshape(draws, rows).astype(np.float64)
    bound, weights = importance_weights(log_px - b.sampled_kl)
    mean_bound, mean_log_px = bound.mean().item(), (weights * log_px).sum(axis=0).mean().item()
    if not np.isfinite(mean_bound):
        return mean_log_px, mean_log_px - mean_bound

    b.grad[:] = 0
    b.weight[:] = weights / rows
    b.dout *= weights.reshape(-1, 1).astype(b.dout.dtype)
    plan.decoder_backward(params=params, z=flat_z, hidden=b.decoder_hidden, dout=b.dout, dz=flat_dz, grad=b.grad)
    plan.latent_backward_sampled(
        mu=b.mu, logvar=b.logvar, eps=b.eps, dz=b.dz, weight=b.weight, dmu=b.dmu, dlogvar=b.dlogvar
    )
    plan.encoder_backward(params=params, x=b.x, hidden=b.encoder_hidden, dmu=b.dmu, dlogvar=b.dlogvar, grad=b.grad)
    return mean_log_px, mean_log_px - mean_bound


@dataclass(frozen=True)
class ImportanceWeighted(Fused):
    """Ascend ``1/M sum_m log 1/k sum_l p(x_m, z_ml) / q(z_ml|x_m)``, k the plan's draws (Burda et al. 2016, eq. 8).

    Its gradient is that of ``log w_l = log p(x|z_l) - [log q(z_l|x) - log p(z_l)]`` with the normalised weights
    ``w_l / sum w`` in place of 1 / L (their equation 14); k = 1 is AEVB with SGVB-A.

    Statistics: `log_px` is the mean of log p(x|z_l) under the normalised weights, an estimate of its posterior mean,
    and `kl` what it exceeds the bound by, so that ``log_px - kl`` is the importance-weighted bound. As k grows, `kl`
    becomes the divergence of the true posterior from the prior.
    """

    estimator: ClassVar[str] = "iwae"

    def allocate(self, rows: int, dtype: Any) -> Buffers:
        """Allocate for M rows and k draws; NumPy weighs the rows of `dout`."""
        b = super().allocate(rows, dtype)
        return replace(b, dout=np.empty(b.dout.shape, dtype))

    def measure(self, state: State, b: Buffers, *, index: Array, step: int) -> tuple[float, ...]:
        """Compute the gradient with operations, as ``train_steps`` does in one piece."""
        self.gather(b.x, index=index, step=step)
        self.draw(b.eps, stream=Stream.LATENT, step=step)
        return compose_importance_weighted(self.plan, b, params=state.params)
