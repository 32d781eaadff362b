"""Denoising: what a model makes of corrupted rows, and how much nearer to the clean ones that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae import settings
from fastvae.errors import DataError
from fastvae.evaluation import decode, encode
from fastvae.kernels import Array
from fastvae.model_data import fitted_dataset
from fastvae.model_plans import inference_plan

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["Denoised", "denoise", "psnr", "value_range"]


@dataclass(frozen=True)
class Denoised:
    """Denoised rows, and their peak signal-to-noise ratio where the clean ones are known.

    Attributes
    ----------
    rows : ndarray of shape (N, D)
        Means of p(x|z), as the model sees data.
    psnr_corrupted, psnr_denoised : ndarray of shape (N,), float64, or None
        Of the corrupted rows and of `rows`, against the clean ones, in dB; see `psnr`.
    data_range : float or None
        The peak: highest less lowest value that data can have.
    """

    rows: Array
    psnr_corrupted: Array | None = None
    psnr_denoised: Array | None = None
    data_range: float | None = None

    def summary(self) -> dict[str, Any]:
        """Return the ratios of the squared error's mean over all rows, as JSON-serialisable values."""
        return {
            "psnr_corrupted": _of_all_rows(self.psnr_corrupted),
            "psnr_denoised": _of_all_rows(self.psnr_denoised),
            "data_range": self.data_range,
        }


def denoise(model: Model, X: Any, *, clean: Any = None) -> Denoised:
    """Reconstruct corrupted rows: the mean of p(x|z) at the posterior mean of z (sections 1 and 2.1).

    The model was trained on clean rows, and how well it answers to corrupted ones depends on both: at Gaussian noise of
    0.2 Frey faces gain 8 dB, at 0.3 MNIST digits lose 3, whose margins had never been anything but black.

    Parameters
    ----------
    X : array of shape (N, D), or Dataset
        The corrupted rows; `fastvae.uses.corrupt` makes some.
    clean : array of shape (N, D), or Dataset, optional
        The same rows without corruption.

    Returns
    -------
    Denoised

    Raises
    ------
    NotFittedError
        The model is not fitted.
    DataError
        The rows do not fit the model, or not each other.
    ValueError
        The rows have another width than those of training.
    """
    settings.check_encodes(model)
    corrupted = fitted_dataset(model, X)
    reference = None if clean is None else fitted_dataset(model, clean)
    if reference is not None and reference.n_rows != corrupted.n_rows:
        raise DataError(f"clean has {reference.n_rows} rows for {corrupted.n_rows} corrupted ones; give one for each")
    plan, params = inference_plan(model), model.params_
    rows = decode(plan, params, encode(plan, params, corrupted)[0])
    if reference is None:
        return Denoised(rows)
    target = reference.as_seen()
    low, high = value_range(model, target)
    return Denoised(
        rows,
        psnr_corrupted=psnr(corrupted.as_seen(), target, data_range=high - low),
        psnr_denoised=psnr(rows, target, data_range=high - low),
        data_range=high - low,
    )


def psnr(rows: Array, clean: Array, *, data_range: float) -> Array:
    """Return the peak signal-to-noise ratio of each row, ``10 log10(data_range^2 / mean_d (x_d - clean_d)^2)``.

    Parameters
    ----------
    rows, clean : ndarray of shape (N, D)
    data_range : float
        Highest less lowest value that data can have.

    Returns
    -------
    ndarray of shape (N,), float64
        In dB; infinite for a row that equals its clean one.
    """
    mean_square = np.square(rows - clean).mean(1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        ratio: Array = 10 * np.log10(data_range**2 / mean_square)
    return ratio


def value_range(model: Model, rows: Array) -> tuple[float, float]:
    """Return the lowest and the highest value of data: 0 and 1 where the model knows no others, else those of rows.

    Parameters
    ----------
    model : Model
    rows : ndarray of shape (N, D)
        As the model sees data.

    Raises
    ------
    DataError
        The rows' values are all the same, so they have no range.
    """
    if model.network_.likelihood == "bernoulli" or model.network_.mean == "sigmoid":
        return 0.0, 1.0
    low, high = float(rows.min()), float(rows.max())
    if low == high:
        raise DataError(f"all values of the rows are {low:g}, so they have no range to measure noise by; give others")
    return low, high


def _of_all_rows(ratios: Array | None) -> float | None:
    """Return the ratio in dB that belongs to the mean of the rows' squared errors."""
    if ratios is None:
        return None
    with np.errstate(divide="ignore"):
        return float(-10 * np.log10(np.mean(10 ** (-ratios / 10))))
