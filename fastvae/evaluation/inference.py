"""The encoder and the decoder over whole datasets, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastvae.data import Dataset
from fastvae.kernels import Array, Plan
from fastvae.kernels.places import place_of
from fastvae.network import Network

__all__ = ["CACHED_VALUES", "batch_rows", "decode", "encode", "encoded_batches", "gathered_batches"]


# Values of the decoder's output that are worked on at once: 1 MB, within a core's cache. An engine packs the weights
# for each batch. For MNIST that is 334 rows: the bound of the test rows takes 70 ms, with 128 rows 76 and with 1024 73,
# and evaluation 20 MB less than with 1024.
CACHED_VALUES = 2**18


def batch_rows(network: Network, values: int = CACHED_VALUES) -> int:
    """Return how many rows at once keep the decoder's output at so many values."""
    return min(max(values // network.decoder_dims[-1], 16), values // 256)


def gathered_batches(
    plan: Plan, dataset: Dataset, *, binarize: str = "none", seed: int = 0, batch: int | None = None
) -> Iterator[tuple[slice, Array]]:
    """Yield (rows, x) for batches of `batch` rows, by default ``plan.rows``; the array is used again for the next.

    It lies where the plan computes, see `fastvae.kernels.places`.
    """
    size = batch or plan.rows
    x = place_of(plan).empty(size, plan.network.data_dim)
    for start in range(0, dataset.n_rows, size):
        index = np.arange(start, min(start + size, dataset.n_rows), dtype=np.int64)
        m = len(index)
        plan.gather(data=dataset.rows, index=index, scale=dataset.scale, binarize=binarize, seed=seed, step=0, x=x[:m])
        yield slice(start, start + m), x[:m]


def encoded_batches(
    plan: Plan, params: Array, dataset: Dataset, *, binarize: str = "none", seed: int = 0
) -> Iterator[tuple[slice, Array, Array, Array]]:
    """Yield (rows, x, mu, logvar) for batches of up to ``plan.rows`` rows; the arrays are used again for the next.

    x lies where the plan computes, mu and logvar are NumPy's.
    """
    network, place = plan.network, place_of(plan)
    params = place.placed(params)
    mu, logvar = np.empty((2, plan.rows, network.latent_dim), params.dtype)
    hidden = [place.empty(plan.rows, width) for width in network.encoder_hidden]
    for rows, x in gathered_batches(plan, dataset, binarize=binarize, seed=seed):
        m = len(x)
        layers = tuple(h[:m] for h in hidden)
        plan.encoder_forward(params=params, x=x, hidden=layers, mu=mu[:m], logvar=logvar[:m])
        yield rows, x, mu[:m], logvar[:m]


def encode(plan: Plan, params: Array, dataset: Dataset) -> tuple[Array, Array]:
    """Return mean and log variance of q(z|x).

    Parameters
    ----------
    plan : Plan
    params : ndarray of shape (P,)
    dataset : Dataset
        N rows, seen as they are (never binarised).

    Returns
    -------
    mu, logvar : ndarray of shape (N, J)
    """
    shape = (dataset.n_rows, plan.network.latent_dim)
    mu, logvar = np.empty(shape, params.dtype), np.empty(shape, params.dtype)
    for rows, _, batch_mu, batch_logvar in encoded_batches(plan, params, dataset):
        mu[rows], logvar[rows] = batch_mu, batch_logvar
    return mu, logvar


def decode(plan: Plan, params: Array, z: Array) -> Array:
    """Return the mean of p(x|z).

    Parameters
    ----------
    plan : Plan
    params : ndarray of shape (P,)
    z : ndarray of shape (N, J)
        C-contiguous, of the parameters' dtype.

    Returns
    -------
    ndarray of shape (N, D)
    """
    network, place, size = plan.network, place_of(plan), min(plan.rows, len(z))
    params, mean = place.placed(params), np.empty((len(z), network.data_dim), params.dtype)
    *hidden, out = (place.empty(size, width) for width in network.decoder_dims[1:])
    for start in range(0, len(z), plan.rows):
        rows = slice(start, min(start + plan.rows, len(z)))
        m = rows.stop - rows.start
        plan.decoder_forward(params=params, z=z[rows], hidden=tuple(h[:m] for h in hidden), out=out[:m])
        plan.likelihood_mean(out=out[:m], mean=mean[rows])
    return mean
