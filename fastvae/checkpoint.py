"""Checkpoints: one safetensors file with its own checksums, written so that no crash leaves half of one.

The file is plain safetensors, readable with any safetensors library. Its ``__metadata__`` holds, all as strings:

===================  ===================================================================================
``format``           ``"fastvae"``
``format_version``   :data:`FORMAT_VERSION`
``metadata``         JSON of :attr:`Checkpoint.metadata`
``sha256``           JSON object: tensor name -> SHA-256 (hex) of the tensor's raw bytes
``header_sha256``    SHA-256 (hex) of the length prefix and header as written, with these 64 digits set to 0
===================  ===================================================================================

The seal ``header_sha256`` covers names, shapes, dtypes, metadata, tensor hashes and padding, and the tensor hashes
cover the rest, so every byte of the file is under a checksum. Every format version keeps the seal: a damaged version
number is told from one that this fastvae does not know. Checksums find damage; they are no protection against forgery.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import operator
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as _deserialize

from fastvae.errors import CheckpointError, NewerFormatError
from fastvae.files import make_folder, open_temporary, remove_stale, sync_folder

__all__ = ["FORMAT_VERSION", "Checkpoint", "check_newest", "list_checkpoints", "load_latest", "read", "save", "write"]

FORMAT_VERSION = 1

_DTYPES = {"F32": np.dtype(np.float32), "F64": np.dtype(np.float64), "I64": np.dtype(np.int64)}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes; the safetensors library refuses to read a longer one
_NAME = re.compile(r"checkpoint-[0-9]{12,}\.safetensors")
# Quotes inside JSON strings are escaped, so neither metadata nor a tensor name can look like the seal.
_SEAL = re.compile(rb'"header_sha256":"([0-9a-f]{64})"')
_UNSEALED = "0" * 64
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass
class Checkpoint:
    """The state of a run as arrays and plain values; this module interprets neither.

    Attributes
    ----------
    tensors : dict of str to ndarray
        C-contiguous arrays of any shape, float32, float64 or int64. They come back bit for bit, in the same order.
    metadata : dict of str to object
        Nested dicts with string keys, lists, tuples, strings, ints, floats, bools and None. Everything comes back
        exactly, except that a tuple comes back as a list. NaN and infinities are stored as the tokens ``NaN``,
        ``Infinity`` and ``-Infinity`` that :mod:`json` reads back (which NaN it was is lost).
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


