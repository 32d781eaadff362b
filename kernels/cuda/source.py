"""Where the fused loop has its rows from: a dataset on the device, or the rows of one graph after another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.cuda.gather import Dataset, dataset_at
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

    def __init__(self, device: Device, data: Array, order: Array, length: int) -> None:
        self._device, self._rows, self._order, self._length = device, data, order, length
        n_steps, rows = order.shape
        self._memory, half = Memory(device), length * rows
        steps, places = np.arange(n_steps)[:, np.newaxis], np.arange(rows)
        index = (steps // length % 2 * length + steps % length) * rows + places
        self._half_bytes = half * data.shape[1] * data.itemsize
        self._places = self._memory.bytes(2 * self._half_bytes)
        self.data, self.index = dataset_at([self._places], data), self._memory.bytes(index.nbytes)
        device.upload(self.index, index)
        self._picked = [device.pinned((half, data.shape[1]), data.dtype) for _ in range(2)]

    def bring(self, graph: int) -> None:
        """Bring the rows of a graph's steps, where there are any; the last but one graph must be complete."""
        index = self._order[graph * self._length : (graph + 1) * self._length].reshape(-1)
        if not index.size:
            return
        picked = self._picked[graph % 2][: index.size]
        np.take(self._rows, index, axis=0, out=picked, mode="clip")  # checked before; other modes copy once more
        self._device.upload_ahead(self._places + graph % 2 * self._half_bytes, picked)
