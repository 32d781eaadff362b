"""Errors of reconstruction: of a model, and of principal components."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastvae.data import Dataset
from fastvae.kernels import Array

if TYPE_CHECKING:
    from fastvae.data import Split
    from fastvae.model import Model

__all__ = ["pca_errors", "reconstruction_error"]

_BLOCK_ROWS = 2000


def reconstruction_error(model: Model, dataset: Dataset) -> float:
    """Return the mean of (x - mean of p(x|z))^2 over rows and dimensions, z the mean of q(z|x)."""
    total = sum(
        float(np.square(x - model.reconstruct(dataset.select(rows)), dtype=np.float64).sum())
        for rows, x in _blocks(dataset)
    )
    return total / (dataset.n_rows * dataset.data_dim)


def pca_errors(split: Split, latent_dims: Sequence[int]) -> list[float]:
    """Return the same error of the projection onto the first principal components of the training rows.

    Parameters
    ----------
    split : Split
        The error is that of its test rows.
    latent_dims : sequence of int
        Numbers of components.
    """
    train, test = split.train, split.test
    assert test is not None  # both datasets have one
    mean = sum(x.sum(axis=0, dtype=np.float64) for _, x in _blocks(train)) / train.n_rows
    scatter = sum((x - mean).T @ (x - mean) for _, x in _blocks(train))
    directions = np.linalg.eigh(scatter)[1][:, ::-1]
    squares = np.zeros(train.data_dim)  # of the test rows along each direction
    for _, x in _blocks(test):
        squares += np.square((x - mean) @ directions).sum(axis=0)
    return [float(squares[J:].sum() / (test.n_rows * test.data_dim)) for J in latent_dims]


def _blocks(dataset: Dataset) -> Iterator[tuple[slice, Array]]:
    """Yield the rows as the model sees them, some at a time."""
    for start in range(0, dataset.n_rows, _BLOCK_ROWS):
        rows = slice(start, min(start + _BLOCK_ROWS, dataset.n_rows))
        yield rows, np.asarray(dataset.rows[rows], np.float32) * np.float32(dataset.scale)
