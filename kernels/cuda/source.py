"""Where the fused loop has its rows from: a dataset on the device, or the rows of one graph after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.cuda.gather import Dataset, arrays_of, dataset_at
from fastvae.kernels.cuda.launch import Device
from fastvae.kernels.cuda.workspace import Memory

__all__ = ["Resident", "Streamed"]


@dataclass(frozen=True)
class Resident:
    """All rows lie on the device.

    Attributes
    ----------
    data : Dataset
    index : int
        Address of the rows of each step, int64.
    """

    data: Dataset
    index: int

    def bring(self, graph: int) -> None:
        """Nothing is to be brought."""


class Streamed:
    """Rows are picked on the host for one graph while the one before it runs, into the other half of two halves.

    Attributes are those of `Resident`; `data` is the two halves, and `index` tells each step its place in them.
    """

    def __init__(self, device: Device, data: Any, order: Array, length: int) -> None:
        self._device, self._rows, self._order, self._length = device, data, order, length
        self._halves = (_CsrHalves if len(arrays_of(data)) > 1 else _DenseHalves)(data, order, length)
        n_steps, rows = order.shape
        steps, places = np.arange(n_steps)[:, np.newaxis], np.arange(rows)
        index = steps // length % 2 * self._halves.rows + steps % length * rows + places
        arrays, self._memory = self._halves.arrays, Memory(device)
        self._places = [self._memory.bytes(2 * size * dtype.itemsize) for size, dtype in arrays]
        self.data, self.index = self._halves.dataset(self._places), self._memory.bytes(index.nbytes)
        device.upload(self.index, index)
        self._uploaded = index  # which may still be under way
        self._picked = [[device.pinned((size,), dtype) for size, dtype in arrays] for _ in range(2)]

    def bring(self, graph: int) -> None:
        """Bring the rows of a graph's steps, where there are any; the last but one graph must be complete."""
        index = self._order[graph * self._length : (graph + 1) * self._length].reshape(-1)
        if not index.size:
            return
        half = graph % 2
        used = self._halves.pick(self._rows, index, half, self._picked[half])
        for place, array, n in zip(self._places, self._picked[half], used, strict=True):
            self._device.upload_ahead(place + half * array.nbytes, array[:n])


class _DenseHalves:
    """Each half has the rows of a graph.

    Attributes
    ----------
    rows : int
        From the first row of a half to that of the other.
    arrays : list of (int, dtype)
        Elements of each array of a half.
    """

    def __init__(self, data: Array, order: Array, length: int) -> None:
        self._like, self.rows = data, length * order.shape[1]
        self.arrays = [(self.rows * data.shape[1], data.dtype)]

    def dataset(self, places: Sequence[int]) -> Dataset:
        """Return both halves as one dataset, whose arrays begin at these addresses."""
        return dataset_at(places, self._like)

    def pick(self, data: Array, index: Array, half: int, to: Sequence[Array]) -> tuple[int, ...]:
        """Fill the arrays of a half with these rows; return how many elements of each are used."""
        picked = to[0][: index.size * data.shape[1]].reshape(index.size, data.shape[1])
        np.take(data, index, axis=0, out=picked, mode="clip")  # checked before; other modes copy once more
        return (picked.size,)


class _CsrHalves:
    """Each half has as many values as the fullest graph; row pointers count from the first half's first value."""

    def __init__(self, data: Any, order: Array, length: int) -> None:
        of_steps = np.diff(data.indptr)[order].sum(1, dtype=np.int64)
        self._values = int(np.add.reduceat(of_steps, np.arange(0, len(order), length)).max())
        self._like, self.rows = data, length * order.shape[1] + 1
        wide = 2 * self._values > np.iinfo(np.int32).max
        self._pointer = np.dtype(np.int64) if wide else data.indices.dtype
        self.arrays = [(self._values, data.data.dtype), (self._values, self._pointer), (self.rows, self._pointer)]

    def dataset(self, places: Sequence[int]) -> Dataset:
        """As `_DenseHalves.dataset`."""
        return dataset_at(places, self._like)._replace(wide_indices=self._pointer.itemsize == 8)

    def pick(self, data: Any, index: Array, half: int, to: Sequence[Array]) -> tuple[int, ...]:
        """As `_DenseHalves.pick`."""
        picked = data[index]
        used = (picked.nnz, picked.nnz, index.size + 1)
        pointers = picked.indptr.astype(self._pointer) + half * self._values
        for array, values, n in zip(to, (picked.data, picked.indices, pointers), used, strict=True):
            array[:n] = values
        return used
