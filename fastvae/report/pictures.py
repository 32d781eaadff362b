"""Grids of images as PNG files."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastvae.files import replace_file
from fastvae.kernels import Array

__all__ = ["comparison_grid", "encode_png", "grid", "write_png"]

# Small images are enlarged by a whole factor to about this many pixels on their longer side.
TARGET_SIDE = 56


def grid(
    rows: Array, image_shape: tuple[int, int], *, columns: int = 10, ground: float = 1.0, side: int = TARGET_SIDE
) -> Array:
    """Lay images side by side.

    Parameters
    ----------
    rows : ndarray of shape (n, height * width)
    image_shape : tuple of int
        (height, width).
    columns : int
        Images per line.
    ground : float
        Grey level between them, by default white; NaN is transparent, and so is an image of NaN.
    side : int
        Smaller images are enlarged by a whole factor to about this many pixels.

    Returns
    -------
    ndarray of shape (picture height, picture width), float32
        Grey levels: [0, 1] as they are, other ranges stretched to it.
    """
    levels = np.asarray(rows, np.float32)
    low, high = min(0.0, float(np.nanmin(levels))), max(1.0, float(np.nanmax(levels)))
    height, width = image_shape
    images = ((levels - low) / (high - low)).reshape(-1, height, width)
    factor = max(1, round(side / max(image_shape)))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    gap = 2
    tall, wide = height * factor + gap, width * factor + gap
    lines = -(-len(images) // columns)
    picture = np.full((lines * tall + gap, min(columns, len(images)) * wide + gap), ground, np.float32)
    for i, image in enumerate(images):
        top, left = i // columns * tall + gap, i % columns * wide + gap
        picture[top : top + tall - gap, left : left + wide - gap] = image
    return picture


def comparison_grid(
    versions: Sequence[Array], image_shape: tuple[int, int], *, columns: int = 10, ground: float = 1.0
) -> Array:
    """Lay each line of images above the same line in their other versions, such as reconstructions; see `grid`.

    Parameters
    ----------
    versions : sequence of ndarray of shape (n, height * width)
    image_shape : tuple of int
        (height, width).
    columns : int
        Images per line.
    ground : float
        Grey level between them, see `grid`.

    Returns
    -------
    ndarray of shape (picture height, picture width), float32
    """
    n = len(versions[0])
    lines = []
    for start in range(0, n, columns):
        stop = min(start + columns, n)
        # A short last line is filled up, so that versions stay above each other.
        filler = np.full((columns - (stop - start) if start else 0, versions[0].shape[1]), ground, np.float32)
        for images in versions:
            lines += [images[start:stop], filler]
    return grid(np.concatenate(lines), image_shape, columns=min(columns, n), ground=ground)


def write_png(path: str | os.PathLike[str], picture: Array) -> None:
    """Write a grey picture of 8 bits, entirely or not at all.

    Parameters
    ----------
    path : path-like
        File to write or replace.
    picture : ndarray of shape (height, width)
        See `encode_png`.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    content = encode_png(picture)
    with replace_file(Path(path)) as stream:
        stream.write(content)


def encode_png(picture: Array) -> bytes:
    """Return a grey picture of 8 bits as PNG.

    Parameters
    ----------
    picture : ndarray of shape (height, width)
        Grey levels in [0, 1]; NaN is transparent.
    """
    height, width = picture.shape
    empty = np.isnan(picture)
    levels = np.rint(255 * np.clip(np.where(empty, 1, picture), 0, 1)).astype(np.uint8)
    kind = 0  # grey
    if empty.any():
        kind, levels = 4, np.stack([levels, np.where(empty, 0, 255).astype(np.uint8)], axis=-1)  # grey and alpha
    lines = np.pad(levels.reshape(height, -1), ((0, 0), (1, 0)))  # each begins with its filter: none
    parts = (
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(lines.tobytes())),
        _chunk(b"IEND", b""),
    )
    return b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
