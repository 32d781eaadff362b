"""Where a plan computes: its own memory, for what goes from one operation to the next.

Every operation takes NumPy arrays. Beside a device each of them is copied there at every call, and back where it is an
output: more bytes than the arithmetic ever needs, when the same parameters or a decoder's output go from operation to
operation. Whoever strings operations together therefore asks for the plan's place, brings there once what several calls
read, allocates there what lies between them, and leaves in NumPy's arrays what NumPy computes on.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from fastvae.kernels import Array, Plan

__all__ = ["Place", "place_of"]


class Place(Protocol):
    """Memory of a plan.

    Its arrays have ndarray's ``shape``, ``dtype``, ``reshape``, ``a[m:n]``, ``a[np.newaxis]``, ``a[m:n] = 0`` and
    ``a[m:n] = b`` of an ndarray b. What else NumPy can do it does with ndarrays alone: an array of another kind refuses
    it, and has ``get()``, a copy (`fastvae.data.arrays.on_host` takes either).
    """

    def empty(self, *shape: int) -> Array:
        """Return an array of the plan's dtype, whatever is in it.

        Raises
        ------
        MemoryError
            There is no room.
        """

    def placed(self, array: Array) -> Array:
        """Return what is in an array as an array of this place: a copy, or where no copy is needed the array itself.

        It comes back as it is from where it lies already, and where there is no room for it or it is no C-contiguous
        ndarray (CSR): operations take it all the same.
        """


class _Host:
    """The processor's memory."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype

    def empty(self, *shape: int) -> Array:
        return np.empty(shape, self._dtype)

    def placed(self, array: Array) -> Array:
        return array


def place_of(plan: Plan) -> Place:
    """Return the place that a plan brings, by the attribute ``place``, or NumPy's memory for one that brings none."""
    place: Place = getattr(plan, "place", None) or _Host(np.float64 if plan.precision == "fp64" else np.float32)
    return place
