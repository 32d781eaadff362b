"""A whole run through the training loop, as `fit` makes it: on a GPU, or on none, which leaves what the host does."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence, Set
from dataclasses import replace
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastvae import backends
from fastvae.bench.cases import Case
from fastvae.callbacks.base import Callback, History
from fastvae.data import Dataset
from fastvae.kernels import Array, Plan
from fastvae.kernels.cuda.launch import LOOP, Work
from fastvae.kernels.places import place_of
from fastvae.network import initialise
from fastvae.training.aevb import AEVB, Fused
from fastvae.training.loop import run_epochs
from fastvae.training.state import State

__all__ = ["IdleDevice", "whole_run"]

_SHARED_BYTES = 227 * 1024  # of a block on sm_90


class _IdleBuffer:
    def __init__(self, size: int) -> None:
        self.size, self._bytes = size, np.zeros(size + 256, np.uint8)
        self.address = -(-self._bytes.ctypes.data // 256) * 256


class _IdleGraph:
    def launch(self) -> None:
        """Nothing."""


class IdleDevice:
    """A device whose kernels take no time and leave memory as it is. Copies are made, within the host's memory."""

    rate, shared_bytes, handle = 1e13, _SHARED_BYTES, 3

    def zeros(self, size: int) -> _IdleBuffer:
        """Allocate."""
        return _IdleBuffer(size)

    def upload(self, address: int, array: Array) -> None:
        """Copy in."""
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Any memory will do."""
        return np.empty(shape, dtype)

    upload_ahead = upload

    def download(self, array: Array, address: int) -> None:
        """Copy out; of the loop's cursor, that all steps are made."""
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        if array.dtype == LOOP:
            array["step"] = array["limit"]

    def run(self, launches: Sequence[Work], precision: str) -> None:
        """Nothing."""

    def graph(self, launches: Sequence[Work], precision: str) -> _IdleGraph:
        """Nothing."""
        return _IdleGraph()

    def from_dlpack(self, value: Any) -> Any:
        """There is none."""
        raise NotImplementedError

    def follow_caller(self, streams: Set[int]) -> None:
        """Nothing."""

    lead_caller = follow_caller

    def clear(self, address: int, size: int) -> None:
        """Nothing."""

    def synchronize(self) -> None:
        """Nothing."""


class _Until(Callback):
    """Ends training when its time is over."""

    def __init__(self, seconds: float, *, every_epoch: bool) -> None:
        self.end, self.every_epoch = perf_counter() + seconds, every_epoch

    def after_epoch(self, model: Any, epoch: int, history: History) -> bool:
        """Look at the clock."""
        return perf_counter() > self.end


def whole_run(
    case: Case,
    data: Dataset,
    plan: Plan,
    *,
    samples: int,
    seconds: float = np.inf,
    every_epoch: bool = False,
    kind: type[Fused] = AEVB,
) -> dict[str, Any]:
    """Train in whole epochs, after one that is not timed.

    Parameters
    ----------
    case : Case
    data : Dataset
    plan : Plan
    samples : int
        Datapoints to train on, all epochs together.
    seconds : float
        After so many no further epoch is begun.
    every_epoch : bool
        Whether training halts after every epoch, as for a callback that looks at the model.
    kind : type
        The algorithm.

    Returns
    -------
    dict
        ``samples`` trained on, ``seconds`` from the first step to the last, ``seconds_in_engine`` of them, and
        ``us_per_step``. JSON-serialisable.
    """
    data = replace(data, rows=place_of(plan).placed(data.rows))  # as `fit` does
    layout, optimizer, rows = case.network.layout, case.optimizer, case.batch_size
    slots = np.zeros((optimizer.n_slots, layout.size), np.float32)
    state = State(initialise(case.network, seed=0), slots)
    constants: dict[str, Any] = {"kl_weight": 1.0, "kl_warmup": 0, "decay": 0.0}
    algorithm = kind(backends.load("reference"), plan, optimizer, dataset=data, binarize="none", seed=0, **constants)
    n_epochs = -(-samples // (data.n_rows // rows * rows))
    model: Any = SimpleNamespace(state_=state)
    lengths: dict[str, Any] = {"n_rows": data.n_rows, "batch_size": rows}
    run_epochs(model, algorithm, n_epochs=1, **lengths)  # compiles and records
    samples_before, steps_before, seconds_before = state.samples, state.step, state.seconds
    until, begin = _Until(seconds, every_epoch=every_epoch), perf_counter()
    run_epochs(model, algorithm, n_epochs=1 + n_epochs, callbacks=[until], **lengths)
    wall = perf_counter() - begin
    return {
        "samples": state.samples - samples_before,
        "seconds": wall,
        "seconds_in_engine": state.seconds - seconds_before,
        "us_per_step": 1e6 * wall / (state.step - steps_before),
    }
