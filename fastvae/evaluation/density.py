"""Densities fitted to samples of the posterior, of many datapoints at once.

M datapoints, n samples each, J dimensions. All are evaluated in coordinates ``y = C^-1 (z - m)`` with the samples' mean
m and the Cholesky factor C of their covariance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastvae.arguments import choice
from fastvae.kernels import Array

__all__ = ["DENSITIES", "check_density", "fit_density"]

LogDensity = Callable[[Array], Array]

# A variance that a chain which hardly moved cannot fall below, as a share of the mean over its dimensions.
RIDGE = 1e-9

# Bandwidths tried, as factors of Scott's rule.
BANDWIDTH_FACTORS = np.exp((np.arange(10) - 5) / 2)


def check_density(name: str, n_samples: int, latent_dim: int) -> None:
    """Refuse an unknown density, or too few samples for one.

    The minimum is ``2 (J + 1)`` samples, of ``"kde"`` in the three quarters not held out. With J + 2 or fewer, even
    independent, the squared distance of another draw has no finite mean in the units of their covariance, which sets
    log q.

    Raises
    ------
    ValueError
        The density is unknown, or there are fewer samples than the minimum.
    """
    choice("density", name, DENSITIES)
    minimum = 2 * (latent_dim + 1)
    if name == "kde":
        minimum = 4 * (minimum - 1) // 3 + 1  # the smallest n of which n - n // 4 are as many
    if n_samples < minimum:
        raise ValueError(
            f"density {name!r} cannot be fitted to {n_samples} samples of {latent_dim} dimensions; raise n_draws to at "
            f"least {minimum}"
        )


def fit_density(name: str, samples: Array) -> LogDensity:
    """Fit a density to each datapoint's samples.

    Parameters
    ----------
    name : {"kde", "gaussian", "diagonal"}
        A Gaussian kernel density with the samples' covariance, its bandwidth that of ten factors of Scott's rule
        ``n^(-1/(J+4))`` which the held-out last quarter of the samples likes best; a Gaussian with full covariance; a
        Gaussian with diagonal covariance.
    samples : ndarray of shape (n, M, J)

    Returns
    -------
    callable
        From z of shape (k, M, J) to log q(z), shape (k, M), float64: NaN where a chain has stood still so often that
        its samples, those not held out, are at no more than J places, on which no density in J dimensions can stand.
    """
    return DENSITIES[name](samples.astype(np.float64))


def _n_held_out(n_samples: int) -> int:
    return n_samples // 4


class _Whitening:
    """Coordinates in which samples have mean 0 and covariance I."""

    def __init__(self, samples: Array, *, diagonal: bool = False) -> None:
        latent_dim = samples.shape[2]
        self.mean = samples.mean(axis=0)
        centred = samples - self.mean
        covariance = np.einsum("nmi,nmj->mij", centred, centred) / (len(samples) - 1)
        if diagonal:
            covariance = covariance * np.eye(latent_dim)
        n_places = 1 + (np.diff(samples, axis=0) != 0).any(axis=2).sum(axis=0)
        scale = np.trace(covariance, axis1=1, axis2=2) / latent_dim
        covariance += (np.where(scale > 0, RIDGE * scale, 1)[:, np.newaxis, np.newaxis]) * np.eye(latent_dim)
        factor = np.linalg.cholesky(covariance)
        self.inverse = np.linalg.inv(factor)
        # log |C| and the constant of a standard normal
        log_diagonal = np.log(np.diagonal(factor, axis1=1, axis2=2)) + 0.5 * np.log(2 * np.pi)
        self.log_constant = np.where(n_places > latent_dim, log_diagonal.sum(axis=1), np.nan)

    def __call__(self, z: Array) -> Array:
        return np.asarray(np.einsum("mij,nmj->nmi", self.inverse, z - self.mean))


def _gaussian(samples: Array, *, diagonal: bool = False) -> LogDensity:
    whiten = _Whitening(samples, diagonal=diagonal)

    def log_density(z: Array) -> Array:
        return np.asarray(-0.5 * np.square(whiten(z)).sum(axis=2) - whiten.log_constant)

    return log_density


def _diagonal(samples: Array) -> LogDensity:
    return _gaussian(samples, diagonal=True)


def _kde(samples: Array) -> LogDensity:
    n_fitted = len(samples) - _n_held_out(len(samples))
    scores = _kernel_log_density(samples[:n_fitted], BANDWIDTH_FACTORS[:, np.newaxis], samples[n_fitted:]).sum(axis=1)
    factors = np.where(np.isnan(scores[0]), np.nan, BANDWIDTH_FACTORS[scores.argmax(axis=0)])[np.newaxis]

    def log_density(z: Array) -> Array:
        return np.asarray(_kernel_log_density(samples, factors, z)[0])

    return log_density


def _kernel_log_density(centres: Array, factors: Array, z: Array) -> Array:
    """``log 1/n sum_i N(y; y_i, h^2 I) / |C|`` for F factors (F, M or 1) of Scott's rule at z (k, M, J): (F, k, M)."""
    n, m, latent_dim = centres.shape
    whiten = _Whitening(centres)
    y, y_centres = whiten(z.astype(np.float64)), whiten(centres)
    h = factors * n ** (-1 / (latent_dim + 4))
    log_density = np.empty((len(factors), len(z), m))
    for i in range(len(z)):  # all at once would hold n k M J numbers
        squares = np.square(y[i] - y_centres).sum(axis=2)
        exponents = -0.5 * squares / np.square(h)[:, np.newaxis]
        top = exponents.max(axis=1)
        log_density[:, i] = top + np.log(np.exp(exponents - top[:, np.newaxis]).mean(axis=1))
    return np.asarray(log_density - (latent_dim * np.log(h) + whiten.log_constant)[:, np.newaxis])


DENSITIES: dict[str, Callable[[Array], LogDensity]] = {"kde": _kde, "gaussian": _gaussian, "diagonal": _diagonal}
