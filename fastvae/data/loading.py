"""From a name or a path to a training and a test set."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastvae.data.dataset import Dataset, as_dataset
from fastvae.data.readers import read_file
from fastvae.data.registry import REGISTRY, require_files
from fastvae.errors import DataError

__all__ = ["Split", "load"]

DEFAULT_TEST_FRACTION = 0.1
# The named datasets without a published split have one of their own, the same in every run whatever its seed, so that
# their test bounds can be compared.
FIXED_SPLIT_SEED = 1312_6114
N_TEST_DIGITS = 297
N_TEST_FREYFACE = 393


@dataclass(frozen=True)
class Split:
    """What `load` returns.

    Attributes
    ----------
    train : Dataset
        The training set.
    test : Dataset or None
        The test set, of the same columns and scale.
    """

    train: Dataset
    test: Dataset | None


def load(
    source: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
) -> Split:
    """Load a named dataset or a file, split into training and test rows.

    - ``mnist``: the published 60000 training and 10000 test images.
    - ``digits``: 1500 training and 297 test rows by a fixed random choice; the rows come writer by writer, so the last
      ones would test on other hands than were trained on.
    - ``freyface``: 1572 training and 393 test frames (80% and 20%) by a fixed random choice. The frames are a video:
      the neighbours of a test frame are in the training set, so its test bound speaks of interpolation; the last
      frames would test on expressions that were never seen.
    - A .npz file with x_train and x_test: these.
    - A .npy file: the last rows are the test set. It is memory-mapped, and a random choice would read the whole of it
      into memory; shuffle the file beforehand if its rows have an order.
    - Any other file: a random choice of rows by `seed`. Both parts keep the order of the file.

    Parameters
    ----------
    source : str or path-like
        ``"digits"``, ``"mnist"``, ``"freyface"``, or the path of an IDX (plain or gzip), .mat (Frey Face), .npy, .npz
        or .csv file. A name goes before a file of that name; write ``./mnist`` for the file.
    data_dir : path-like, optional
        Folder of the named datasets' files, used as it is: files are found in it or in its subfolder of the dataset's
        name, with or without .gz. By default the variable FASTVAE_DATA, else the user's cache folder.
    test_fraction : float, optional
        Share of the rows of a file that becomes the test set, in [0, 1); 0 for none. By default 0.1. Sources that
        bring their own split take none.
    seed : int
        Chooses the test rows of a file.

    Returns
    -------
    Split
        Rows keep the dtype they are stored in. The scale is decided on the training rows as in `as_dataset`, but is
        1/16 for digits (levels 0 to 16).

    Raises
    ------
    DataError
        The source is unknown, missing, damaged or not 2-D; or `test_fraction` is given for a source with its own split.
    ValueError
        `test_fraction` is not in [0, 1), or `seed` is negative.
    """
    if test_fraction is not None and not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must be in [0, 1), got {test_fraction!r}")
    name = os.fspath(source)
    loaders = {"digits": _load_digits, "mnist": _load_mnist, "freyface": _load_freyface}
    if not name:
        raise DataError(f"the name of the data is empty; name a file or one of {', '.join(REGISTRY)}")
    if name not in loaders:
        return _load_path(Path(name).expanduser(), test_fraction, seed)
    if test_fraction is not None:
        raise DataError(f"{name} has its own test set; leave test_fraction out")
    return loaders[name](data_dir)


def _load_digits(data_dir: object) -> Split:
    from sklearn.datasets import load_digits

    levels = load_digits().data.astype(np.uint8)  # whole numbers 0 to 16, which scikit-learn keeps as float64
    return _choose(as_dataset(levels, scale=1 / 16, name="digits", image_shape=(8, 8)), N_TEST_DIGITS, FIXED_SPLIT_SEED)


def _load_mnist(data_dir: str | os.PathLike[str] | None) -> Split:
    train, test = (
        as_dataset(content.rows, scale=1 / 255, name="mnist", image_shape=content.image_shape)
        for content in map(read_file, require_files(REGISTRY["mnist"], data_dir))
    )
    return _fixed_split(train, test)


def _load_freyface(data_dir: str | os.PathLike[str] | None) -> Split:
    (path,) = require_files(REGISTRY["freyface"], data_dir)
    content = read_file(path)
    frames = as_dataset(content.rows, scale=1 / 255, name="freyface", image_shape=content.image_shape)
    if frames.n_rows <= N_TEST_FREYFACE:
        raise DataError(f"{path}: {frames.n_rows} frames are fewer than Frey Face has; load the file by its path")
    return _choose(frames, N_TEST_FREYFACE, FIXED_SPLIT_SEED)


def _load_path(path: Path, test_fraction: float | None, seed: int) -> Split:
    if not path.exists():
        raise DataError(f"no dataset and no file is called {path}; the named datasets are {', '.join(REGISTRY)}")
    content = read_file(path)
    data = as_dataset(content.rows, name=str(path), image_shape=content.image_shape)
    data = replace(data, origins=content.lines, from_text=content.lines is not None)
    if content.test_rows is not None:
        if test_fraction is not None:
            raise DataError(f"{path} brings its own test set, x_test; leave test_fraction out")
        test = as_dataset(content.test_rows, scale=data.scale, name=str(path), image_shape=data.image_shape)
        return _fixed_split(data, test)
    fraction = DEFAULT_TEST_FRACTION if test_fraction is None else test_fraction
    if fraction == 0:
        return Split(data, None)
    if data.n_rows < 2:
        raise DataError(f"{path}: a single row cannot be split; use test_fraction 0")
    n_test = min(max(1, round(fraction * data.n_rows)), data.n_rows - 1)
    if data.is_mapped:
        n_train = data.n_rows - n_test
        return Split(data.select(slice(n_train)), data.select(slice(n_train, None)))
    return _choose(data, n_test, seed)


def _fixed_split(train: Dataset, test: Dataset) -> Split:
    if test.data_dim != train.data_dim or test.rows.dtype != train.rows.dtype:
        raise DataError(
            f"{train.name}: the test rows ({test.data_dim} columns of {test.rows.dtype}) do not go with the training "
            f"rows ({train.data_dim} columns of {train.rows.dtype})"
        )
    return Split(train, test)


def _choose(data: Dataset, n_test: int, seed: int) -> Split:
    order = _permutation(data.n_rows, seed)
    return Split(data.select(np.sort(order[n_test:])), data.select(np.sort(order[:n_test])))


def _permutation(n: int, seed: int) -> NDArray[Any]:
    # Raw bits of a bit generator are the same in every NumPy release; Generator.permutation promises no such thing.
    keys = np.random.PCG64(seed).random_raw(n)
    return np.argsort(keys, kind="stable")
