"""Reader of the Frey Face file, one uint8 matrix in a MATLAB level 5 file.

scipy.io.loadmat is not used here: its compiled parser can crash the process on a damaged file.

A file is a header of 128 bytes and a row of elements, each a tag (type, size in bytes) and its data. A variable is an
element of type MATRIX, often packed by zlib into one of type COMPRESSED, and holds elements itself: flags, dimensions,
name, values. Elements are padded to 8 bytes; one of at most 4 bytes sits inside its own tag.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastvae.data.content import Content
from fastvae.errors import DataError

__all__ = ["read_mat"]

FREY_IMAGE_SHAPE = (28, 20)  # height, width

FILE_HEADER_BYTES = 128
# More than the flags, dimensions and name of a variable take.
HEAD_BYTES = 4096
INT8, UINT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 2, 5, 6, 14, 15
CLASSES = {
    1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single", 8: "int8", 9: "uint8",
    10: "int16", 11: "uint16", 12: "int32", 13: "uint32", 14: "int64", 15: "uint64",
}  # fmt: skip


def read_mat(path: Path) -> Content:
    """Read the Frey Face file: variable `ff`, 560 x N uint8, one 28 x 20 image per column.

    Parameters
    ----------
    path : Path
        A MATLAB level 5 file, as save -v6 and -v7 write it (not 7.3).

    Returns
    -------
    Content
        Rows of shape (N, 560), a view of the transposed array.

    Raises
    ------
    DataError
        There is no `ff`, it has another shape or dtype, or the file cannot be parsed.
    """
    n_pixels = math.prod(FREY_IMAGE_SHAPE)
    variables = {variable.name: variable for variable in _variables(path)}
    if "ff" not in variables:
        held = ", ".join(variables) or "none"
        raise DataError(f"{path}: no variable 'ff' (it holds: {held}); save other data as .npy, one datapoint per row")
    frames = variables["ff"]
    if len(frames.shape) != 2 or frames.shape[0] != n_pixels or frames.shape[1] < 1:
        raise DataError(f"{path}: 'ff' has shape {frames.shape}, but Frey Face is {n_pixels} x N, one image per column")
    if frames.class_name != "uint8":
        raise DataError(f"{path}: 'ff' holds {frames.class_name}, but Frey Face is uint8 grey levels")
    return Content(_values(path, frames).T, image_shape=FREY_IMAGE_SHAPE)


@dataclass(frozen=True)
class _Variable:
    """A variable of a file: name, MATLAB class, shape, and where its values lie."""

    name: str
    class_name: str
    shape: tuple[int, ...]
    order: str
    element: memoryview
    is_packed: bool
    values_at: int


def _variables(path: Path) -> list[_Variable]:
    """List the variables of a file; values are neither read nor unpacked.

    Raises
    ------
    DataError
        The file is not MATLAB level 5, or is damaged.
    """
    view = np.memmap(path, dtype=np.uint8, mode="r").data
    order = {b"IM": "<", b"MI": ">"}.get(bytes(view[126:128]))
    if order is None or struct.unpack_from(order + "H", view, 124) != (0x0100,):
        raise DataError(f"{path} cannot be read: not a MATLAB level 5 file; save it in MATLAB with save -v7")
    try:
        return [_variable(element, order, is_packed) for element, is_packed in _elements(view, order)]
    except (struct.error, zlib.error, ValueError) as error:
        raise DataError(f"{path} cannot be read: damaged or truncated ({error}); fetch or copy it again") from error


def _values(path: Path, variable: _Variable) -> NDArray[np.uint8]:
    """Return the values of a variable of class uint8 in Fortran order, as MATLAB keeps them.

    Memory grows with what really comes out of the file, never with what its header claims.

    Raises
    ------
    DataError
        The values are stored as another type, or are not as many as the shape says.
    """
    n_values = math.prod(variable.shape)
    try:
        matrix = (
            _unpack(variable.element, variable.values_at + 8 + n_values) if variable.is_packed else variable.element
        )
        kind, values, _ = _part(matrix, variable.values_at, variable.order)
    except (struct.error, zlib.error, ValueError) as error:
        raise DataError(f"{path} cannot be read: damaged or truncated ({error}); fetch or copy it again") from error
    if kind != UINT8 or len(values) != n_values:
        raise DataError(
            f"{path} cannot be read: {variable.name!r} of shape {variable.shape} holds {len(values)} bytes of type "
            f"{kind}; fetch or copy it again"
        )
    return np.frombuffer(values, np.uint8).reshape(variable.shape, order="F")


def _elements(view: memoryview, order: str) -> Iterator[tuple[memoryview, bool]]:
    """Yield the body of every variable, and whether it is packed."""
    start = FILE_HEADER_BYTES
    while start < len(view):
        kind, size = struct.unpack_from(order + "II", view, start)
        element = view[start + 8 : start + 8 + size]
        if len(element) != size:
            raise ValueError("an element ends beyond the file")
        if kind in (MATRIX, COMPRESSED):
            yield element, kind == COMPRESSED
        start += 8 + size


def _variable(element: memoryview, order: str, is_packed: bool) -> _Variable:
    head = _unpack(element, HEAD_BYTES) if is_packed else element
    start = 0
    if is_packed:
        if struct.unpack_from(order + "I", head)[0] != MATRIX:
            raise ValueError("a packed element is not a matrix")
        start = 8
    flags_kind, flags, start = _part(head, start, order)
    shape_kind, sizes, start = _part(head, start, order)
    name_kind, name, start = _part(head, start, order)
    if (flags_kind, shape_kind, name_kind) != (UINT32, INT32, INT8) or len(flags) != 8 or len(sizes) % 4:
        raise ValueError("a variable without flags, dimensions and name")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if min(shape, default=-1) < 0:
        raise ValueError("a negative dimension")
    class_code = struct.unpack_from(order + "I", flags)[0] & 0xFF
    class_name = CLASSES.get(class_code, f"class {class_code}")
    return _Variable(bytes(name).decode("ascii", "replace"), class_name, shape, order, element, is_packed, start)


def _part(matrix: memoryview, start: int, order: str) -> tuple[int, memoryview, int]:
    """Return type and data of the element at an offset, and the offset of the next."""
    (word,) = struct.unpack_from(order + "I", matrix, start)
    if word >> 16:
        kind, size, first, end = word & 0xFFFF, word >> 16, start + 4, start + 8
    else:
        (size,) = struct.unpack_from(order + "I", matrix, start + 4)
        kind, first = word, start + 8
        end = first + size + -size % 8
    part = matrix[first : first + size]
    if len(part) != size:
        raise ValueError("an element ends beyond its variable")
    return kind, part, end


def _unpack(element: memoryview, n_bytes: int) -> memoryview:
    """Return at most the first bytes of a packed element."""
    return memoryview(zlib.decompressobj().decompress(element, n_bytes))
