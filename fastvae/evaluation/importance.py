"""log p(x) by importance sampling from the recognition model.

``log 1/k sum_i p(x, z_i) / q(z_i|x)`` with ``z_i ~ q(z|x)``: a lower bound in expectation that rises to log p(x) with k
(Rezende et al. 2014, section 5; Burda et al. 2016). It is only as good as q covers the posterior; see the effective
sample size.
"""

from __future__ import annotations

import numpy as np

from fastvae.arguments import integer
from fastvae.data import Dataset
from fastvae.evaluation.elbo import POOL_DRAWS
from fastvae.evaluation.inference import encoded_batches
from fastvae.evaluation.result import LogLikelihood, row_hashes, rows_key, treatment
from fastvae.evaluation.weights import WeightSums
from fastvae.kernels import Array, Plan
from fastvae.kernels.places import place_of
from fastvae.rng import Stream, normal

__all__ = ["DEFAULT_IMPORTANCE_DRAWS", "evaluate_importance"]

DEFAULT_IMPORTANCE_DRAWS = 500

# Draws between which the pool is drawn anew and the rows are encoded again, which takes a few percent of them.
BLOCK_DRAWS = 64


def evaluate_importance(
    plan: Plan,
    params: Array,
    dataset: Dataset,
    *,
    n_draws: int = DEFAULT_IMPORTANCE_DRAWS,
    seed: int,
    binarize: str = "none",
    split: str | None = None,
) -> LogLikelihood:
    """Estimate log p(x) of each row by importance sampling; the memory does not depend on the number of draws.

    As in `evaluate_bound` all rows take their draws from one pool, from places that hashes of their values give. Every
    `BLOCK_DRAWS` draws there is a new pool of `POOL_DRAWS`, so two rows share a 64th of their draws on average.

    Parameters
    ----------
    plan : Plan
        Its ``rows * draws`` rows of z are filled with draws where the rows of the dataset do not.
    params : ndarray of shape (P,)
    dataset : Dataset
    n_draws : int
        k.
    seed : int
        Key of the draws.
    binarize : {"none", "dynamic", "fixed"}
        As trained with, see `fastvae.evaluation.result.treatment`.
    split : str, optional
        Which part of the data these are.

    Returns
    -------
    LogLikelihood

    Raises
    ------
    ValueError
        `n_draws` is less than 1.
    """
    n_draws = integer("n_draws", n_draws, low=1)
    binarize, treated = treatment(dataset, binarize)
    hashes, sums = np.empty(dataset.n_rows, np.int64), WeightSums(dataset.n_rows)
    params, pool_shape = place_of(plan).placed(params), (POOL_DRAWS, plan.network.latent_dim)
    for first in range(0, n_draws, BLOCK_DRAWS):
        block = first // BLOCK_DRAWS
        pool = normal(seed=seed, step=block, stream=Stream.IMPORTANCE, shape=pool_shape, dtype=params.dtype)
        draws = np.arange(min(BLOCK_DRAWS, n_draws - first))
        for rows, x, mu, logvar in encoded_batches(plan, params, dataset, binarize=binarize, seed=seed):
            if first == 0:
                hashes[rows] = row_hashes(dataset, rows)
            places = (hashes[rows] + draws[:, np.newaxis]) % POOL_DRAWS
            sums.add(rows, _log_weights(plan, params, x, mu, logvar, pool, places))
    return LogLikelihood(
        log_likelihood=sums.log_mean,
        standard_error=sums.standard_error(),
        effective_sample_size=sums.effective_sample_size,
        shared=BLOCK_DRAWS / POOL_DRAWS,
        estimator="importance",
        n_draws=n_draws,
        seed=seed,
        treatment=treated,
        rows_key=rows_key(hashes, binarize, seed),
        split=split,
    )


def _log_weights(plan: Plan, params: Array, x: Array, mu: Array, logvar: Array, pool: Array, places: Array) -> Array:
    """Return ``log p(x, z) - log q(z|x)`` for draws of z whose eps stand at `places` (k, M) of the pool, (M, k).

    ``log q = -1/2 sum_j (log 2 pi + logvar + eps^2)``.
    """
    (n_draws, m), latent_dim, place = places.shape, pool.shape[1], place_of(plan)
    at_once = min(n_draws, max(plan.rows * plan.draws // m, 1))
    z, kl, log_pxz = place.empty(at_once, m, latent_dim), place.empty(m), np.empty(at_once * m, pool.dtype)
    heads = {"mu": place.placed(mu), "logvar": place.placed(logvar)}
    eps_squares = np.square(pool, dtype=np.float64).sum(axis=1)
    normaliser = latent_dim * np.log(2 * np.pi) + logvar.sum(axis=1, dtype=np.float64)
    log_weights = np.empty((m, n_draws))
    for first in range(0, n_draws, at_once):
        chosen = places[first : first + at_once]
        eps, n = pool[chosen], len(chosen)
        for i in range(0, n, plan.draws):
            some = slice(i, min(i + plan.draws, n))
            plan.latent_forward(**heads, eps=eps[some], z=z[some], kl=kl)
        flat_z = z[:n].reshape(n * m, latent_dim)
        plan.log_joint(params=params, x=x, z=flat_z, log_pxz=log_pxz[: n * m], dz=None)
        log_q = -0.5 * (normaliser + eps_squares[chosen])
        log_weights[:, first : first + n] = (log_pxz[: n * m].reshape(n, m) - log_q).T
    return log_weights
