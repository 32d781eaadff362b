"""The history as files that other programs read while training goes on."""

from __future__ import annotations

import csv
import json
import os
from io import StringIO
from math import isfinite
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any

from fastvae.callbacks.base import Callback, History
from fastvae.files import make_folder, replace_file
from fastvae.optional import require

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["CSVLogger", "JSONLogger", "TensorBoard", "history_csv"]


def history_csv(history: History, begin: int = 0) -> str:
    """Return the rows of a history from one on as CSV, the first with the names of the columns above it."""
    stream = StringIO()
    csv.writer(stream, lineterminator="\n").writerows([*([] if begin else [history]), *_rows(history, begin)])
    return stream.getvalue()


def _history_json(history: History, begin: int = 0) -> str:
    """Return the rows of a history from one on as lines of JSON, which knows no number that is not finite: null."""
    rows = [[None if isinstance(v, float) and not isfinite(v) else v for v in row] for row in _rows(history, begin)]
    return "".join(json.dumps(dict(zip(history, row, strict=True))) + "\n" for row in rows)


def _rows(history: History, begin: int) -> zip[tuple[Any, ...]]:
    return zip(*(column[begin:] for column in history.values()), strict=True)


class _FileLogger(Callback):
    every_epoch = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.columns: list[str] = []
        self.n_rows = 0

    def text(self, history: History, begin: int = 0) -> str:
        """Return the rows of a history from one on."""
        raise NotImplementedError

    def before_training(self, model: Model, n_steps: int) -> None:
        """Write what there is, so that a file that cannot be written is found before the first step."""
        make_folder(self.path.parent)
        self._replace(model.history_)

    def after_epoch(self, model: Model, epoch: int, history: History) -> None:
        """Add the rows that are new; write the file anew when the columns are others than before."""
        if list(history) != self.columns:
            self._replace(history)
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(self.text(history, self.n_rows))
        self.n_rows = len(history["epoch"])

    def _replace(self, history: History) -> None:
        with replace_file(self.path) as stream:
            stream.write(self.text(history).encode())
        self.columns, self.n_rows = list(history), len(history.get("epoch", []))


class CSVLogger(_FileLogger):
    """Write the history as CSV: a row per epoch, those of sessions before this one too.

    Parameters
    ----------
    path : path-like
        Replaced when training begins. Folders above it are made.

    Raises
    ------
    OSError
        From training, before its first step: the file cannot be written.
    """

    def text(self, history: History, begin: int = 0) -> str:
        """Return the rows of a history from one on."""
        return history_csv(history, begin)


class JSONLogger(_FileLogger):
    """Write the history as JSON lines: an object per epoch, those of sessions before this one too.

    Parameters
    ----------
    path : path-like
        Replaced when training begins. Folders above it are made.

    Raises
    ------
    OSError
        From training, before its first step: the file cannot be written.
    """

    def text(self, history: History, begin: int = 0) -> str:
        """Return the rows of a history from one on."""
        return _history_json(history, begin)


class TensorBoard(Callback):
    """Write the columns of the history as scalars for TensorBoard, at the step that ended each epoch.

    A column of lists, such as ``kl_per_dimension``, is ``kl_per_dimension/0``, ``kl_per_dimension/1``, ... there.

    Steps that an interrupted session made after its last checkpoint, and that are made again, are shown once.

    Parameters
    ----------
    folder : path-like
        Made if missing.

    Raises
    ------
    ImportError
        tensorboardX is not installed.
    OSError
        From training, before its first step: the folder cannot be written.
    """

    every_epoch = False

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        require("tensorboardX", extra="tensorboard", for_what="TensorBoard")
        self.folder = Path(folder)
        self.writer: Any = None

    def before_training(self, model: Model, n_steps: int) -> None:
        """Begin a file of events."""
        from tensorboardX import SummaryWriter

        make_folder(self.folder)
        # The name of the file has the second alone, and another session of it would be overwritten.
        suffix = f".{time_ns() % 10**9:09}"
        purge_step = model.n_steps_ + 1 if model.n_steps_ else None
        self.writer = SummaryWriter(str(self.folder), purge_step=purge_step, filename_suffix=suffix)
        self.n_rows = model.state_.epochs_closed

    def after_epoch(self, model: Model, epoch: int, history: History) -> None:
        """Write the rows that are new."""
        for i in range(self.n_rows, epoch):
            self._write({name: column[i] for name, column in history.items()})
        self.n_rows = epoch
        self.writer.flush()

    def _write(self, row: dict[str, Any]) -> None:
        for name, cell in row.items():
            values = {f"{name}/{i}": v for i, v in enumerate(cell)} if isinstance(cell, list) else {}
            for label, value in (values or {name: cell}).items():
                if name not in ("epoch", "step") and isinstance(value, int | float):
                    self.writer.add_scalar(label, value, row["step"])

    def after_training(self, model: Model, error: BaseException | None) -> None:
        """End the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
