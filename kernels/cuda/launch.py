"""What a plan asks of a device: memory, launches of kernels, products, graphs. Geometry beside each kernel family.

A kernel takes one structure by value; the structures here and beside the kernels' geometry are those of the ``.cu``
files, field for field, with C's alignment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any, NamedTuple, Protocol

import numpy as np

from fastvae.kernels import Array

__all__ = [
    "LOOP",
    "MATRIX",
    "NOWHERE",
    "STEP",
    "UPDATE",
    "Buffer",
    "Device",
    "Graph",
    "Launch",
    "Matrix",
    "Product",
    "Work",
    "struct",
]

ADDRESS, INT, LONG, WORD, FLOAT = np.uint64, np.int32, np.int64, np.uint64, np.float32


def struct(**fields: Any) -> np.dtype[Any]:
    """Return a structure with C's alignment."""
    return np.dtype(list(fields.items()), align=True)


MATRIX = struct(p=ADDRESS, ld=LONG)
UPDATE = struct(
    rule=INT, **dict.fromkeys(("rate", "momentum", "beta1", "gain1", "beta2", "gain2", "root_scale"), FLOAT),
    epsilon=FLOAT, decay=FLOAT,
)  # fmt: skip
STEP = struct(number=WORD, kl_scale=FLOAT, update=UPDATE)
LOOP = struct(step=LONG, limit=LONG, first=WORD, complete=INT, now=STEP)


class Matrix(NamedTuple):
    """Rows of `ld` elements in device memory: floats, where nothing else is said."""

    p: int
    ld: int

    def columns_from(self, first: int) -> Matrix:
        """Return the columns from `first` on."""
        return Matrix(self.p + 4 * first, self.ld)


NOWHERE = Matrix(0, 0)


def _sizes(arguments: Any) -> Iterator[str]:
    """Name the integers of a structure, and those of the structures in it."""
    for name in arguments.dtype.names:
        if arguments.dtype[name] == INT:
            yield f"{name}={arguments[name]}"
        elif arguments.dtype[name].names:
            yield from _sizes(arguments[name])


class Launch(NamedTuple):
    """One kernel on a row of blocks."""

    file: str
    kernel: str
    blocks: int
    threads: int
    arguments: Array
    shared_bytes: int = 0

    @classmethod
    def of(
        cls,
        file: str,
        kernel: str,
        layout: np.dtype[Any],
        blocks: int,
        threads: int,
        shared_bytes: int = 0,
        **fields: Any,
    ) -> Launch:
        """Fill the structure `layout`: every field by name."""
        if wrong := fields.keys() ^ set(layout.names or ()):
            raise TypeError(f"{kernel} has other fields: {', '.join(sorted(wrong))} are missing or unknown")
        arguments = np.zeros((), layout)
        for name, value in fields.items():
            arguments[name] = value
        return cls(file, kernel, blocks, threads, arguments, shared_bytes)

    def __str__(self) -> str:
        """Kernel, grid, and the sizes among its arguments: what an error message says."""
        return f"{self.kernel}({', '.join(_sizes(self.arguments))}) on {self.blocks} blocks of {self.threads} threads"


class Product(NamedTuple):
    """``c = op(a) op(b)`` by the device's library, c of m rows and n columns; an operand may be transposed.

    Operands are bfloat16 in bf16, else float32, which in tf32 is rounded already. Sums and c are float32.
    """

    a: Matrix
    b: Matrix
    c: Matrix
    m: int
    n: int
    k: int
    transposed_a: bool = False
    transposed_b: bool = False

    def __str__(self) -> str:
        return f"a product of {self.m} x {self.k} and {self.k} x {self.n}"


Work = Launch | Product


class Buffer(Protocol):
    """Device memory, freed with the object; aligned to 256 bytes."""

    @property
    def address(self) -> int:
        """Its first byte."""

    @property
    def size(self) -> int:
        """Bytes."""


class Graph(Protocol):
    """Launches to be made together, any number of times."""

    def launch(self) -> None:
        """Queue all of them; an interrupt comes before or after, never between two."""


class Device(Protocol):
    """A stream of work on one device. Everything is done in the order in which it was asked for.

    `rate` is a rough number of float32 operations a second, by which graphs are kept short enough for Ctrl-C;
    `shared_bytes` is the most shared memory that a block may have; `handle` is the stream, as the CUDA array interface
    names it.
    """

    rate: float
    shared_bytes: int
    handle: int

    def zeros(self, size: int) -> Buffer:
        """Allocate `size` bytes of zeros, or raise MemoryError."""

    def clear(self, address: int, size: int) -> None:
        """Set bytes to zero."""

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device; it may be changed after the next `download` or `synchronize`."""

    def download(self, array: Array, address: int) -> None:
        """Copy from the device into a contiguous array, when all before is done."""

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array on the host that `upload_ahead` copies quickly from."""

    def upload_ahead(self, address: int, array: Array) -> None:
        """Copy to where nothing queued so far reads, beside it; what is queued next waits for the copy."""

    def run(self, launches: Sequence[Work], precision: str) -> None:
        """Queue launches, kernels compiled for a precision."""

    def graph(self, launches: Sequence[Work], precision: str) -> Graph:
        """Record launches."""

    def from_dlpack(self, value: Any) -> Any:
        """Return an object with ``__cuda_array_interface__`` that shares the memory."""

    def follow_caller(self, streams: Set[int]) -> None:
        """Make what is asked for from now on wait for the caller's current stream and for these."""

    def lead_caller(self, streams: Set[int]) -> None:
        """Make the caller's current stream and these wait for what was asked for."""

    def synchronize(self) -> None:
        """Wait for all that was queued; an error in it is raised here."""
