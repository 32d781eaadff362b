"""Reader of IDX files, the format of MNIST."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.data.content import DEFLATE_MAX_RATIO, GZIP_MAGIC, Content, as_rows, read_chunks, starts_with
from fastvae.errors import DataError

__all__ = ["read_idx"]

IDX_DTYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0D: np.dtype(">f4"), 0x0E: np.dtype(">f8")}
IDX_OTHER_CODES = {0x09: "int8", 0x0B: "int16", 0x0C: "int32"}


def read_idx(path: Path) -> Content:
    """Read an IDX file of rows (N, D) or images (N, height, width), plain or gzip.

    The array grows with the bytes that really come and never past what the header promises, so neither a lying
    header nor a decompression bomb can take memory.

    Parameters
    ----------
    path : Path
        The file; uint8, float32 and float64 IDX are read.

    Returns
    -------
    Content

    Raises
    ------
    DataError
        Wrong magic number, other dtypes or dimension counts (a labels file has one), or a size that is not the
        header's.
    """
    chunks = read_chunks(path)
    first = next(chunks, b"")
    dtype, sizes = _idx_header(path, first)
    n_header = 4 + 4 * len(sizes)
    n_bytes = math.prod(sizes) * dtype.itemsize
    promise = f"header promises {' x '.join(map(str, sizes))} values of {dtype.itemsize} byte(s)"
    n_file = path.stat().st_size
    if n_header + n_bytes > n_file * (DEFLATE_MAX_RATIO if starts_with(path, GZIP_MAGIC) else 1):
        raise DataError(f"{path}: its {promise}, more than a file of {n_file} bytes can hold; fetch or copy it again")

    # A bytearray grows in place (realloc): the peak stays near the size of the data.
    buffer = bytearray(memoryview(first)[n_header:])
    for chunk in chunks:
        if len(buffer) > n_bytes:
            break
        buffer += chunk
    if len(buffer) != n_bytes:
        found = f"only {len(buffer)} bytes follow" if len(buffer) < n_bytes else "more bytes follow"
        raise DataError(f"{path}: its {promise}, but {found}; fetch or copy it again")
    flat: NDArray[Any] = np.frombuffer(buffer, dtype=dtype)
    if not dtype.isnative:
        flat = flat.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return as_rows(flat.reshape(sizes), path)


def _idx_header(path: Path, start: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and sizes from the first bytes of an IDX file, for rows or images with at least one value."""
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in IDX_DTYPES | IDX_OTHER_CODES:
        raise DataError(
            f"{path}: unknown format (no IDX magic number); fastvae reads IDX and files that end in "
            ".npy, .npz, .csv or .mat"
        )
    if start[2] not in IDX_DTYPES:
        raise DataError(f"{path}: IDX of {IDX_OTHER_CODES[start[2]]} is not supported; use uint8, float32 or float64")
    n_dims = start[3]
    if n_dims == 1:
        raise DataError(f"{path}: a 1-D IDX file holds labels, not images; name the images file beside it")
    if n_dims not in (2, 3):
        raise DataError(f"{path}: IDX with {n_dims} dimensions; (rows, columns) or (rows, height, width) are needed")
    if len(start) < 4 + 4 * n_dims:
        raise DataError(f"{path} is truncated: it ends inside its IDX header; fetch or copy it again")
    sizes = tuple(int(size) for size in np.frombuffer(start, dtype=">u4", count=n_dims, offset=4))
    if 0 in sizes:
        raise DataError(f"{path}: its IDX header says {' x '.join(map(str, sizes))}: there are no data in it")
    return IDX_DTYPES[start[2]], sizes
