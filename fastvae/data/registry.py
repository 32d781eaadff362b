"""The datasets that have a name: their files, where these are looked for, and which are there."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from fastvae.data.content import read_chunks
from fastvae.data.mat import read_mat
from fastvae.errors import DataError
from fastvae.files import cache_folder

__all__ = [
    "REGISTRY",
    "DataFile",
    "DatasetState",
    "NamedDataset",
    "candidate_paths",
    "content_sha256",
    "data_folder",
    "find_files",
    "list_datasets",
    "require_files",
]

DATA_FOLDER_VARIABLE = "FASTVAE_DATA"


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One file of a named dataset.

    Attributes
    ----------
    name : str
        Its published name.
    mirrors : tuple of str
        URLs of folders that serve it.
    n_bytes : int
        Size of its content, see `content_sha256`.
    sha256 : str
        Digest of its content, see `content_sha256`.
    """

    name: str
    mirrors: tuple[str, ...]
    n_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class NamedDataset:
    """A dataset that `load` knows by name; one without files is embedded in scikit-learn."""

    name: str
    rows: int
    columns: int
    files: tuple[DataFile, ...]
    source: str


@dataclasses.dataclass(frozen=True)
class DatasetState:
    """A named dataset as it is on this machine.

    Attributes
    ----------
    name : str
        The name that `load` takes.
    rows, columns : int
        Its published size, training and test rows together.
    state : {"embedded", "present", "missing"}
        Embedded ones come with scikit-learn; present ones lie in `folder`; of missing ones, `missing` names the files.
    folder : Path or None
        Where the files are, or where they belong if they are missing; None for an embedded dataset.
    missing : tuple of str
        Names of the files that are not there.
    source : str
        Who made it and under which licence.
    """

    name: str
    rows: int
    columns: int
    state: Literal["embedded", "present", "missing"]
    folder: Path | None
    missing: tuple[str, ...]
    source: str


_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

REGISTRY = {
    dataset.name: dataset
    for dataset in (
        NamedDataset(
            "digits", 1797, 64, (), "UCI Optical Recognition of Handwritten Digits, CC BY 4.0, in scikit-learn"
        ),
        NamedDataset(
            "mnist",
            70000,
            784,
            (
                # The labels are left out: no model here reads them.
                DataFile(
                    "train-images-idx3-ubyte.gz",
                    _MNIST_MIRRORS,
                    47_040_016,
                    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                ),
                DataFile(
                    "t10k-images-idx3-ubyte.gz",
                    _MNIST_MIRRORS,
                    7_840_016,
                    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                ),
            ),
            "LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist, CC BY-SA 3.0",
        ),
        NamedDataset(
            "freyface",
            1965,
            560,
            (
                DataFile(
                    "frey_rawface.mat",
                    ("https://cs.nyu.edu/~roweis/data/",),
                    1_100_400,
                    "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78",
                ),
            ),
            "Brendan Frey, from Sam Roweis, cs.nyu.edu/~roweis/data.html, no licence stated",
        ),
    )
}


def data_folder(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that holds datasets: `data_dir`, else the variable FASTVAE_DATA, else the user's cache folder.

    Parameters
    ----------
    data_dir : path-like, optional
        A folder that is used as it is.

    Returns
    -------
    Path
        It may not exist.
    """
    chosen = data_dir if data_dir is not None else os.environ.get(DATA_FOLDER_VARIABLE) or None
    return cache_folder() if chosen is None else Path(chosen).expanduser()


def candidate_paths(dataset: NamedDataset, file: DataFile, folder: Path) -> Iterator[Path]:
    """Yield the places of a file, best first: folder, subfolder of the dataset's name; in each with .gz, without."""
    for place in (folder, folder / dataset.name):
        yield place / file.name
        if file.name.endswith(".gz"):
            yield place / file.name.removesuffix(".gz")


def find_files(dataset: NamedDataset, folder: Path) -> dict[str, Path]:
    """Return the path of each file of a dataset that lies in a folder, by published name."""
    places = {file.name: candidate_paths(dataset, file, folder) for file in dataset.files}
    found = {name: next((path for path in paths if path.is_file()), None) for name, paths in places.items()}
    return {name: path for name, path in found.items() if path is not None}


def require_files(dataset: NamedDataset, data_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the paths of a dataset's files, in the order of the registry.

    Raises
    ------
    DataError
        A file is not there; the message names it, the folder, and how to get it.
    """
    folder = data_folder(data_dir)
    found = find_files(dataset, folder)
    missing = [file.name for file in dataset.files if file.name not in found]
    if missing:
        raise DataError(
            f"{dataset.name} is not in {folder}: no {', '.join(missing)} there or in its subfolder {dataset.name}; "
            f"run `fastvae data fetch {dataset.name}`, or name the folder with --data-dir or {DATA_FOLDER_VARIABLE}"
        )
    return [found[file.name] for file in dataset.files]


def list_datasets(data_dir: str | os.PathLike[str] | None = None) -> list[DatasetState]:
    """Return every named dataset with its state in the data folder; no file is opened.

    Parameters
    ----------
    data_dir : path-like, optional
        See `data_folder`.

    Returns
    -------
    list of DatasetState
    """
    folder = data_folder(data_dir)
    return [_state(dataset, folder) for dataset in REGISTRY.values()]


def content_sha256(path: Path) -> str:
    """Return the SHA-256 of what a file holds, whatever way it is packed.

    For .mat the bytes of the rows (N, 560) are hashed, for every other file its decompressed bytes. The published
    digests are those of the content: mirrors pack the same bytes with other gzip headers, and a .mat file names its
    date of creation, so a digest of the file itself would refuse good copies.

    Raises
    ------
    DataError
        The file cannot be read or is damaged.
    """
    if path.suffix == ".mat":
        return hashlib.sha256(read_mat(path).rows).hexdigest()
    digest = hashlib.sha256()
    for chunk in read_chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _state(dataset: NamedDataset, folder: Path) -> DatasetState:
    found = find_files(dataset, folder)
    missing = tuple(file.name for file in dataset.files if file.name not in found)
    state: Literal["embedded", "present", "missing"]
    where: Path | None
    if not dataset.files:
        state, where = "embedded", None
    elif missing:
        state, where = "missing", folder
    else:
        state, where = "present", found[dataset.files[0].name].parent
    return DatasetState(dataset.name, dataset.rows, dataset.columns, state, where, missing, dataset.source)
