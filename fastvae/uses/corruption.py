"""Corruption of rows, for models to undo."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae import settings
from fastvae.arguments import choice, real
from fastvae.data import Dataset, as_dataset
from fastvae.kernels import Array
from fastvae.rng import Stream, normal, uniform

__all__ = ["CORRUPTIONS", "corrupt"]

CORRUPTIONS = ("gaussian", "salt-pepper", "mask")

# Rows whose noise is drawn at once.
_BLOCK_ROWS = 64


def corrupt(
    X: Any,
    *,
    kind: str = "gaussian",
    amount: float,
    random_state: int | np.random.RandomState | None = None,
    data_range: tuple[float, float] = (0.0, 1.0),
) -> Array:
    """Corrupt rows as a model sees them, ``X * scale``.

    The noise of a row depends on its number, and not on how many rows follow it.

    Parameters
    ----------
    X : array of shape (N, D), or Dataset
        An array of uint8 with values above 1 is taken for grey levels and divided by 255.
    kind : {"gaussian", "salt-pepper", "mask"}
        Add Gaussian noise; set values to either end of the range, with equal chances; set values to its lower end.
    amount : float
        Standard deviation of the Gaussian noise as a share of the range; for the other kinds the probability, in
        [0, 1], that a value is set.
    random_state : int, RandomState or None
        Key of the noise; None draws a fresh one.
    data_range : tuple of float
        Lowest and highest value. The result lies between them.

    Returns
    -------
    ndarray of shape (N, D), float32

    Raises
    ------
    ValueError
        The kind is unknown, the amount or range is none, or a value lies outside the range.
    """
    choice("kind", kind, CORRUPTIONS)
    low, high = (real(f"data_range[{i}]", end) for i, end in enumerate(data_range))
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"data_range must be two finite numbers, the lower one first, got {data_range!r}")
    if not 0 <= real("amount", amount) <= (1 if kind != "gaussian" else np.finfo(np.float32).max):
        allowed = "a finite number that is not negative" if kind == "gaussian" else "a probability in [0, 1]"
        raise ValueError(f"amount must be {allowed} for kind={kind!r}, got {amount!r}")
    seed = settings.seed(random_state)
    x = (X if isinstance(X, Dataset) else as_dataset(X)).as_seen()
    slack = 1e-6 * (high - low)  # rescaling leaves values such as 1.0000001
    if not low - slack <= x.min() <= x.max() <= high + slack:
        raise ValueError(
            f"X has values from {x.min():g} to {x.max():g}, outside data_range {data_range}; give the range of the data"
        )
    for block, start in enumerate(range(0, len(x), _BLOCK_ROWS)):
        rows = x[start : start + _BLOCK_ROWS]
        if kind == "gaussian":
            noise = normal(seed=seed, step=block, stream=Stream.CORRUPT, shape=rows.shape)
            rows += np.float32(amount * (high - low)) * noise
            continue
        u = uniform(seed=seed, step=block, stream=Stream.CORRUPT, shape=rows.shape)
        if kind == "mask":
            rows[u < amount] = low
        else:
            rows[u < amount / 2] = low
            rows[u > 1 - amount / 2] = high
    clipped: Array = np.clip(x, low, high, out=x)
    return clipped
