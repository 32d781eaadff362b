"""The device's memory as the place of a plan, see `fastvae.kernels.places`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any, NoReturn

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.checks import Flags, check_array
from fastvae.kernels.cuda.arrays import DeviceArray
from fastvae.kernels.cuda.launch import Device
from fastvae.kernels.turn import Turn

__all__ = ["DevicePlace", "PlacedArray"]

# An array of so many bytes is placed only where a quarter more is free: `train_steps` has yet to allocate its own.
_LARGE = 2**28


@dataclass(frozen=True, eq=False)
class PlacedArray(DeviceArray):
    """A contiguous array in memory of a plan's own: its stream is the plan's, so no call has to wait for another."""

    place: DevicePlace
    __array_ufunc__ = None  # NumPy's operators refuse it

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("an array on the device is not NumPy's to read: take get(), a copy")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """As the interface describes it, for other libraries and other plans."""
        described = {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False)}
        return described | {"strides": None, "stream": self.stream, "version": 3}

    def __getitem__(self, key: slice | None) -> PlacedArray:
        """Return a view: of consecutive rows, or with another axis in front."""
        if key is None:
            return self.reshape(1, *self.shape)
        if not isinstance(key, slice) or key.step not in (None, 1):
            raise TypeError(f"an array on the device has a[m:n] and a[np.newaxis], not a[{key!r}]: take get(), a copy")
        start, stop, _ = key.indices(len(self))
        shape = (max(stop - start, 0), *self.shape[1:])
        return replace(self, address=self.address + start * prod(shape[1:]) * self.dtype.itemsize, shape=shape)

    def __setitem__(self, key: slice, value: float | Array) -> None:
        """Set consecutive rows to 0, or to what an array on the host has."""
        rows = self[key]
        with self.place.turn:
            if isinstance(value, np.ndarray):
                check_array("the value", value, rows.shape, rows.dtype)
                self.place.upload(rows.address, value)
            elif value == 0:
                self.place.device.clear(rows.address, rows.nbytes)
            else:
                raise TypeError(f"an array on the device is set to 0 or to an ndarray, not to {value!r}")

    def reshape(self, *shape: int) -> PlacedArray:
        """Return a view of another shape, one length of which may be -1."""
        if -1 in shape:
            known = -prod(shape)
            shape = tuple(self.size // known if length == -1 else length for length in shape)
        if prod(shape) != self.size:
            raise ValueError(f"cannot reshape an array of shape {self.shape} into {shape}")
        return replace(self, shape=shape)

    def get(self) -> Array:
        """Return a copy on the host, made when all before is done."""
        copy = np.empty(self.shape, self.dtype)
        with self.place.turn:
            self.place.device.download(copy, self.address)
        return copy


class DevicePlace:
    """Arrays in memory that is allocated, and written to, on the stream of one plan, in its turn."""

    def __init__(self, device: Device, turn: Turn) -> None:
        self.device, self.turn = device, turn

    def empty(self, *shape: int) -> PlacedArray:
        """Allocate."""
        with self.turn:
            return self._new(shape, np.dtype(np.float32))

    def placed(self, array: Any) -> Any:
        """Copy to the device."""
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            return array
        with self.turn:
            try:
                there = self._new(array.shape, array.dtype)
                if array.nbytes >= _LARGE:
                    self.device.zeros(array.nbytes // 4)
            except MemoryError:
                return array
            self.upload(there.address, array)
            return there

    def upload(self, address: int, array: Array) -> None:
        """Copy in; the array may be changed after it."""
        self.device.upload(address, array)
        self.device.synchronize()

    def _new(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> PlacedArray:
        buffer = self.device.zeros(max(prod(shape) * dtype.itemsize, 1))
        return PlacedArray(buffer.address, shape, dtype, Flags(True, True), self.device.handle, buffer, self)
