"""The backends by name: loading one, and why one is unavailable. The one place that tries optional imports."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastvae.errors import BackendError

if TYPE_CHECKING:
    from fastvae.kernels import Engine

__all__ = ["MAX_THREADS", "NAMES", "default_threads", "isa_level", "load", "processor", "resolve", "unavailable"]

_MODULES = {
    "cuda": "fastvae.kernels.cuda",
    "cpp": "fastvae._native",
    "numba": "fastvae.kernels.numba_cpu",
    "reference": "fastvae.kernels.reference",
}
NAMES = tuple(_MODULES)
# In this order. cuda joins them, as the first, once its tests have passed on a device.
_AUTOMATIC = ("cpp", "numba", "reference")
_MENDS = {
    "cuda": "pip install 'fastvae[cuda13]', or [cuda12] for an older driver",
    "cpp": "reinstall fastvae with a C++ compiler present",
    "numba": "install numba with pip",
}

MAX_THREADS = 1024
_CGROUP = Path("/sys/fs/cgroup")


def unavailable(name: str) -> str | None:
    """Say in one line why a backend cannot be used here, or None when it can."""
    if not isinstance(name, str) or name not in _MODULES:
        return f"unknown backend {name!r}: choose one of auto, {', '.join(NAMES)}"
    try:
        isa_level(import_module(_MODULES[name]))
    except ImportError as error:
        return f"backend {name!r} cannot be imported ({error}): {_MENDS.get(name, 'reinstall fastvae')}"
    except BackendError as error:
        return str(error)
    return None


def isa_level(engine: Any) -> str | None:
    """Return the instruction set or the device that an engine runs on, or None for one without levels.

    Raises
    ------
    BackendError
        The environment asks for one that the machine does not have.
    """
    return str(engine.isa_level()) if hasattr(engine, "isa_level") else None


def resolve(name: str = "auto") -> str:
    """Turn ``"auto"`` into the first of cpp, numba and reference that is available, any other name into itself.

    A warning tells, once, of one that is not. The backend cuda is taken where it is named.

    Raises
    ------
    BackendError
        The backend is unknown or unavailable.
    """
    if name == "auto":
        chosen = next(candidate for candidate in _AUTOMATIC if unavailable(candidate) is None)
        for passed_over in _AUTOMATIC[: _AUTOMATIC.index(chosen)]:
            _warn_once(f"{unavailable(passed_over)}; taking the backend {chosen!r}, which is slower")
        return chosen
    if reason := unavailable(name):
        raise BackendError(reason)
    return name


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)


def load(name: str = "auto") -> Engine:
    """Return the engine of a backend.

    Raises
    ------
    BackendError
        The backend is unknown or unavailable.
    """
    return cast("Engine", import_module(_MODULES[resolve(name)]))


def default_threads() -> int:
    """Return the number of processors that this process may use.

    By its affinity, its control group's quota, and OMP_NUM_THREADS, by which joblib shares them out among its workers.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # a list has a number for each level
    return max(1, int(min(allowed, _quota(), int(asked) if asked.isdecimal() else MAX_THREADS, MAX_THREADS)))


def _quota() -> float:
    """Return the processors that the control group grants (version 2, else 1), or infinity without a limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            quota, period = " ".join((_CGROUP / file).read_text() for file in files).split()
            if float(quota) > 0:
                return float(quota) / float(period)
    return math.inf


@cache
def processor() -> str:
    """Return the processor's model name where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
