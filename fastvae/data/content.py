"""What the readers of files share: what they return, and how they look at bytes."""

from __future__ import annotations

import dataclasses
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.data.arrays import refuse_mapped
from fastvae.errors import DataError, one_line

__all__ = ["DEFLATE_MAX_RATIO", "GZIP_MAGIC", "Content", "as_rows", "read_chunks", "starts_with", "unreadable"]

CHUNK_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"
# DEFLATE cannot expand further than this, so a larger claim is a lie that needs no decompression to see.
DEFLATE_MAX_RATIO = 1032


@dataclasses.dataclass(frozen=True)
class Content:
    """What a file holds.

    That is rows (N, D), the rows it sets aside for testing if it does, (height, width) of images, and for a text file
    the line of each row, counted from 1.
    """

    rows: Any
    test_rows: Any = None
    image_shape: tuple[int, int] | None = None
    lines: NDArray[np.int64] | None = None


def read_chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's content, decompressed if it is gzip, in chunks of 1 MiB.

    Raises
    ------
    DataError
        The file cannot be read, or its gzip stream is damaged or ends early.
    """
    try:
        opener: Any = gzip.open if starts_with(path, GZIP_MAGIC) else open
        with opener(path, "rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except EOFError as error:
        raise DataError(f"{path} is truncated: its gzip stream ends early; fetch or copy it again") from error
    except (OSError, zlib.error) as error:
        raise unreadable(path, error) from error


def as_rows(array: NDArray[Any], path: Path) -> Content:
    """Give images (N, height, width) as rows, by a view if in C order; leave other shapes for `as_dataset` to judge."""
    if array.ndim != 3:
        return Content(array)
    if not array.flags.c_contiguous:
        refuse_mapped(array, "not C-contiguous", str(path))
    n_rows, height, width = array.shape
    return Content(array.reshape(n_rows, height * width), image_shape=(height, width))


def starts_with(path: Path, magic: bytes) -> bool:
    """Whether a file begins with these bytes."""
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def unreadable(path: Path, error: BaseException) -> DataError:
    """Return the one-line error for a file that a parser or the system refused."""
    if isinstance(error, OSError) and error.errno is not None:
        mend = "check its permissions and the disk"
    elif isinstance(error, UnicodeDecodeError):
        mend = "save it as UTF-8 text"
    else:
        mend = "it is truncated, damaged or of another kind than its name says: fetch, copy or write it again"
    return DataError(f"{path} cannot be read: {one_line(error)}; {mend}")