def write(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint to one file, entirely or not at all.

    The content goes to a temporary file in the same folder (``.fastvae-*.tmp``), is synced to the disk, takes the
    place of `path` by a rename, and the folder is synced. So after a crash at any moment `path` is the old file or
    the new one, never a part. Temporary files left by writers that died are removed.

    Parameters
    ----------
    path : path-like
        File to write or replace. Its folder must exist.
    checkpoint : Checkpoint
        What to write.

    Raises
    ------
    CheckpointError
        The folder is missing, full or not writable, or the metadata exceed what a safetensors header holds.
    TypeError, ValueError
        A tensor or a metadata value that the format cannot hold without loss. Nothing was written.
    """
    path = Path(path)
    parts = _encode(checkpoint)
    try:
        remove_stale(path.parent)
        _write_durably(path, parts)
    except OSError as error:
        raise _not_written(path, error) from error


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint and check every byte of it.

    Parameters
    ----------
    path : path-like
        File written by :func:`write` or :func:`save`.

    Returns
    -------
    Checkpoint
        Its arrays are writable and independent of the file.

    Raises
    ------
    CheckpointError
        The file is missing, damaged, not a checkpoint of fastvae, or of an unknown format version.
    """
    path = Path(path)
    try:
        if not path.is_file():
            cause = "it is not a regular file" if path.exists() else "no such file"
            raise _rejected(path, cause, "check the path")
        with path.open("rb") as handle:
            header = _read_header(path, handle)
            handle.seek(0)
            content = handle.read()
    except OSError as error:
        raise _rejected(path, error.strerror or str(error), "make the file readable") from error
    return _decode(path, header, content)


def save(folder: str | os.PathLike[str], checkpoint: Checkpoint, *, step: int, keep: int = 3) -> Path:
    """Write the checkpoint of a step into a folder, then remove old ones.

    Only checkpoints of earlier steps are ever removed, and only once the file of `step` is safely on the disk. What
    stays is that file and the newest ``keep - 1`` earlier ones that look whole (intact header, right file size), so
    damaged files do not crowd out valid ones. A damaged file newer than those stays until they have moved past it.
    Checkpoints that a newer fastvae wrote stay. Those of later steps are left alone, and :func:`load_latest` prefers
    them.

    Parameters
    ----------
    folder : path-like
        Folder of the run; made if missing.
    checkpoint : Checkpoint
        What to write.
    step : int
        Optimizer step, at least 0: the file is ``checkpoint-<step, 12 digits>.safetensors``.
    keep : int
        How many checkpoints to keep, at least 1.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    CheckpointError
        The folder cannot be made, or as in :func:`write`, or an old checkpoint cannot be removed.
    TypeError, ValueError
        As in :func:`write`, and for a `step` or `keep` out of range.
    """
    step, keep = operator.index(step), operator.index(keep)
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    folder = Path(folder)
    path = folder / f"checkpoint-{step:012d}.safetensors"
    try:
        make_folder(folder)
    except OSError as error:
        raise _not_written(path, error) from error
    write(path, checkpoint)
    _prune(folder, step, keep)
    return path


def load_latest(
    folder: str | os.PathLike[str], on_damaged: Callable[[Path, CheckpointError], None]
) -> tuple[Path, Checkpoint]:
    """Read the newest valid checkpoint of a folder.

    Parameters
    ----------
    folder : path-like
        Folder that :func:`save` wrote to.
    on_damaged : callable
        Called with path and error for every file newer than the one returned, newest first.

    Returns
    -------
    path : Path
        The file read.
    checkpoint : Checkpoint
        Its content.

    Raises
    ------
    CheckpointError
        The folder is missing, holds no checkpoint, or none that is valid.
    NewerFormatError
        The newest that is not damaged was written by a newer fastvae.
    """
    folder = Path(folder)
    paths = list_checkpoints(folder)
    if not paths:
        cause = "holds no checkpoint" if folder.exists() else "does not exist"
        raise CheckpointError(f"nothing to resume: {folder} {cause}; name the folder of a run that saved one")
    for path in reversed(paths):
        try:
            return path, read(path)
        except NewerFormatError:
            raise  # whole, and further on than those before it
        except CheckpointError as error:
            on_damaged(path, error)
    names = ", ".join(path.name for path in paths)
    raise CheckpointError(f"no valid checkpoint in {folder} (rejected: {names}); restore one or start a fresh run")


def list_checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """List the checkpoint files of a folder by name, without opening them.

    Parameters
    ----------
    folder : path-like
        Folder that :func:`save` wrote to; a missing one holds none.

    Returns
    -------
    list of Path
        Oldest step first.

    Raises
    ------
    CheckpointError
        The folder cannot be listed.
    """
    folder = Path(folder)
    try:
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot list {folder}: {error.strerror}; name the folder of a run") from error
    return sorted(found, key=_step)


def check_newest(folder: str | os.PathLike[str], *, step: int) -> None:
    """Refuse a folder with valid checkpoints of later steps than a run's that is about to save there.

    Raises
    ------
    CheckpointError
        It has one, which :func:`load_latest` would prefer to what the run saves; or it cannot be listed.
    """
    for path in list_checkpoints(folder):
        if _step(path) > step:
            try:
                read(path)
            except NewerFormatError:
                pass
            except CheckpointError:
                continue
            raise CheckpointError(
                f"{path} belongs to another run, or to this one after step {step}; go on with it (resume), "
                "name another folder, or remove it"
            )


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("checkpoint-"))


