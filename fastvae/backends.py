"""The backends by name: loading one, and why one is unavailable. The one place that tries optional imports."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, cast

from fastvae.errors import BackendError

if TYPE_CHECKING:
    from fastvae.kernels import Engine

__all__ = ["NAMES", "default_threads", "load", "resolve", "unavailable"]

# name -> module, in the order in which "auto" tries them
_MODULES = {"cpp": "fastvae._native", "reference": "fastvae.kernels.reference"}
NAMES = tuple(_MODULES)


def unavailable(name: str) -> str | None:
    """Say in one line why a backend cannot be used here, or None when it can."""
    if name not in _MODULES:
        return f"unknown backend {name!r}: choose one of auto, {', '.join(NAMES)}"
    try:
        import_module(_MODULES[name])
    except ImportError as error:
        return f"backend {name!r} cannot be imported ({error}): reinstall fastvae with a C++ compiler present"
    return None


def resolve(name: str = "auto") -> str:
    """Turn ``"auto"`` into the first backend available; any other name into itself.

    Raises
    ------
    BackendError
        The backend is unknown or unavailable.
    """
    if name == "auto":
        return next(candidate for candidate in NAMES if unavailable(candidate) is None)
    if reason := unavailable(name):
        raise BackendError(reason)
    return name


def load(name: str = "auto") -> Engine:
    """Return the engine of a backend.

    Raises
    ------
    BackendError
        The backend is unknown or unavailable.
    """
    return cast("Engine", import_module(_MODULES[resolve(name)]))


def default_threads() -> int:
    """Return the number of processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
