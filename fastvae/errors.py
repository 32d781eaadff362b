"""Exceptions of fastvae: each message names the cause and the mend, in one line."""

__all__ = [
    "BackendError",
    "CheckpointError",
    "DataError",
    "DataTypeError",
    "DivergenceError",
    "FastvaeError",
    "LayoutError",
    "NewerFormatError",
    "one_line",
]


class FastvaeError(Exception):
    """Base of every error that fastvae raises on purpose."""


class DataError(FastvaeError, ValueError):
    """The data cannot be read or does not fit the model."""


class DataTypeError(DataError, TypeError):
    """The data are of a type that is no real number."""


class CheckpointError(FastvaeError, ValueError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class NewerFormatError(CheckpointError):
    """A checkpoint is whole, but of a format that only a newer fastvae reads."""


class LayoutError(FastvaeError, ValueError):
    """Named weights are of no known layout, do not fit together, or have no place in the layout asked for."""


class BackendError(FastvaeError, RuntimeError):
    """A backend, precision or instruction set that this machine or build does not have."""


class DivergenceError(FastvaeError, ArithmeticError):
    """The training objective stopped being finite."""


def one_line(cause: object) -> str:
    """Return the text of an exception (or other object) in one line, or its type's name when it has none."""
    return " ".join(str(cause).split()) or type(cause).__name__
