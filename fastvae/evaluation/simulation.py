"""Rows drawn from the generative model, with the z that made them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae.kernels import Array, Plan
from fastvae.rng import Stream, normal, uniform

__all__ = ["simulate"]


def simulate(plan: Plan, params: Array, *, n_rows: int, seed: int) -> tuple[Array, Array]:
    """Draw z from the prior and x from p(x|z).

    Parameters
    ----------
    plan : Plan
    params : ndarray of shape (P,)
    n_rows : int
    seed : int
        Key of the draws.

    Returns
    -------
    x : ndarray of shape (n_rows, D)
        0 and 1 of the Bernoulli likelihood.
    z : ndarray of shape (n_rows, J)
    """
    network, dtype = plan.network, params.dtype
    z = normal(seed=seed, step=0, stream=Stream.DREAM_LATENT, shape=(n_rows, network.latent_dim), dtype=dtype)
    x = np.empty((n_rows, network.data_dim), dtype)
    for start in range(0, n_rows, plan.rows):
        part = x[start : start + plan.rows]
        hidden = tuple(np.empty((len(part), width), dtype) for width in network.decoder_hidden)
        out = np.empty((len(part), network.decoder_dims[-1]), dtype)
        plan.decoder_forward(params=params, z=z[start : start + len(part)], hidden=hidden, out=out)
        plan.likelihood_mean(out=out, mean=part)
        # a step of the streams for each row, so that it does not matter how many the plan holds
        key: dict[str, Any] = {"seed": seed, "step": np.arange(start, start + len(part)), "stream": Stream.DREAM}
        if network.likelihood == "gaussian":
            floor = network.logvar_floor
            logvar = floor + np.logaddexp(0, out[:, network.data_dim :] - floor)
            part += np.exp(logvar / 2) * normal(**key, shape=part.shape[1:], dtype=dtype)
        else:
            part[:] = uniform(**key, shape=part.shape[1:]) < part
    return x, z
