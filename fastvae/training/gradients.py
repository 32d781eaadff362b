"""Gradients of the bound in phi by several unbiased estimators, for comparing their variances (section 2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastvae.arguments import choice
from fastvae.kernels import Array
from fastvae.rng import Stream, normal
from fastvae.training.aevb import Buffers, compose_forward, compose_gradient

if TYPE_CHECKING:
    from fastvae.kernels import Plan

__all__ = ["GRADIENT_ESTIMATORS", "phi_gradient"]

GRADIENT_ESTIMATORS = ("sgvb-b", "sgvb-a", "score-function")


def phi_gradient(plan: Plan, params: Array, x: Array, *, estimator: str, seed: int, step: int) -> Array:
    """Estimate the gradient of a minibatch's mean bound in the encoder's parameters from one set of draws.

    - ``"sgvb-b"`` and ``"sgvb-a"``: of equations 7 and 6, through ``z = mu + sigma eps``.
    - ``"score-function"``: the naive estimator that section 2.2 rules out for its variance,
      ``1/L sum_l f(z_l) d log q(z_l|x) / d phi`` with ``f = log p(x, z) - log q(z|x)``, without a baseline (the
      gradient of ``-log q`` within f has mean zero).

    All have the same mean over draws. One key (seed, step) gives the same z to each.

    Parameters
    ----------
    plan : Plan
        Its `draws` are L.
    params : ndarray of shape (P,)
    x : ndarray of shape (M, D)
        As `Plan.gather` makes it.
    estimator : {"sgvb-b", "sgvb-a", "score-function"}
    seed, step : int
        Key of ``eps``, from stream LATENT.

    Returns
    -------
    ndarray of shape (P_phi,)
        Nats per datapoint; the encoder's part of the flat buffer.

    Raises
    ------
    ValueError
        An unknown estimator.
    """
    choice("estimator", estimator, GRADIENT_ESTIMATORS)
    b = Buffers.allocate(plan.network, len(x), plan.draws, params.dtype)
    b.x[:] = x
    b.eps[:] = normal(seed=seed, step=step, stream=Stream.LATENT, shape=b.eps.shape, dtype=b.eps.dtype)
    if estimator == "score-function":
        _score_function(plan, b, params)
    else:
        compose_gradient(plan, b, params=params, estimator=estimator, kl_weight=1.0)
    return b.grad[: plan.network.layout.encoder[-1].end]


def _score_function(plan: Plan, b: Buffers, params: Array) -> None:
    """Backprop ``f d log q``, d log q being ``eps / sigma`` in mu and ``(eps^2 - 1) / 2`` in logvar."""
    compose_forward(plan, b, params=params, estimator="sgvb-a")
    f = (b.log_px.reshape(b.sampled_kl.shape) - b.sampled_kl)[..., np.newaxis] / b.sampled_kl.size
    b.dmu[:] = (f * b.eps).sum(axis=0) * np.exp(-b.logvar / 2)
    b.dlogvar[:] = (f * (b.eps * b.eps - 1)).sum(axis=0) / 2
    plan.encoder_backward(params=params, x=b.x, hidden=b.encoder_hidden, dmu=b.dmu, dlogvar=b.dlogvar, grad=b.grad)
