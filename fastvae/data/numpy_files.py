"""Readers of .npy and .npz files."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from fastvae.data.content import DEFLATE_MAX_RATIO, Content, as_rows, starts_with, unreadable
from fastvae.errors import DataError

__all__ = ["read_npy", "read_npz"]


def read_npy(path: Path) -> Content:
    """Map a .npy file of shape (N, D) or (N, height, width) read-only into memory; nothing is loaded yet.

    Parameters
    ----------
    path : Path
        The file, saved in C order and without pickled objects.

    Returns
    -------
    Content

    Raises
    ------
    DataError
        The file is damaged, pickled, in Fortran order, or not as long as its header says.
    """
    if not starts_with(path, npy_format.MAGIC_PREFIX):
        raise DataError(f"{path} is not a .npy file; give it the ending of its real format")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is parsed as Python source, and damage there raises nearly anything
        raise unreadable(path, error) from error
    if array.offset + array.nbytes != path.stat().st_size:
        raise DataError(f"{path}: bytes follow the array of shape {array.shape}; save it again with np.save")
    return as_rows(array, path)


def read_npz(path: Path) -> Content:
    """Read a .npz file: `x_train` with or without `x_test`, a sparse CSR matrix, or the only 2-D or 3-D array in it.

    Parameters
    ----------
    path : Path
        Written by np.savez, np.savez_compressed or scipy.sparse.save_npz.

    Returns
    -------
    Content

    Raises
    ------
    DataError
        The file is damaged, holds pickled objects, no array that could be the data, or several.
    """
    shapes = _npz_shapes(path)
    if {"format", "data", "shape"} <= shapes.keys():
        return _read_sparse_npz(path)
    if "x_train" in shapes:
        names = ["x_train", "x_test"] if "x_test" in shapes else ["x_train"]
    else:
        names = [name for name, shape in shapes.items() if len(shape) in (2, 3)]
        if len(names) != 1:
            held = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
            raise DataError(
                f"{path}: it must hold exactly one 2-D or 3-D array, or x_train and x_test, but holds {held}; "
                "save the wanted array alone with np.save"
            )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            contents = [as_rows(arrays[name], path) for name in names]
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise unreadable(path, error) from error
    test_rows = contents[1].rows if len(contents) == 2 else None
    return Content(contents[0].rows, test_rows, contents[0].image_shape)


def _npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of a .npz file, from headers checked against the sizes of the members."""
    shapes = {}
    most = path.stat().st_size * DEFLATE_MAX_RATIO
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                with archive.open(info) as member:
                    shape, dtype = _npy_header(member)
                    n_bytes = member.tell() + math.prod(shape) * dtype.itemsize
                name = info.filename.removesuffix(".npy")
                if dtype.hasobject:
                    raise DataError(f"{path}: array {name!r} holds pickled objects, which are never loaded")
                if n_bytes != info.file_size or n_bytes > most:
                    raise DataError(f"{path}: array {name!r} claims shape {shape}, which is not what the file holds")
                shapes[name] = shape
    except DataError:
        raise
    except Exception as error:  # the header is parsed as Python source, and damage there raises nearly anything
        raise unreadable(path, error) from error
    return shapes


def _npy_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy_format.read_magic(stream)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, np.dtype(dtype)


def _read_sparse_npz(path: Path) -> Content:
    import scipy.sparse

    try:
        with np.load(path, allow_pickle=False) as arrays:
            kind = arrays["format"].item()
        kind = kind.decode("ascii", "replace") if isinstance(kind, bytes) else str(kind)
        if kind != "csr":
            raise DataError(f"{path}: a sparse matrix in {kind} format; save x.tocsr() with scipy.sparse.save_npz")
        return Content(scipy.sparse.load_npz(os.fspath(path)))
    except DataError:
        raise
    except Exception as error:  # scipy lets whatever its constructors raise on inconsistent arrays pass
        raise unreadable(path, error) from error
