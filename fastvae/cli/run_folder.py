"""The folder of a run: whose it is, and writing into it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastvae.errors import CheckpointError

__all__ = ["RunFolder", "not_a_run"]


class RunFolder:
    """The folder of one run, and its checkpoints.

    Parameters
    ----------
    out : Path or None
        By default a fresh one below ``runs``.
    source : str
        The data, for the name of the default one.
    """

    def __init__(self, out: Path | None, source: str) -> None:
        self.is_default = out is None
        self.path = out or Path("runs") / f"{Path(source).stem}-{time.strftime('%Y%m%d-%H%M%S')}"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.path / "checkpoints"

    @property
    def is_begun(self) -> bool:
        """Whether it has checkpoints."""
        from fastvae.checkpoint import list_checkpoints

        return bool(list_checkpoints(self.checkpoints))

    def check_fresh(self) -> None:
        """Raise CheckpointError if a run, or checkpoints, are there already."""
        from fastvae.checkpoint import list_checkpoints
        from fastvae.errors import CheckpointError

        if self.is_begun:
            raise CheckpointError(f"{self} holds a run already; add --resume or name another --out")
        if list_checkpoints(self.path):
            raise not_a_run(self.path)

    @contextlib.contextmanager
    def claimed(self, *, is_new: bool) -> Iterator[None]:
        """Hold the folder for this process alone; folders made for it that stayed empty are removed again."""
        from fastvae.errors import CheckpointError
        from fastvae.files import lock_folder

        absent = [folder for folder in self.path.parents if not folder.exists()]
        made = self._make_own()
        with lock_folder(self.path) as is_ours:
            if not is_ours:
                raise CheckpointError(f"another process trains in {self}; wait for it or name another --out")
            try:
                if is_new:
                    self.check_fresh()
                yield
            finally:
                for folder in (self.checkpoints, *([self.path, *absent] if made else [])):
                    with contextlib.suppress(OSError):
                        folder.rmdir()

    def _make_own(self) -> bool:
        """Make the folder, under the next free name if it is the default one; return whether it was not there."""
        from fastvae.files import make_folder, sync_folder

        make_folder(self.path.parent)
        base, number = self.path, 1
        while True:
            try:
                self.path.mkdir()
            except FileExistsError:
                if not self.is_default:
                    return False
                number += 1
                self.path = base.with_name(f"{base.name}-{number}")
            else:
                sync_folder(self.path.parent)
                return True

    def write(self, name: str, text: str) -> None:
        """Write a file of text, entirely or not at all."""
        from fastvae.files import replace_file

        with replace_file(self.path / name) as stream:
            stream.write(text.encode(errors="surrogateescape"))  # a path need not be text


def not_a_run(path: Path) -> CheckpointError:
    """Return the error about a checkpoint of a model that was trained in Python."""
    from fastvae.errors import CheckpointError

    return CheckpointError(
        f"{path} was not written by fastvae train and does not name its data; "
        "go on in Python with VAE.load and resume, or name another folder"
    )
