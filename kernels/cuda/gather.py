"""Geometry of ``gather.cu``, and the dataset's arrays on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fastvae.kernels import BINARIZE, Array
from fastvae.kernels.cuda.launch import ADDRESS, FLOAT, INT, MATRIX, WORD, Launch, Matrix, struct

__all__ = ["Dataset", "arrays_of", "dataset_at", "gather"]

_DTYPES = {np.dtype(np.uint8): 0, np.dtype(np.float32): 1, np.dtype(np.float64): 2}
_ROWS = struct(values=ADDRESS, indices=ADDRESS, indptr=ADDRESS, dtype=INT, wide_indices=INT, data_dim=INT)
_GATHER = struct(
    data=_ROWS,
    index=ADDRESS,
    numbers=ADDRESS,
    x=MATRIX,
    seed=WORD,
    step=WORD,
    scale=FLOAT,
    binarize=INT,
    rows=INT,
    loop=ADDRESS,
)


class Dataset(NamedTuple):
    """A dataset on the device: addresses of its arrays, the last two 0 when it is dense."""

    values: int
    indices: int
    indptr: int
    dtype: np.dtype[Any]
    wide_indices: bool
    data_dim: int

    @property
    def fields(self) -> tuple[int, ...]:
        """The kernel's structure."""
        return (*self[:3], _DTYPES[self.dtype], int(self.wide_indices), self.data_dim)


def arrays_of(data: Any) -> tuple[Array, ...]:
    """Return the arrays of a checked dataset, dense or CSR."""
    return (data.data, data.indices, data.indptr) if getattr(data, "format", None) == "csr" else (data,)


def dataset_at(addresses: Sequence[int], data: Any) -> Dataset:
    """Return a dataset whose arrays lie at these addresses."""
    arrays = arrays_of(data)
    values, indices, indptr = (*addresses, 0, 0)[:3]
    return Dataset(values, indices, indptr, arrays[0].dtype, len(arrays) > 1 and arrays[1].itemsize == 8, data.shape[1])


def gather(
    data: Dataset,
    *,
    index: int,
    numbers: int,
    x: Matrix,
    rows: int,
    scale: float,
    binarize: str,
    seed: int,
    step: int = 0,
    loop: int = 0,
) -> Launch:
    """Rows `index` of `data`, their noise that of rows `numbers`; in the loop both are those of its first step."""
    return Launch.of(
        "gather", "gather", _GATHER, rows, 256,
        data=data.fields, index=index, numbers=numbers, x=x, seed=seed, step=step, scale=scale,
        binarize=BINARIZE.index(binarize), rows=rows, loop=loop,
    )  # fmt: skip
