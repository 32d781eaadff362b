"""Libraries that only some functions need, imported when one is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["require"]


def require(module: str, *, extra: str, for_what: str) -> Any:
    """Return a module of an optional library.

    Parameters
    ----------
    module : str
    extra : str
        Of fastvae, which installs the library.
    for_what : str
        What needs it, for the message.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ImportError(f"{for_what} needs {library}: pip install 'fastvae[{extra}]'") from error
