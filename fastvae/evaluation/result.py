"""What an evaluation returns: a value per row and how it was measured, so that only like is compared with like."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from fastvae.data import Dataset
from fastvae.data.dataset import BLOCK_VALUES, value_blocks
from fastvae.kernels import Array

__all__ = [
    "Comparison",
    "LogLikelihood",
    "Result",
    "compare",
    "mean_error",
    "row_hashes",
    "rows_key",
    "treatment",
    "with_hashes_kept",
]

_KEPT: WeakKeyDictionary[Dataset, Array] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Result:
    """The base of all results: N rows, in nats per datapoint.

    Attributes
    ----------
    estimator : str
    n_draws : int
        Draws of z per row.
    seed : int
        Key of the draws.
    treatment : str
        What the data were made into, see `treatment`.
    rows_key : int
        Checksum of the rows as they were measured.
    split : str or None
        Which part of the data these are (``"train"``, ``"test"``); None when that is not known.
    """

    estimator: str
    n_draws: int
    seed: int
    treatment: str
    rows_key: int
    split: str | None = None

    @property
    def values(self) -> Array:
        """The estimate for each row, shape (N,), float64."""
        raise NotImplementedError

    @property
    def n_rows(self) -> int:
        """N."""
        return len(self.values)

    def summary(self) -> dict[str, Any]:
        """Return the means, the standard error over rows, and how they were measured, as JSON-serialisable values."""
        return {
            "n_rows": self.n_rows,
            "n_draws": self.n_draws,
            "evaluation_seed": self.seed,
            "estimator": self.estimator,
            "treatment": self.treatment,
            "split": self.split,
        }


@dataclass(frozen=True, kw_only=True)
class LogLikelihood(Result):
    """Estimates of log p(x).

    Attributes
    ----------
    log_likelihood : ndarray of shape (N,), float64
        NaN where there is no usable estimate, and so is then the mean: one over the others would be of other data.
    standard_error : ndarray of shape (N,), float64
        Of each estimate, by the delta method: the spread of the draws' weights as a share of their mean, over the root
        of their number. NaN where it is unknown: for a single draw, and for a chain that stood still, which is one.
    effective_sample_size : ndarray of shape (N,), float64
        Number of independent draws that a row's weighted or correlated ones are worth; NaN where it is unknown.
    acceptance : ndarray of shape (N,), float64, or None
        Share of accepted transitions, of estimators by Hamiltonian Monte Carlo.
    shared : float
        Share of its draws that a row has in common with another one, on average.
    options : mapping
        The estimator's own arguments.
    """

    log_likelihood: Array
    standard_error: Array
    effective_sample_size: Array
    acceptance: Array | None = None
    shared: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> Array:
        """`log_likelihood`."""
        return self.log_likelihood

    @property
    def monte_carlo_error(self) -> float:
        """Standard error of the mean over these very rows: what other draws would change.

        Rows of unknown error are taken to have that of the others, root mean square, so it is too small where they are
        many: `summary` has their number. NaN where no row's error is known. Of shared draws the errors are taken to be
        equal, which is the most that they can add.
        """
        known = self.standard_error[~np.isnan(self.standard_error)]
        if len(known) == 0:
            return math.nan
        return float(np.sqrt((known**2).mean() / self.n_rows + self.shared * known.mean() ** 2))

    def summary(self) -> dict[str, Any]:
        """Return the means, both standard errors, and how they were measured, as JSON-serialisable values.

        The effective sample size is that of the rows where it is known. It and `monte_carlo_error` are None where they
        are known of no row.
        """
        effective = self.effective_sample_size[~np.isnan(self.effective_sample_size)]
        unknown = int(np.isnan(self.standard_error).sum())
        measured: dict[str, Any] = {
            "log_likelihood": self.log_likelihood.mean().item(),
            "log_likelihood_standard_error": mean_error(self.log_likelihood),
            "monte_carlo_error": None if unknown == self.n_rows else self.monte_carlo_error,
            "rows_of_unknown_error": unknown,
            "effective_sample_size": effective.mean().item() if len(effective) else None,
        }
        if self.acceptance is not None:
            measured["acceptance"] = self.acceptance.mean().item()
        return measured | super().summary() | dict(self.options)


@dataclass(frozen=True)
class Comparison:
    """Difference of the means of two results, first less second.

    Attributes
    ----------
    difference : float
        Nats per datapoint.
    standard_error : float or None
        Over rows, of the differences row by row if `paired`; None for a single row.
    paired : bool
        Whether both results are of the same rows.
    """

    difference: float
    standard_error: float | None
    paired: bool

    def summary(self) -> dict[str, Any]:
        """Return the fields as JSON-serialisable values."""
        return vars(self).copy()


def compare(a: Result, b: Result, *, force: bool = False) -> Comparison:
    """Return how much better `a` is than `b`, in nats per datapoint.

    Parameters
    ----------
    a, b : Result
        Of one or of two estimators.
    force : bool
        Compare what was measured on data of another kind all the same.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        The treatments differ, or both splits are known and differ.
    """
    for what, first, second, mend in (
        ("treatment", a.treatment, b.treatment, "evaluate both models on data treated alike"),
        ("split", a.split, b.split, "evaluate both models on the same part of the data"),
    ):
        if not force and first != second and None not in (first, second):
            raise ValueError(
                f"results of different {what} cannot be compared: {first!r} against {second!r}; {mend}, or pass "
                "force=True"
            )
    difference = (a.values.mean() - b.values.mean()).item()
    if a.rows_key == b.rows_key and a.n_rows == b.n_rows:
        return Comparison(difference, mean_error(a.values - b.values), paired=True)
    errors = mean_error(a.values), mean_error(b.values)
    apart = None if errors[0] is None or errors[1] is None else float(np.hypot(errors[0], errors[1]))
    return Comparison(difference, apart, paired=False)


def mean_error(values: Array) -> float | None:
    """Return the standard error of the mean of independent values; None of a single one."""
    return None if len(values) < 2 else float(values.std(ddof=1).item() / len(values) ** 0.5)


def treatment(dataset: Dataset, binarize: str) -> tuple[str, str]:
    """Return how data are measured that a model was trained on with `binarize`: for ``Plan.gather``, and in words.

    Parameters
    ----------
    dataset : Dataset
    binarize : {"none", "dynamic", "fixed"}
        As trained with. The last two are measured as ``"shared"``: every row is binarised once, by one threshold per
        dimension that the seed decides and all rows share, so that its value does not depend on where it stands.

    Returns
    -------
    binarize : {"none", "shared"}
    treatment : {"as they are", "binary as stored", "binarised"}
        The second of data that hold nothing but 0 and 1.
    """
    if binarize != "none":
        return "shared", "binarised"
    blocks = (block for _, block in value_blocks(dataset.rows))
    binary = all(((block == 0) | (block * dataset.scale == 1)).all() for block in blocks)
    return "none", "binary as stored" if binary else "as they are"


def row_hashes(dataset: Dataset, rows: slice) -> Array:
    """Return a hash of each row's x in float32, int64: the same however it is stored, on every backend."""
    if dataset in _KEPT:
        return _KEPT[dataset][rows]
    x = np.asarray(dataset.select(rows).dense(), np.float32) / np.float32(1 / dataset.scale)
    # Grey levels so divided have the bits of floats that were; and dense rows may have a -0 that sparse ones lack.
    return np.array([zlib.crc32(row) for row in x + np.float32(0)], np.int64)


def with_hashes_kept(dataset: Dataset) -> Dataset:
    """Return a dataset for many evaluations, a fifth of whose time the hashes would take; its rows must not change."""
    kept, step = replace(dataset), max(BLOCK_VALUES // dataset.data_dim, 1)
    starts = range(0, dataset.n_rows, step)
    _KEPT[kept] = np.concatenate([row_hashes(dataset, slice(start, start + step)) for start in starts])
    return kept


def rows_key(hashes: Array, binarize: str, seed: int) -> int:
    """Return the checksum of rows as they are measured, from `row_hashes` and what `treatment` gave."""
    return zlib.crc32(hashes.tobytes(), 0 if binarize == "none" else zlib.crc32(str(seed).encode()))
