"""Labels of the named datasets, for the colours of a plot: no model here reads them."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from fastvae.data.content import read_chunks
from fastvae.data.dataset import Dataset
from fastvae.data.registry import REGISTRY, DataFile, candidate_paths, data_folder
from fastvae.errors import DataError

__all__ = ["known_labels"]

_IDX_HEADER = 8  # bytes before the labels of an IDX file


def known_labels(
    rows: Dataset, *, split: str, data_dir: str | os.PathLike[str] | None = None
) -> NDArray[np.uint8] | None:
    """Return the label of each row of a named dataset.

    Parameters
    ----------
    rows : Dataset
        A part of one that `load` returned, whole.
    split : {"train", "test"}
        Which part.
    data_dir : path-like, optional
        As for `load`.

    Returns
    -------
    ndarray of shape (N,), uint8, or None
        None where labels are not known: those of MNIST lie in files that `fastvae data fetch` does not bring, and
        nobody needs them.
    """
    if rows.name == "digits" and rows.origins is not None:
        from sklearn.datasets import load_digits

        digits: NDArray[np.uint8] = load_digits().target.astype(np.uint8)[np.asarray(rows.origins)]
        return digits
    if rows.name != "mnist":
        return None
    file = DataFile(f"{'train' if split == 'train' else 't10k'}-labels-idx1-ubyte.gz", (), 0, "")
    places = candidate_paths(REGISTRY["mnist"], file, data_folder(data_dir))
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        return None
    try:
        labels = np.frombuffer(b"".join(read_chunks(path)), np.uint8)[_IDX_HEADER:]
    except DataError:
        return None
    return labels if len(labels) == rows.n_rows else None
