"""Means of weights that are known by their logarithms: log-mean-exp, its standard error, effective sample size.

Of n weights w with sums ``s1 = sum w`` and ``s2 = sum w^2`` the estimate is ``log(s1 / n)``. Its standard error by the
delta method is that of the mean over the mean, ``sqrt((n s2 / s1^2 - 1) / (n - 1))``, and the effective sample size is
``s1^2 / s2`` (Kong 1992).
"""

from __future__ import annotations

import numpy as np

from fastvae.kernels import Array

__all__ = ["WeightSums", "effective_count"]


class WeightSums:
    """Sums of the weights of N rows that come in blocks of draws; the memory does not depend on their number.

    All shifted by each row's largest weight, so that none overflows. Blocks must be cut alike for a row whatever
    rows stand beside it, as they decide the last bits.

    Parameters
    ----------
    n_rows : int
        N.
    """

    def __init__(self, n_rows: int) -> None:
        self._top = np.full(n_rows, -np.inf)
        self._sums = np.zeros((2, n_rows))
        self._counts = np.zeros(n_rows, np.int64)

    def add(self, rows: slice, log_weights: Array) -> None:
        """Add weights of some rows.

        Parameters
        ----------
        rows : slice
        log_weights : ndarray of shape (rows, n), float64
            C-contiguous.
        """
        top = np.maximum(self._top[rows], log_weights.max(axis=1))
        shift = np.where(np.isneginf(top), 0, top)  # of weights that are all zero
        kept = np.exp(self._top[rows] - shift)
        weights = np.exp(log_weights - shift[:, np.newaxis])
        self._sums[0, rows] = self._sums[0, rows] * kept + weights.sum(axis=1)
        self._sums[1, rows] = self._sums[1, rows] * kept**2 + (weights * weights).sum(axis=1)
        self._top[rows] = top
        self._counts[rows] += log_weights.shape[1]

    @property
    def log_mean(self) -> Array:
        """Logarithm of the mean weight of each row, shape (N,)."""
        with np.errstate(divide="ignore"):
            return np.asarray(self._top + np.log(self._sums[0] / self._counts))

    @property
    def effective_sample_size(self) -> Array:
        """``s1^2 / s2``, shape (N,); NaN where all weights are zero."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._sums[0] ** 2 / self._sums[1])

    def standard_error(self, independent: Array | None = None) -> Array:
        """Return the standard error of `log_mean`, shape (N,); NaN of a single weight, whose spread is unknown.

        Parameters
        ----------
        independent : ndarray of shape (N,), optional
            How many independent weights the correlated ones are worth; by default their number.
        """
        n = self._counts if independent is None else independent
        with np.errstate(invalid="ignore", divide="ignore"):
            relative_variance = np.maximum(self._counts / self.effective_sample_size - 1, 0)
            return np.asarray(np.where(np.asarray(n) > 1, np.sqrt(relative_variance / np.maximum(n - 1, 0)), np.nan))


def effective_count(chains: Array) -> Array:
    """Return how many independent draws a chain's are worth: ``n / (1 + 2 sum of autocorrelations)``.

    The sum runs over pairs of lags (2i, 2i + 1) until one is negative (Geyer 1992, initial positive sequence).

    Parameters
    ----------
    chains : ndarray of shape (N, n)
        n consecutive values of each of N chains.

    Returns
    -------
    ndarray of shape (N,), float64
        At least 1 and at most n; 1 of a chain that stands still, which says nothing of the spread.
    """
    n = chains.shape[1]
    centred = chains - chains.mean(axis=1, keepdims=True)
    variance = (centred * centred).mean(axis=1)
    moves = chains.max(axis=1) > chains.min(axis=1)  # of equal values the variance can be a rounding error
    total, positive = np.full(len(chains), -1.0), moves.copy()
    for lag in range(0, n - 1, 2):
        products = [(centred[:, : n - k] * centred[:, k:]).sum(axis=1) / n for k in (lag, lag + 1)]
        pair = (products[0] + products[1]) / np.where(moves, variance, 1)
        positive &= pair > 0
        total += np.where(positive, 2 * pair, 0)
    return np.asarray(np.where(moves, np.clip(n / np.maximum(total, 1), 1, n), 1))
