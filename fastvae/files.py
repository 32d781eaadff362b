"""Writing files entirely or not at all, and folders that a crash does not lose."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "cache_folder",
    "lock_folder",
    "make_folder",
    "open_temporary",
    "remove_stale",
    "replace_file",
    "sync_folder",
]


def cache_folder() -> Path:
    """Return the folder of the user's cache that is ours, where Linux or macOS has it. It may not exist."""
    if sys.platform == "darwin":
        return Path("~/Library/Caches/fastvae").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fastvae").expanduser()


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends well, and is removed otherwise.

    Raises
    ------
    OSError
        The folder is missing, full or not writable.
    """
    try:
        remove_stale(path.parent)
        stream, temporary = open_temporary(path.parent)
        try:
            with stream:
                yield stream
                stream.flush()
                os.replace(temporary, path)  # before the stream and so the lock is released: see remove_stale
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def open_temporary(folder: Path) -> tuple[BinaryIO, Path]:
    """Create a temporary file of a name of its own and lock it for as long as it is open."""
    while True:
        temporary = folder / f".fastvae-{secrets.token_hex(8)}.tmp"
        handle = temporary.open("xb")
        with contextlib.suppress(OSError):  # a filesystem without locks: its stale files stay
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle.fileno()).st_nlink:
            return handle, temporary
        handle.close()  # another process took it for stale between the two calls


def remove_stale(folder: Path) -> None:
    """Remove temporary files whose writer died: the lock of a living one cannot be taken, whatever its host or pid."""
    for temporary in folder.glob(".fastvae-*.tmp"):
        with contextlib.suppress(OSError), temporary.open("r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder safely onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a filesystem that has no sync of folders
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, safely on the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder and yield True, or yield False while another process holds it.

    The system lets go of it however this process ends. On a filesystem without locks it is always free.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except OSError as error:
            is_free = not isinstance(error, BlockingIOError)
        yield is_free
    finally:
        os.close(descriptor)
