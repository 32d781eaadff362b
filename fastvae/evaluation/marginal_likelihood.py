"""The paper's estimator of log p(x) from samples of the posterior (appendix D).

For any density q, ``1 / p(x) = E[q(z) / (p(z) p(x|z))]`` over the posterior p(z|x). Hamiltonian Monte Carlo samples it,
q is fitted to one half of the samples, and the other half estimates the mean. The logarithm makes it an upper bound in
expectation. It is reliable for fewer than five latent dimensions or so: in more, q misses the posterior, and single
samples decide.
"""

from __future__ import annotations

import warnings

import numpy as np

from fastvae.arguments import choice, integer
from fastvae.data import Dataset
from fastvae.evaluation.density import check_density, fit_density
from fastvae.evaluation.hmc import HMC, TARGET_ACCEPTANCE, begin, burn_in, log_prior
from fastvae.evaluation.inference import encoded_batches
from fastvae.evaluation.result import LogLikelihood, row_hashes, rows_key, treatment
from fastvae.evaluation.weights import WeightSums, effective_count
from fastvae.kernels import Array, Plan
from fastvae.kernels.places import place_of
from fastvae.rng import Stream, normal

__all__ = ["STARTS", "evaluate_marginal_likelihood"]

RELIABLE_LATENT_DIM = 5
STARTS = ("encoder", "prior")
# Draws of the prior of which the most probable one starts a chain.
PRIOR_STARTS = 64
# Nats by which an estimate may be above what log p(x) cannot exceed, and still be noise. Where z tells nothing of x, 50
# draws go beyond one nat in 3 % of rows in three dimensions; chains that missed the density fitted to them by up to
# 1e10.
MAX_EXCESS = 3.0


