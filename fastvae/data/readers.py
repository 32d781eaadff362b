"""From a path to the reader of its format.

Every reader checks what a file claims about itself against what it holds before it allocates.
"""

from __future__ import annotations

from pathlib import Path

from fastvae.data.content import Content, unreadable
from fastvae.data.csv_files import read_csv
from fastvae.data.idx import read_idx
from fastvae.data.mat import read_mat
from fastvae.data.numpy_files import read_npy, read_npz
from fastvae.errors import DataError

__all__ = ["read_file"]


def read_file(path: Path) -> Content:
    """Read a data file: .mat, .npy, .npz and .csv by the ending, IDX (plain or gzip) by its magic number.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    Content

    Raises
    ------
    DataError
        The file is not a regular one, unreadable, damaged, empty, or of no known format; the message names the file
        and why.
    """
    if not path.is_file():
        reason = "is a folder; name a file in it" if path.is_dir() else "is not a regular file; name one that is"
        raise DataError(f"{path} {reason}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); fetch or write it again")
    readers = {".mat": read_mat, ".npy": read_npy, ".npz": read_npz, ".csv": read_csv}
    try:
        return readers.get(path.suffix.lower(), read_idx)(path)
    except OSError as error:
        raise unreadable(path, error) from error
