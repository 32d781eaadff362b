"""Ctrl-C while a training run works: let through, or held back for as long as something must not be cut."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

__all__ = ["Gate", "Interrupted", "gated_interrupts"]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C has ended training after a complete step, and the callbacks have done what they do at its end."""


@dataclass
class Gate:
    """Whether Ctrl-C is let through, and whether one waits to be."""

    open: bool = False
    holds: bool = False


@contextmanager
def gated_interrupts() -> Iterator[Gate]:
    """Let Ctrl-C through while the gate is open; hold it back until the block is left while it is not.

    So accounting, and what a step changes, are never cut in the middle. SIGTERM is treated alike where it
    has a handler.
    """
    gate = Gate()
    if threading.current_thread() is not threading.main_thread():
        yield gate
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers: dict[int, Callable[..., Any]] = {n: handler for n, handler in previous.items() if callable(handler)}
    caught: list[tuple[int, FrameType | None]] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if gate.open:
            handlers[number](number, frame)
        else:
            caught.append((number, frame))
            gate.holds = True

    for number in handlers:
        signal.signal(number, handle)
    try:
        yield gate
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if caught:
            number, frame = caught[0]
            handlers[number](number, frame)
