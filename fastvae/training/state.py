"""What a training run carries from step to step, and its form in a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvae.data.arrays import on_host
from fastvae.errors import CheckpointError
from fastvae.kernels import Array
from fastvae.training.interrupts import gated_interrupts

if TYPE_CHECKING:
    from fastvae.checkpoint import Checkpoint
    from fastvae.data import Dataset
    from fastvae.network import ParameterLayout

__all__ = ["State", "append_row", "fingerprint"]

_FINGERPRINT_ROWS = 256
_COUNTERS = ("step", "samples", "epoch_samples", "epoch_seconds")
_MEMORY = "callbacks"  # tensors of callbacks are named by it in checkpoints


@dataclass
class State:
    """Parameters, optimizer state and counters: all that the rest of a run depends on.

    Attributes
    ----------
    params : ndarray of shape (P,)
    slots : ndarray of shape (n_slots, P)
        The optimizer's state.
    step : int
        Steps done. The epoch and the place in it follow from it.
    sums : ndarray of shape (n_statistics,), float64
        Sums of the algorithm's statistics, each a minibatch mean, over the steps done of the epoch.
    epoch_seconds, epoch_samples : float, int
        Time inside the engine and datapoints trained on, of the epoch so far.
    seconds : float
        The same of the whole run, over all its sessions.
    samples : int
        Datapoints trained on.
    history : dict of str to list
        One value per finished epoch and column.
    extra : dict of str to ndarray
        What an algorithm carries besides, see `Composed.extra_shapes`; of the parameters' dtype.
    memory : dict of str to dict
        What each callback carries, see `fastvae.callbacks.Callback`.
    """

    params: Array
    slots: Array
    step: int = 0
    sums: Array = field(default_factory=lambda: np.zeros(2))
    epoch_seconds: float = 0.0
    epoch_samples: int = 0
    seconds: float = 0.0
    samples: int = 0
    history: dict[str, list[Any]] = field(default_factory=dict)
    extra: dict[str, Array] = field(default_factory=dict)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def epochs_closed(self) -> int:
        """Epochs that have a row in the history."""
        return len(self.history.get("epoch", []))

    @property
    def epoch_begin(self) -> int:
        """Steps that were done when the last epoch with a row ended."""
        return int(self.history["step"][-1]) if self.epochs_closed else 0

    def count(self, stats: Array, *, batch_size: int, seconds: float) -> None:
        """Account for the steps whose `stats` these are.

        The sums run strictly step by step, so that they do not depend on how the steps were cut into chunks.
        """
        self.sums = np.cumsum(np.vstack([self.sums, stats]), axis=0)[-1]
        self.step += len(stats)
        self.samples += len(stats) * batch_size
        self.epoch_samples += len(stats) * batch_size
        self.seconds += seconds
        self.epoch_seconds += seconds

    def close_epoch(self, row: dict[str, Any]) -> None:
        """Append a row to the history and start the next epoch's sums; an interrupt must not cut it."""
        append_row(self.history, row)
        self.start_epoch()

    def start_epoch(self) -> None:
        """Forget the sums of an epoch."""
        self.sums, self.epoch_seconds, self.epoch_samples = np.zeros_like(self.sums), 0.0, 0

    def first_not_finite(self, layout: ParameterLayout) -> str | None:
        """Name the first part that is not finite: a parameter, or what else an algorithm carries."""
        if not np.isfinite(self.params).all():
            views = layout.views(self.params)
            return next(f"parameter {name}" for name, view in views.items() if not np.isfinite(view).all())
        parts = {"the optimizer's state": self.slots} | {
            f"the state {name!r}": part for name, part in self.extra.items()
        }
        return next((name for name, part in parts.items() if not np.isfinite(part).all()), None)

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of what the next steps depend on, and of the counters of the present epoch, for `rewind`."""
        arrays = {name: part.copy() for name, part in self._arrays().items()}
        return arrays | {name: getattr(self, name) for name in _COUNTERS}

    def rewind(self, snapshot: Mapping[str, Any]) -> None:
        """Go back to a snapshot of this run that was taken since the last row of the history."""
        with gated_interrupts():
            for name, part in self._arrays().items():
                part[:] = snapshot[name]
            for name in _COUNTERS:
                setattr(self, name, snapshot[name])

    def take(self, other: State) -> None:
        """Take over the values of another's arrays, wherever they lie: of all, or with an error of none."""
        values = {name: on_host(part) for name, part in other._arrays().items()}
        for name, part in self._arrays().items():
            if values[name] is not part:
                part[:] = values[name]

    def _arrays(self) -> dict[str, Array]:
        extra = {f"extra.{name}": part for name, part in self.extra.items()}
        return {"params": self.params, "optimizer": self.slots, "epoch_sums": self.sums, **extra}

    def to_tensors(self) -> dict[str, Array]:
        """Return the arrays for a checkpoint."""
        return self._arrays() | {
            f"{_MEMORY}.{callback}.{name}": value
            for callback, values in self.memory.items()
            for name, value in values.items()
            if isinstance(value, np.ndarray)
        }

    def to_metadata(self) -> dict[str, Any]:
        """Return everything else for a checkpoint."""
        memory = {
            callback: {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
            for callback, values in self.memory.items()
            if values
        }
        names = (*_COUNTERS, "seconds", "history")
        return {name: getattr(self, name) for name in names} | {"memory": memory}

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        size: int,
        n_slots: int,
        dtype: Any,
        n_statistics: int = 2,
        extra_shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> State:
        """Take a state out of a checkpoint and check it.

        Raises
        ------
        CheckpointError
            A tensor or counter is missing, or has another shape or dtype than network, optimizer and algorithm ask for.
        """
        expected = {"params": (size,), "optimizer": (n_slots, size), "epoch_sums": (n_statistics,)}
        expected |= {f"extra.{name}": shape for name, shape in extra_shapes.items()}
        for name, shape in expected.items():
            tensor = checkpoint.tensors.get(name)
            wanted = np.dtype(np.float64 if name == "epoch_sums" else dtype)
            if tensor is None or tensor.shape != shape or tensor.dtype != wanted:
                found = "missing" if tensor is None else f"{tensor.dtype} of shape {tensor.shape}"
                raise CheckpointError(f"its tensor {name!r} is {found}, expected {wanted} of shape {shape}")
        counters = checkpoint.metadata.get("state")
        if not isinstance(counters, dict):
            raise CheckpointError("its training state is missing")
        params, slots, sums, *extra = (checkpoint.tensors[name] for name in expected)
        try:
            memory = {callback: dict(values) for callback, values in counters.get("memory", {}).items()}
            for name in checkpoint.tensors:
                if name.startswith(f"{_MEMORY}."):
                    _, callback, value = name.split(".", 2)
                    memory[callback][value] = checkpoint.tensors[name]
            carried = dict(zip(extra_shapes, extra, strict=True))
            state = cls(params, slots, sums=sums, extra=carried, **counters | {"memory": memory})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"its training state does not fit this version of fastvae ({error})") from error
        if len({len(column) for column in state.history.values()}) > 1:
            raise CheckpointError("its history has columns of different lengths")
        return state


