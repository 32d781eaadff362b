"""Visualisation: what the decoder makes of chosen places of the latent space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae import settings
from fastvae.arguments import integer, positive
from fastvae.evaluation import decode, encode
from fastvae.kernels import Array
from fastvae.model_data import fitted_dataset
from fastvae.model_plans import inference_plan

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["interpolate", "manifold", "traverse"]


def manifold(model: Model, n: int = 20) -> Array:
    """Return what lies all over a two-dimensional latent space: figure 4 of the paper (appendix A).

    A regular grid over the unit square, ``u = (i + 1/2) / n``, goes through the inverse Gaussian CDF to values of z,
    each cell of it as probable under the prior as any other.

    Parameters
    ----------
    n : int
        Places per side.

    Returns
    -------
    ndarray of shape (n * n, D)
        Means of p(x|z), line by line: z_0 rises from left to right, z_1 from the lowest line to the first.

    Raises
    ------
    NotFittedError
        The model is not fitted.
    ValueError
        It has not two latent dimensions.
    """
    from statistics import NormalDist  # its import takes longer than that of this whole module

    settings.check_fitted(model)
    n = integer("n", n, low=1)
    if model.network_.latent_dim != 2:
        raise ValueError(
            f"a manifold is drawn of 2 latent dimensions, this model has {model.network_.latent_dim}; "
            "train one with latent_dim=2, or look at this one with traverse"
        )
    places = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]
    z0, z1 = np.meshgrid(places, places[::-1])
    return _decode(model, np.stack([z0, z1], axis=-1))


def traverse(
    model: Model, X: Any = None, *, dimensions: int | Sequence[int] | None = None, n_steps: int = 11, span: float = 3.0
) -> Array:
    """Move along single latent dimensions, all others held (visualisation, section 1).

    Parameters
    ----------
    X : array of shape (1, D) or (D,), or Dataset of one row, optional
        The others are held at its posterior mean; by default at 0, the prior's.
    dimensions : int or sequence of int, optional
        Those to move along, counted from 0; by default all.
    n_steps : int
        Values that each takes, evenly spaced from ``-span`` to ``span``.
    span : float
        In standard deviations of the prior.

    Returns
    -------
    ndarray of shape (len(dimensions), n_steps, D)
        Means of p(x|z).

    Raises
    ------
    NotFittedError
        The model is not fitted.
    DataError
        The row does not fit the model.
    ValueError
        There are several rows, or an argument is out of range.
    """
    settings.check_fitted(model)
    latent_dim = model.network_.latent_dim
    if dimensions is None:
        dimensions = range(latent_dim)
    chosen = [dimensions] if isinstance(dimensions, int | np.integer) else list(dimensions)
    if not chosen:
        raise ValueError("dimensions is empty; name at least one")
    for dimension in chosen:
        integer("dimensions", dimension, low=0, high=latent_dim - 1)
    n_steps, span = integer("n_steps", n_steps, low=2), positive("span", span)
    z = np.zeros((len(chosen), n_steps, latent_dim))
    if X is not None:
        z[:] = _code(model, "X", X)
    z[np.arange(len(chosen)), :, chosen] = np.linspace(-span, span, n_steps)
    return _decode(model, z).reshape(len(chosen), n_steps, -1)


def interpolate(model: Model, a: Any, b: Any, n: int = 10) -> Array:
    """Go from one row to another through the latent space (visualisation, section 1).

    Parameters
    ----------
    a, b : array of shape (1, D) or (D,), or Dataset of one row
    n : int
        Places on the straight line between their posterior means, both ends included.

    Returns
    -------
    ndarray of shape (n, D)
        Means of p(x|z).

    Raises
    ------
    NotFittedError
        The model is not fitted.
    DataError
        A row does not fit the model.
    ValueError
        There are several rows, or fewer places than two.
    """
    n = integer("n", n, low=2)
    return _decode(model, np.linspace(_code(model, "a", a), _code(model, "b", b), n))


def _code(model: Model, name: str, row: Any) -> Array:
    """Return the posterior mean of one row, shape (J,)."""
    settings.check_encodes(model)
    dataset = fitted_dataset(model, np.reshape(row, (1, -1)) if np.ndim(row) == 1 else row)
    if dataset.n_rows != 1:
        raise ValueError(f"{name} must be one row, got {dataset.n_rows}")
    code: Array = encode(inference_plan(model), model.params_, dataset)[0][0]
    return code


def _decode(model: Model, z: Array) -> Array:
    """Return the mean of p(x|z) of every z, shape (number of them, D)."""
    codes = np.ascontiguousarray(z.reshape(-1, model.network_.latent_dim), model.params_.dtype)
    return decode(inference_plan(model), model.params_, codes)