# Format ---------------------------------------------------------------------------------------------------------------


def _encode(checkpoint: Checkpoint) -> list[bytes | memoryview]:
    """Return the file in parts: the sealed header, and every tensor's bytes where they lie, since a model may be large.

    The library's own writer would copy them twice.
    """
    _check_tensors(checkpoint.tensors)
    if not isinstance(checkpoint.metadata, dict):
        raise TypeError(f"metadata must be a dict, got {type(checkpoint.metadata).__name__}")
    _check_json(checkpoint.metadata, "metadata")
    fields = {
        "format": "fastvae",
        "format_version": str(FORMAT_VERSION),
        "metadata": json.dumps(checkpoint.metadata),
        "sha256": json.dumps({name: _sha256(tensor) for name, tensor in checkpoint.tensors.items()}),
        "header_sha256": _UNSEALED,
    }
    header: dict[str, Any] = {"__metadata__": fields}
    body: list[bytes | memoryview] = []
    end = 0
    # The widest elements first, so that all are aligned.
    for name, tensor in sorted(checkpoint.tensors.items(), key=lambda item: -item[1].itemsize):
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": (start, end)}
        body.append(_raw(tensor))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise CheckpointError(
            f"cannot write a checkpoint: names and metadata take {len(text)} bytes, the format holds {_MAX_HEADER}; "
            "shorten the history or store it as a tensor"
        )
    return [_seal(len(text).to_bytes(8, "little") + text), *body]


def _decode(path: Path, header: dict[str, Any], content: bytes) -> Checkpoint:
    fields = header["__metadata__"]
    try:
        hashes = json.loads(fields["sha256"])
        metadata = json.loads(fields["metadata"])
        tensors = _deserialize(content)
    except (KeyError, ValueError, SafetensorError) as error:
        raise _rejected(path, f"its content is malformed ({error})") from error
    if not isinstance(hashes, dict) or not isinstance(metadata, dict):
        raise _rejected(path, "its content is malformed (hashes or metadata are not a JSON object)")
    unmatched = sorted(tensors.keys() ^ hashes.keys())
    if unmatched:
        raise _rejected(path, f"tensor {unmatched[0]!r} has no SHA-256, or its SHA-256 no tensor")
    for name, expected in hashes.items():
        if _sha256(tensors[name]) != expected:
            raise _rejected(path, f"the bytes of tensor {name!r} do not match their SHA-256")
    return Checkpoint({name: tensors[name] for name in hashes}, metadata)


def _read_header(path: Path, handle: BinaryIO) -> dict[str, Any]:
    """Read and check everything before the tensor bytes, and that the file is as long as the header says."""
    size = os.fstat(handle.fileno()).st_size
    prefix = handle.read(8)
    length = int.from_bytes(prefix, "little")
    if size == 0:
        raise _rejected(path, "the file is empty")
    # Checked against the real size before anything is allocated: a damaged prefix can claim 2^64 bytes.
    if len(prefix) < 8 or length > min(size - 8, _MAX_HEADER):
        raise _rejected(path, "it is truncated or not a safetensors file")
    text = handle.read(length)
    if _SEAL.search(text) is None:
        raise _rejected(path, "it is not a checkpoint of fastvae, or its header is damaged")
    if _seal(prefix + text) != prefix + text:
        raise _rejected(path, "its header does not match its SHA-256")
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        form, version = header["__metadata__"]["format"], int(header["__metadata__"]["format_version"])
        refused = [f"{name!r} of {entry['dtype']}" for name, entry in entries.items() if entry["dtype"] not in _DTYPES]
        expected = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (KeyError, TypeError, ValueError) as error:
        raise _rejected(path, f"its header is malformed ({error})") from error
    if version > FORMAT_VERSION:
        raise NewerFormatError(
            f"cannot read checkpoint {path}: it was written by a newer fastvae (format version {version}); "
            "upgrade fastvae"
        )
    if form != "fastvae" or version != FORMAT_VERSION:
        raise _rejected(path, f"unknown format {form!r} version {version}")
    if refused:
        raise _rejected(path, f"tensor {refused[0]} is none of {', '.join(_DTYPES)}")
    if size != expected:
        raise _rejected(path, f"it has {size} bytes, its header describes {expected}")
    return dict(header)


