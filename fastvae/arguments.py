"""Checks of arguments: each returns a plain Python value, or raises one clear ValueError."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = ["check_image_shape", "choice", "integer", "non_negative", "positive", "real"]


def integer(name: str, value: Any, *, low: int, high: int = 2**31 - 1) -> int:
    """Return an integer from `low` to `high`; NumPy's are accepted, booleans are not."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")
    return int(value)


def real(name: str, value: Any) -> float:
    """Return a number as a float, infinities and NaN included; NumPy's are accepted, booleans are not."""
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    raise ValueError(f"{name} must be a number, got {value!r}")


def positive(name: str, value: Any) -> float:
    """Return a positive finite number as a float."""
    number = real(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive finite number, got {value!r}")
    return number


def non_negative(name: str, value: Any) -> float:
    """Return a finite number that is not negative as a float."""
    number = real(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number that is not negative, got {value!r}")
    return number


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """Return one of the names `known`."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def check_image_shape(value: Any, n_columns: int) -> tuple[int, int]:
    """Return the (height, width) of rows that are images."""
    try:
        height, width = (operator.index(length) for length in value)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or height * width != n_columns:
        raise ValueError(f"image_shape {value} does not fit rows of {n_columns} columns: it is (height, width)")
    return height, width
