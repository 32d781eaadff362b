"""The rows of the benchmark cases: real where FASTVAE_DATA has them, else made up from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae.data import Dataset, as_dataset, load
from fastvae.errors import DataError
from fastvae.kernels import Array
from fastvae.rng import epoch_order

__all__ = ["Minibatches", "grey_levels", "load_rows", "sparse_levels"]


def load_rows(source: str, data_dim: int, n_rows: int) -> Dataset:
    """Return the rows of a case; the dataset's name says what they are.

    Parameters
    ----------
    source : {"mnist", "mnist test", "freyface", "grey levels", "sparse"}
        The first three fall back to grey levels where there are no real data of `data_dim` columns.
    data_dim, n_rows : int
        Shape of made-up rows.
    """
    if source == "sparse":
        return as_dataset(sparse_levels(n_rows, data_dim), scale=1 / 255, name="sparse, made up")
    if source != "grey levels":
        name, _, part = source.partition(" ")
        try:
            halves = load(name)
            rows = halves.test if part == "test" else halves.train
            if rows is not None and rows.data_dim == data_dim:
                return rows
        except DataError:
            pass
    return as_dataset(grey_levels(n_rows, data_dim), scale=1 / 255, name="grey levels, made up")


def grey_levels(n_rows: int, data_dim: int, seed: int = 0) -> Array:
    """Make uint8 rows of which 19 % are not zero, as MNIST's are."""
    generator = np.random.default_rng(seed)
    levels = generator.integers(1, 256, (n_rows, data_dim), dtype=np.uint8)
    return levels * (generator.random((n_rows, data_dim), dtype=np.float32) < 0.19)


def sparse_levels(n_rows: int, data_dim: int, density: float = 0.01, seed: int = 0) -> Any:
    """Make a uint8 CSR matrix, each value of which is nonzero with the probability `density`."""
    from scipy.sparse import csr_array

    generator = np.random.default_rng(seed)
    size = n_rows * data_dim
    # Gaps between nonzeros are geometric; ten standard deviations more of them than expected reach the end.
    expected = size * density
    gaps = generator.geometric(density, int(expected + 10 * expected**0.5) + 10)
    places = np.cumsum(gaps) - 1
    rows, columns = np.divmod(places[places < size], data_dim)
    indptr = np.searchsorted(rows, np.arange(n_rows + 1)).astype(np.int32)
    levels = generator.integers(1, 256, len(columns), dtype=np.uint8)
    return csr_array((levels, columns.astype(np.int32), indptr), shape=(n_rows, data_dim))


class Minibatches:
    """Consecutive minibatches of one shuffled epoch after another, the same for every engine."""

    def __init__(self, n_rows: int, batch_size: int) -> None:
        self.n_rows, self.batch_size = n_rows, batch_size
        self.restart()

    def restart(self) -> None:
        """Go back to the first minibatch of the first epoch."""
        self.epoch, self.rest = 0, np.empty((0, self.batch_size), np.int64)

    def take(self, n_steps: int) -> Array:
        """Return the row numbers of the next steps, shape (n_steps, batch_size)."""
        while len(self.rest) < n_steps:
            order = epoch_order(self.n_rows, seed=0, epoch=self.epoch)
            whole = order[: self.n_rows // self.batch_size * self.batch_size].reshape(-1, self.batch_size)
            self.rest = np.concatenate([self.rest, whole])
            self.epoch += 1
        taken, self.rest = self.rest[:n_steps], self.rest[n_steps:]
        return np.ascontiguousarray(taken)
