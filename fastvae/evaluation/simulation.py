"""Rows drawn from the generative model, with the z that made them."""

from __future__ import annotations

import numpy as np

from fastvae.kernels import Array, Plan
from fastvae.kernels.places import place_of
from fastvae.rng import Stream, normal

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
    network, place, dtype = plan.network, place_of(plan), params.dtype
    params = place.placed(params)
    z = normal(seed=seed, step=0, stream=Stream.DREAM_LATENT, shape=(n_rows, network.latent_dim), dtype=dtype)
    x = np.empty((n_rows, network.data_dim), dtype)
    for start in range(0, n_rows, plan.rows):
        part = x[start : start + plan.rows]
        *hidden, out = (place.empty(len(part), width) for width in network.decoder_dims[1:])
        plan.decoder_forward(params=params, z=z[start : start + len(part)], hidden=tuple(hidden), out=out)
        for i in range(len(part)):  # a step of the stream for each row: it does not matter how many the plan holds
            plan.likelihood_sample(out=out[i : i + 1], seed=seed, step=start + i, x=part[i : i + 1])
    return x, z
