"""Checkpoints on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastvae.arguments import integer
from fastvae.callbacks.base import Callback

if TYPE_CHECKING:
    from fastvae.model import Model

__all__ = ["Checkpoint"]


class Checkpoint(Callback):
    """Save checkpoints into a folder: at the begin, on the way, at the end and on Ctrl-C.

    ``model.fit(X, resume=folder)`` goes on from the newest, and ``VAE.load(folder)`` reads it. A state that is not
    finite is never saved.

    Parameters
    ----------
    folder : path-like
        Made if missing. That of a run of ``fastvae train`` stands for the folder ``checkpoints`` in it.
    every : int, optional
        Steps between two checkpoints; None for one at the end of an epoch, at most one in ten seconds.
    keep : int
        How many checkpoints to keep.
    metadata : callable, optional
        Returns further JSON values for each checkpoint.
    on_saved : callable, optional
        Called with the model after each save.

    Attributes
    ----------
    newest : Path or None
        The newest checkpoint that it has saved.

    Raises
    ------
    CheckpointError
        From training: the folder cannot be written, or has checkpoints of later steps than the model's, which would be
        taken for its newest ones.
    """

    every_epoch = False
    min_seconds = 10.0

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every: int | None = None,
        keep: int = 3,
        metadata: Callable[[], Mapping[str, Any]] | None = None,
        on_saved: Callable[[Model], None] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.every = None if every is None else integer("every", every, low=1)
        self.keep = integer("keep", keep, low=1)
        self.metadata, self.on_saved = metadata, on_saved
        self.newest: Path | None = None
        self.saved_step, self.saved_at = -1, 0.0

    def _save(self, model: Model) -> None:
        from fastvae.checkpoint import save
        from fastvae.model_file import checkpoint_folder, to_checkpoint

        state = model.state_
        if state.first_not_finite(model.network_.layout):
            return  # the loop will find it too, and say which
        content = to_checkpoint(model, **(self.metadata() if self.metadata else {}))
        self.newest = save(checkpoint_folder(self.folder), content, step=state.step, keep=self.keep)
        self.saved_step, self.saved_at = state.step, monotonic()
        if self.on_saved is not None:
            self.on_saved(model)

    def before_training(self, model: Model, n_steps: int) -> None:
        """Save, so that a folder that cannot be written is found before the first step."""
        from fastvae.checkpoint import check_newest
        from fastvae.model_file import checkpoint_folder

        self.newest = None
        check_newest(checkpoint_folder(self.folder), step=model.n_steps_)
        self._save(model)

    def next_stop(self, step: int) -> int | None:
        """Return the next multiple of `every`."""
        return None if self.every is None else step - step % self.every + self.every

    def after_steps(self, model: Model, step: int) -> None:
        """Save if it is due: at multiples of `every`, or at the end of an epoch that has its row."""
        if self.every is not None:
            is_due = step % self.every == 0
        else:
            is_due = model.state_.epoch_begin == step and monotonic() - self.saved_at >= self.min_seconds
        if is_due:
            self._save(model)

    def after_training(self, model: Model, error: BaseException | None) -> None:
        """Save the last state, unless training failed."""
        if error is None or (isinstance(error, KeyboardInterrupt) and self.saved_step != model.n_steps_):
            self._save(model)