def evaluate_marginal_likelihood(
    plan: Plan,
    params: Array,
    dataset: Dataset,
    *,
    n_draws: int = 50,
    n_leapfrog: int = 4,
    n_burn_in: int = 100,
    density: str = "kde",
    start: str = "encoder",
    seed: int,
    binarize: str = "none",
    split: str | None = None,
) -> LogLikelihood:
    """Estimate log p(x) of each row by appendix D, all rows of a batch at once.

    The defaults are those of figure 3: 50 samples of the posterior to fit the density, as many again for the estimate,
    4 leapfrog steps between two of them, acceptance 0.9.

    Parameters
    ----------
    plan : Plan
    params : ndarray of shape (P,)
    dataset : Dataset
    n_draws : int
        Samples in each half, at least ``2 (J + 1)``, and a third more for ``density="kde"``.
    n_leapfrog : int
    n_burn_in : int
        Transitions before the samples, in which each row's step size is tuned.
    density : {"kde", "gaussian", "diagonal"}
        See `fastvae.evaluation.density.fit_density`.
    start : {"encoder", "prior"}
        Where chains begin: at a draw from q(z|x), or, for a model without a recognition model, at the most probable of
        64 draws from the prior.
    seed : int
        Key of all draws. A row's go by its values, whatever rows stand beside it.
    binarize : {"none", "dynamic", "fixed"}
        As trained with, see `fastvae.evaluation.result.treatment`.
    split : str, optional
        Which part of the data these are.

    Returns
    -------
    LogLikelihood
        All NaN for a row without a usable estimate: its chain was at too few places to fit a density, or it missed the
        density fitted. The latter shows in estimates that cannot be: ``log p(x) <= E[log p(x|z)]`` over the posterior,
        and they are more than 3 nats above the largest log p(x|z) of the row's own samples. The standard error allows
        for the correlation of samples, not for a chain that misses part of the posterior.

    Warns
    -----
    UserWarning
        The model has more than 5 latent dimensions, or rows have no usable estimate.

    Raises
    ------
    ValueError
        An argument is out of range, or the samples are too few to fit the density.
    """
    n_draws = integer("n_draws", n_draws, low=2)
    n_burn_in = integer("n_burn_in", n_burn_in, low=1)
    choice("start", start, STARTS)
    latent_dim = plan.network.latent_dim
    check_density(density, n_draws, latent_dim)
    if latent_dim > RELIABLE_LATENT_DIM:
        warnings.warn(
            f"the marginal-likelihood estimator is unreliable for {latent_dim} latent dimensions (appendix D of the "
            f"paper: above {RELIABLE_LATENT_DIM} or so); use importance or ais",
            stacklevel=2,
        )
    binarize, treated = treatment(dataset, binarize)
    hashes, sums = np.empty(dataset.n_rows, np.int64), WeightSums(dataset.n_rows)
    acceptance, independent, highest = np.zeros(dataset.n_rows), np.empty(dataset.n_rows), np.empty(dataset.n_rows)
    hmc, params = HMC(plan, n_leapfrog=n_leapfrog, seed=seed), place_of(plan).placed(params)
    for rows, x, mu, logvar in encoded_batches(plan, params, dataset, binarize=binarize, seed=seed):
        hashes[rows] = row_hashes(dataset, rows)
        keys = hashes[rows].astype(np.uint64) << np.uint64(32)
        from_encoder = start == "encoder"
        z = _encoder_start(plan, mu, logvar, keys, seed) if from_encoder else _prior_start(plan, params, x, seed)
        chains = begin(plan, params=params, x=x, z=z)
        step_size = burn_in(hmc, chains, keys=keys, n_transitions=n_burn_in, target=TARGET_ACCEPTANCE)
        samples = np.empty((2 * n_draws, *z.shape), z.dtype)
        log_pxz = np.empty((2 * n_draws, len(z)))
        for i in range(2 * n_draws):
            acceptance[rows] += hmc.transition(**chains, step_size=step_size, step=keys + np.uint64(n_burn_in + i))
            samples[i], log_pxz[i] = chains["z"], chains["log_density"]
        highest[rows] = (log_pxz - log_prior(samples)).max(axis=0)
        log_q = fit_density(density, samples[:n_draws])(samples[n_draws:])
        log_terms = np.ascontiguousarray((log_q - log_pxz[n_draws:]).T)
        sums.add(rows, log_terms)
        independent[rows] = effective_count(np.exp(log_terms - log_terms.max(axis=1, keepdims=True)))
    usable = -sums.log_mean <= highest + MAX_EXCESS
    if not usable.all():
        warnings.warn(
            f"{(~usable).sum()} of {dataset.n_rows} rows have no usable estimate of log p(x) and are NaN: their chains "
            "hardly moved, or missed the density fitted to them; raise n_draws or n_burn_in, or use importance or ais",
            stacklevel=2,
        )
    return LogLikelihood(
        log_likelihood=np.where(usable, -sums.log_mean, np.nan),
        standard_error=np.where(usable, sums.standard_error(independent), np.nan),
        effective_sample_size=np.where(usable, sums.effective_sample_size * independent / n_draws, np.nan),
        acceptance=acceptance / (2 * n_draws),
        options={"density": density, "n_leapfrog": hmc.n_leapfrog, "n_burn_in": n_burn_in, "start": start},
        estimator="marginal-likelihood",
        n_draws=n_draws,
        seed=seed,
        treatment=treated,
        rows_key=rows_key(hashes, binarize, seed),
        split=split,
    )


def _encoder_start(plan: Plan, mu: Array, logvar: Array, keys: Array, seed: int) -> Array:
    """Draw z from q(z|x), shape (M, J)."""
    eps = normal(seed=seed, step=keys, stream=Stream.AIS, shape=mu.shape[1:], dtype=mu.dtype)
    z, kl = np.empty((1, *mu.shape), mu.dtype), np.empty(len(mu), mu.dtype)
    plan.latent_forward(mu=mu, logvar=logvar, eps=eps[np.newaxis], z=z, kl=kl)
    return np.asarray(z[0])


def _prior_start(plan: Plan, params: Array, x: Array, seed: int) -> Array:
    """Return for each row the most probable of draws from the prior that all rows share, shape (M, J)."""
    shape = (PRIOR_STARTS, plan.network.latent_dim)
    draws = normal(seed=seed, step=0, stream=Stream.AIS, shape=shape, dtype=x.dtype)
    log_pxz = np.empty((PRIOR_STARTS, len(x)), x.dtype)
    for draw, log_density in zip(draws, log_pxz, strict=True):
        plan.log_joint(params=params, x=x, z=np.tile(draw, (len(x), 1)), log_pxz=log_density, dz=None)
    return np.asarray(draws[log_pxz.argmax(axis=0)])
