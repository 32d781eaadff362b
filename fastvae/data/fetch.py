"""Download of the named datasets."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeAlias

from fastvae.data.registry import (
    DATA_FOLDER_VARIABLE,
    REGISTRY,
    DataFile,
    NamedDataset,
    content_sha256,
    data_folder,
    find_files,
)
from fastvae.errors import DataError, one_line
from fastvae.files import sync_folder

__all__ = ["fetch"]

Progress: TypeAlias = Callable[[str, int, int | None], None]

BASE_URL_VARIABLE = "FASTVAE_DATA_URL"
TIMEOUT_SECONDS = 15
CHUNK_BYTES = 1 << 16
# Room for headers: a packed file is never much larger than its content.
PACKING_BYTES = 1 << 20


class _DownloadError(Exception):
    """One mirror did not give the file; the next may."""


def fetch(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    base_url: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download the files of a named dataset that are not there yet, and return their folder.

    Each file is written under a temporary name in the folder where it belongs, checked by the SHA-256 of its content,
    and only then renamed: under its own name there is a whole file or none.

    Parameters
    ----------
    name : str
        ``"mnist"`` or ``"freyface"``.
    data_dir : path-like, optional
        The files go into its subfolder of the dataset's name. By default the variable FASTVAE_DATA, else the user's
        cache folder.
    base_url : str, optional
        URL of a folder that serves the files, instead of the published mirrors. By default the variable
        FASTVAE_DATA_URL.
    progress : callable, optional
        Called as progress(file name, bytes so far, bytes in all or None) while a file comes in.

    Returns
    -------
    Path
        The folder that holds the (first) file.

    Raises
    ------
    DataError
        The name is unknown or embedded, a file that is already there is not the published one, no mirror gave the
        file, or the folder cannot be written. The message says where to put the files by hand.
    """
    dataset = REGISTRY.get(name)
    if dataset is None:
        raise DataError(f"no dataset is called {name!r}; the named datasets are {', '.join(REGISTRY)}")
    if not dataset.files:
        raise DataError(f"{name} comes with scikit-learn and needs no download")
    folder = data_folder(data_dir)
    found = find_files(dataset, folder)
    target = folder / name
    for file in dataset.files:
        if file.name in found:
            _check_present(found[file.name], file)
        else:
            found[file.name] = _fetch_file(dataset, file, target, base_url, progress)
    return found[dataset.files[0].name].parent


def _check_present(path: Path, file: DataFile) -> None:
    try:
        is_published = content_sha256(path) == file.sha256
    except DataError as error:
        raise DataError(f"{error}; it is in the way of the download, move it away") from error
    if not is_published:
        raise DataError(f"{path} is not the published file (other SHA-256); move it away and fetch again")


def _fetch_file(
    dataset: NamedDataset, file: DataFile, target: Path, base_url: str | None, progress: Progress | None
) -> Path:
    base_url = base_url or os.environ.get(BASE_URL_VARIABLE)
    mirrors = (base_url,) if base_url else file.mirrors
    failures = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for mirror in mirrors:
            url = mirror.rstrip("/") + "/" + file.name
            try:
                return _download(url, file, target, progress)
            except _DownloadError as error:
                failures.append(f"{url}: {error}")
    except OSError as error:
        raise DataError(
            f"cannot write {file.name} to {target}: {error.strerror or error}; choose another folder with --data-dir "
            f"or {DATA_FOLDER_VARIABLE}"
        ) from error
    names = " and ".join(each.name for each in dataset.files)
    raise DataError(
        f"cannot download {dataset.name} ({'; '.join(failures)}); without internet put {names} into {target} by hand, "
        f"or name the folder that holds them with --data-dir or {DATA_FOLDER_VARIABLE}"
    )


def _download(url: str, file: DataFile, target: Path, progress: Progress | None) -> Path:
    """Bring one file under its name; raise _DownloadError for a failing mirror, OSError for a failing folder."""
    # The ending stays, because the content is read by it.
    handle, temporary = tempfile.mkstemp(dir=target, prefix=".part-", suffix=f"-{file.name}")
    try:
        with os.fdopen(handle, "wb") as out, contextlib.closing(_receive(url, file)) as chunks:
            n_written = 0
            for chunk, n_total in chunks:
                n_written += out.write(chunk)
                if progress is not None:
                    progress(file.name, n_written, n_total)
            out.flush()
            os.fsync(out.fileno())
        _check_download(Path(temporary), file)
        path = target / file.name
        os.chmod(temporary, 0o644)  # mkstemp leaves it readable by its owner alone, but data folders are shared
        os.replace(temporary, path)
        sync_folder(target)
        return path
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _receive(url: str, file: DataFile) -> Generator[tuple[bytes, int | None], None, None]:
    """Yield (chunk, size of the whole if known) of a URL; every failure of the network becomes a _DownloadError."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    n_received = 0
    try:
        with urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length")
            n_total = int(length) if length and length.isdigit() else None
            while chunk := response.read(CHUNK_BYTES):
                n_received += len(chunk)
                if n_received > file.n_bytes + PACKING_BYTES:
                    raise _DownloadError("more bytes than the published file has")
                yield chunk, n_total
    except HTTPError as error:
        error.close()
        raise _DownloadError(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise _DownloadError(one_line(reason)) from error
    if n_total is not None and n_received != n_total:
        raise _DownloadError(f"the connection ended after {n_received} of {n_total} bytes")


def _check_download(path: Path, file: DataFile) -> None:
    try:
        digest = content_sha256(path)
    except DataError as error:
        raise _DownloadError("the file is damaged") from error
    if digest != file.sha256:
        raise _DownloadError(f"wrong SHA-256 {digest[:12]}..., expected {file.sha256[:12]}...")
