"""The check of values against a likelihood, before a model sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.data.dataset import Dataset, value_blocks
from fastvae.errors import DataError

__all__ = ["check_values"]

# Rescaling in float32 leaves values such as 1.0000001; the likelihoods are smooth in x, so that much is accepted.
RANGE_TOLERANCE = 1e-6


def check_values(dataset: Dataset, likelihood: str, mean: str) -> None:
    """Check that every value is one that the likelihood can explain.

    Every x = rows * scale must be finite in float32, the precision of the kernels. For the Bernoulli likelihood, and
    for a Gaussian whose mean is a sigmoid, it must lie in [0, 1], up to 1e-6 for rounding in a rescaling. The data are
    read in blocks of rows, so a memory-mapped array stays on disk.

    Parameters
    ----------
    dataset : Dataset
        The data to check, sparse or dense.
    likelihood : {"bernoulli", "gaussian"}
        The decoder's distribution p(x|z).
    mean : {"sigmoid", "identity"}
        The Gaussian's mean; not looked at for the Bernoulli likelihood.

    Raises
    ------
    DataError
        A value is not finite, or outside [0, 1] where it must not be. The message names the first such value by its
        row and column in the source (counted from 0; line and column of a text file from 1), and how many there are.
    ValueError
        The likelihood or mean is unknown.
    """
    if likelihood not in ("bernoulli", "gaussian"):
        raise ValueError(f"likelihood must be 'bernoulli' or 'gaussian', got {likelihood!r}")
    if likelihood == "gaussian" and mean not in ("sigmoid", "identity"):
        raise ValueError(f"mean must be 'sigmoid' or 'identity', got {mean!r}")
    bounded = likelihood == "bernoulli" or mean == "sigmoid"
    upper = 1 + RANGE_TOLERANCE
    if dataset.rows.dtype == np.uint8 and (not bounded or 255 * dataset.scale <= upper):
        return

    not_finite = _Offenders(dataset)
    outside, negative = _Offenders(dataset), False
    for start, block in value_blocks(dataset.rows):
        with np.errstate(over="ignore", invalid="ignore"):
            x = (block * dataset.scale).astype(np.float32, copy=False)
        finite = np.isfinite(x)
        not_finite.add(start, ~finite)
        if bounded:
            below = finite & (x < -RANGE_TOLERANCE)
            negative = negative or bool(below.any())
            outside.add(start, below | (finite & (x > upper)))
    if not_finite.count:
        raise DataError(
            f"{dataset.name}: {not_finite.describe()} is not a finite float32 number ({not_finite.told} "
            "in all; Input contains NaN, infinity or a value too large); remove or fill in those rows or columns"
        )
    if outside.count:
        model = "the bernoulli likelihood" if likelihood == "bernoulli" else "a gaussian with sigmoid mean"
        raise DataError(
            f"{dataset.name}: {outside.describe()} is outside [0, 1] ({outside.told} in all"
            f"{'; Negative values in data' if negative else ''}), which "
            f"{model} cannot explain; scale the data to [0, 1] (grey levels by scale=1/255 or x.astype(np.uint8)), or "
            "use likelihood='gaussian' with mean='identity', for which columns are best standardised"
        )


class _Offenders:
    """The number of values that fail a check, and the position of the first."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.count = 0
        self.first = -1

    def add(self, start: int, failed: NDArray[np.bool_]) -> None:
        n_failed = int(np.count_nonzero(failed))
        if n_failed and not self.count:
            self.first = start + int(failed.argmax())
        self.count += n_failed

    @property
    def told(self) -> str:
        """How many they are."""
        return f"{self.count} such value{'' if self.count == 1 else 's'}"

    def describe(self) -> str:
        rows: Any = self.dataset.rows
        if self.dataset.is_sparse:
            row = int(np.searchsorted(rows.indptr, self.first, side="right")) - 1
            column, value = int(rows.indices[self.first]), rows.data[self.first]
        else:
            row, column = divmod(self.first, self.dataset.data_dim)
            value = rows[row, column]
        scaled = f" (scaled {float(value) * self.dataset.scale:g})" if self.dataset.scale != 1 else ""
        return f"{self.dataset.place(row, column)}: {float(value):g}{scaled}"
