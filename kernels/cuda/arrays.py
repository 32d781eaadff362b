"""Arrays that lie on the device already: CuPy's, torch's, anything with ``__cuda_array_interface__`` or DLPack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from math import prod
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np

from fastvae.kernels.checks import Flags
from fastvae.kernels.cuda.launch import Device

__all__ = ["DeviceArray", "takes_device_arrays"]

_DLPACK_CUDA = 2  # DLDeviceType
# What stays on the host: checked and read there, or a few numbers.
_HOST_ARGUMENTS = {"index", "order", "stats", "done"}


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """An array in device memory, with as much of ndarray as checks and copies need.

    `stream` is the one that its producer has written it on, as far as it says so; `owner` keeps the memory alive.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    flags: Flags
    stream: int | None
    owner: Any

    @classmethod
    def of(cls, owner: Any) -> DeviceArray:
        """Return a view by the CUDA array interface."""
        described = owner.__cuda_array_interface__
        shape, dtype = tuple(described["shape"]), np.dtype(described["typestr"])
        address, read_only = described["data"]
        strides = tuple(dtype.itemsize * prod(shape[i + 1 :]) for i in range(len(shape)))
        contiguous = described.get("strides") in (None, strides)
        flags = Flags(contiguous, not read_only)
        return cls(int(address or 0), shape, dtype, flags, described.get("stream"), owner)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]


class _OnDevice(Protocol):
    _device: Device


P = ParamSpec("P")
S = TypeVar("S", bound=_OnDevice)


def _taken(value: Any, device: Device, arrays: list[DeviceArray]) -> Any:
    """Return a view of what lies on the device, and add it to `arrays`; anything else as it is."""
    if isinstance(value, tuple | list):
        return type(value)(_taken(each, device, arrays) for each in value)
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, DeviceArray):
        arrays.append(value)
        return value
    if not hasattr(value, "__cuda_array_interface__") and hasattr(value, "__dlpack_device__"):
        if value.__dlpack_device__()[0] != _DLPACK_CUDA:
            return value
        value = device.from_dlpack(value)
    if not hasattr(value, "__cuda_array_interface__"):
        return value
    arrays.append(DeviceArray.of(value))
    return arrays[-1]


def takes_device_arrays(method: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """Let a plan's method take arrays on the device: read and written in place, in the order of the caller's stream."""

    @wraps(method)
    def taking(plan: S, /, *nothing: P.args, **arguments: P.kwargs) -> None:
        device, arrays = plan._device, list[DeviceArray]()
        given = {
            name: value if name in _HOST_ARGUMENTS else _taken(value, device, arrays)
            for name, value in arguments.items()
        }
        foreign = [array for array in arrays if array.stream != device.handle]
        if not foreign:  # what the plan's own stream has written needs no events, which take longer than a launch
            method(plan, *nothing, **given)  # type: ignore[arg-type]
            return
        streams = {array.stream for array in foreign if array.stream is not None}
        device.follow_caller(streams)
        try:
            method(plan, *nothing, **given)  # type: ignore[arg-type]
        finally:
            device.lead_caller(streams)

    return taking
