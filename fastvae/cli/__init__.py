"""The command line: ``fastvae train | evaluate | sample | reconstruct | encode | data | info | config | ...``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit; every error is one line on stderr."""
    if sys.stderr is None:  # started without one; otherwise what is printed there would go to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        # Imported here, so that Ctrl-C during the import is answered too.
        from fastvae.cli.commands import run

        code = run(args)
    except KeyboardInterrupt:
        print("fastvae: interrupted", file=sys.stderr)
        code = 130
    for stream in (sys.stdout, sys.stderr):
        _let_go(stream)
    sys.exit(code)


def _let_go(stream: TextIO | None) -> None:
    """Flush a stream; what whoever read it no longer takes goes nowhere, or the interpreter would complain at exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
