"""Ctrl-C at a chosen step, for tests of what goes on after it."""

from __future__ import annotations

from typing import Any

from fastvae.callbacks import Callback


class StopAt(Callback):
    """Ctrl-C after a chosen step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def next_stop(self, step: int) -> int | None:
        return self.step if step < self.step else None

    def after_steps(self, model: Any, step: int) -> None:
        if step == self.step:
            raise KeyboardInterrupt
