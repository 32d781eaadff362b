"""Rows of the dataset to float32: x[m] = data[index[m]] * scale, then binarised. Storage dtypes stay as they are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from fastvae.kernels import BINARIZE
from fastvae.kernels.numba_cpu.compile import bytes_at, compiled, f32, float64s, floats, int32s, int64s
from fastvae.kernels.numba_cpu.rng import binarize_row
from fastvae.rng import Stream

__all__ = ["Gather", "gather_of", "gather_row", "hold"]

_DTYPES = {np.dtype(np.uint8): 1, np.dtype(np.float32): 4, np.dtype(np.float64): 8}
_CSR = ("data", "indices", "indptr")
_NONE, _DYNAMIC, _FIXED, _SHARED = range(4)
_STREAM, _FIXED_STREAM = int(Stream.BINARIZE), int(Stream.BINARIZE_FIXED)


class Rows(NamedTuple):
    """A dataset: bytes of a value, bytes of a CSR index (0 for dense rows), width, and addresses."""

    value_bytes: int
    index_bytes: int
    data_dim: int
    values: int
    indices: int
    indptr: int


class Gather(NamedTuple):
    """The dataset and what is made of its rows; seed and step are uint64."""

    data: Rows
    scale: Any
    binarize: int
    seed: Any


def hold(data: Any) -> Any:
    """Return a dataset whose arrays nobody replaces: those of a CSR matrix are taken once, then checked and used."""
    if getattr(data, "format", None) != "csr":
        return data
    return SimpleNamespace(**{name: getattr(data, name) for name in ("format", "shape", "ndim", *_CSR)})


def rows_of(data: Any) -> Rows:
    """Return a held and checked dataset in its compiled form."""
    if isinstance(data, np.ndarray):
        return Rows(_DTYPES[data.dtype], 0, data.shape[1], data.ctypes.data, 0, 0)
    addresses = (getattr(data, name).ctypes.data for name in _CSR)
    return Rows(_DTYPES[data.data.dtype], data.indices.itemsize, data.shape[1], *addresses)


def gather_of(data: Any, scale: float, binarize: str, seed: int) -> Gather:
    """Return a checked dataset and what is made of it in their compiled form."""
    return Gather(rows_of(data), f32(scale), BINARIZE.index(binarize), np.uint64(seed))


@compiled
def _value(data: Rows, i: int) -> float:
    if data.value_bytes == 1:
        return f32(bytes_at(data.values + i, 1)[0])
    if data.value_bytes == 4:
        return floats(data.values + 4 * i, 1)[0]
    return f32(float64s(data.values + 8 * i, 1)[0])


@compiled
def _integer(address: int, size: int, i: int) -> int:
    if size == 4:
        return int(int32s(address + 4 * i, 1)[0])
    return int64s(address + 8 * i, 1)[0]


@compiled
def _dense_row(data: Rows, row: int, scale: Any, x: Any) -> None:
    n = data.data_dim
    at = data.values + data.value_bytes * row * n
    if data.value_bytes == 1:
        grey = bytes_at(at, n)
        for d in range(n):
            x[d] = f32(grey[d]) * scale
    elif data.value_bytes == 4:
        single = floats(at, n)
        for d in range(n):
            x[d] = single[d] * scale
    else:
        double = float64s(at, n)
        for d in range(n):
            x[d] = f32(double[d]) * scale


@compiled
def _sparse_row(data: Rows, row: int, scale: Any, x: Any) -> None:
    x[:] = f32(0.0)
    first, last = _integer(data.indptr, data.index_bytes, row), _integer(data.indptr, data.index_bytes, row + 1)
    for i in range(first, last):
        x[_integer(data.indices, data.index_bytes, i)] = _value(data, i) * scale


@compiled
def gather_row(g: Gather, row: int, m: int, step: Any, x_at: int) -> None:
    """Row `row` of the dataset as row m of the minibatch of a step."""
    n = g.data.data_dim
    x = floats(x_at, n)
    if g.data.index_bytes == 0:
        _dense_row(g.data, row, g.scale, x)
    else:
        _sparse_row(g.data, row, g.scale, x)
    if g.binarize == _DYNAMIC:
        binarize_row(x, n, g.seed, step, _STREAM, m * n)
    elif g.binarize == _FIXED:
        binarize_row(x, n, g.seed, np.uint64(row), _FIXED_STREAM, 0)
    elif g.binarize == _SHARED:
        binarize_row(x, n, g.seed, np.uint64(0), _FIXED_STREAM, 0)