def append_row(table: dict[str, list[Any]], row: dict[str, Any]) -> None:
    """Append a row to a dict of columns; a column that either side lacks is filled with None."""
    length = len(next(iter(table.values()), []))
    for name in row:
        if name not in table:
            table[name] = [None] * length
    for name, column in table.items():
        column.append(row.get(name))


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """Return what tells one training set from another: shape, dtype, scale and a hash of up to 256 spread rows.

    Parameters
    ----------
    dataset : Dataset

    Returns
    -------
    dict
        JSON-serialisable.
    """
    rows = dataset.rows
    index = np.unique(np.linspace(0, dataset.n_rows - 1, _FINGERPRINT_ROWS).astype(np.int64))
    digest = hashlib.sha256()
    sample: Any = rows[index]
    for part in (sample.indptr, sample.indices, sample.data) if dataset.is_sparse else (on_host(sample),):
        # scipy chooses the width of its indices freely
        part = part if part.dtype.kind == "f" or part.dtype == np.uint8 else part.astype(np.int64)
        digest.update(np.ascontiguousarray(part).data.cast("B"))
    return {
        "n_rows": dataset.n_rows,
        "data_dim": dataset.data_dim,
        "dtype": str(rows.dtype),
        "sparse": dataset.is_sparse,
        "scale": dataset.scale,
        "sha256": digest.hexdigest(),
    }