def _seal(header: bytes) -> bytes:
    """Set ``header_sha256`` in a header (length prefix included) to what it must be."""

    def write(digest: str) -> bytes:
        return _SEAL.sub(b'"header_sha256":"%b"' % digest.encode(), header, count=1)

    return write(hashlib.sha256(write(_UNSEALED)).hexdigest())


def _sha256(tensor: np.ndarray) -> str:
    return hashlib.sha256(_raw(tensor)).hexdigest()


def _raw(tensor: np.ndarray) -> memoryview:
    """Return the bytes of a tensor, without a copy."""
    return tensor.reshape(-1).view(np.uint8).data


def _check_tensors(tensors: dict[str, np.ndarray]) -> None:
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"a tensor cannot be named {name!r}; use another string")
        if not isinstance(tensor, np.ndarray) or tensor.dtype not in _DTYPES.values():
            found = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
            raise TypeError(f"tensor {name!r} must be a float32, float64 or int64 array, got {found}")
        if not tensor.flags.c_contiguous:
            raise ValueError(f"tensor {name!r} must be C-contiguous; pass np.ascontiguousarray of it")


def _check_json(value: object, where: str) -> None:
    """Refuse what JSON would change on the way (integer keys) or cannot hold (NumPy scalars)."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; only strings can be keys")
            _check_json(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            _check_json(item, f"{where}[{position}]")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(f"{where} is a {type(value).__name__}; use a plain Python value")


# Disk -----------------------------------------------------------------------------------------------------------------


def _write_durably(path: Path, parts: list[bytes | memoryview]) -> None:
    handle, temporary = open_temporary(path.parent)
    try:
        with handle:
            handle.writelines(parts)
            handle.flush()
            os.fsync(handle.fileno())
            os.replace(temporary, path)  # before the handle and so the lock is released: see remove_stale
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _prune(folder: Path, step: int, keep: int) -> None:
    spare = keep - 1
    for path in reversed([path for path in list_checkpoints(folder) if _step(path) < step]):
        condition = _condition(path)
        if condition == "newer":
            continue
        if spare == 0:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"step {step} is saved, but the old checkpoint {path} cannot be removed: {error.strerror}; "
                    "remove it by hand"
                ) from error
        elif condition == "whole":
            spare -= 1


def _condition(path: Path) -> str:
    """Say what a file is by its header and size: ``whole``, ``damaged``, or ``newer`` than this fastvae."""
    try:
        with path.open("rb") as handle:
            _read_header(path, handle)
    except NewerFormatError:
        return "newer"
    except (OSError, CheckpointError):
        return "damaged"
    return "whole"


def _rejected(path: Path, cause: str, mend: str = "use another checkpoint of the run") -> CheckpointError:
    return CheckpointError(f"cannot read checkpoint {path}: {cause}; {mend}")


def _not_written(path: Path, error: OSError) -> CheckpointError:
    folder = path.parent
    if error.errno in _NO_ROOM:
        mend = f"free space in {folder} or choose another folder"
    elif error.errno in _NO_ACCESS:
        mend = f"make {folder} writable or choose another folder"
    else:
        mend = f"check the disk and that {folder} is a folder, or choose another folder"
    return CheckpointError(
        f"cannot write checkpoint {path}: {error.strerror or error}; {mend}; earlier checkpoints are untouched"
    )
