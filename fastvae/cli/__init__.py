"""The command line: ``fastvae train | evaluate | sample | reconstruct | encode | data | info``.

Results go to stdout, everything else to stderr. Exit codes: 0 good, 1 a failed run, 2 wrong usage, 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click

from fastvae.cli.data import data
from fastvae.cli.evaluate import evaluate
from fastvae.cli.generate import encode, reconstruct, sample
from fastvae.cli.info import info
from fastvae.cli.options import note
from fastvae.cli.train import train
from fastvae.errors import FastvaeError, one_line

__all__ = ["cli", "main"]


class _Interrupted(click.ClickException):
    """Ctrl-C; click's own handling would print an empty line."""

    exit_code = 130


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, keeping what it has to say about Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted(str(error) or "interrupted") from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fastvae", message="%(prog)s %(version)s")
def cli() -> None:
    """Train variational auto-encoders by Auto-Encoding Variational Bayes, on hand-fused kernels."""


for _command in (train, evaluate, sample, reconstruct, encode, data, info):
    cli.add_command(_command)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit; every error is one line on stderr."""
    sys.exit(_run(args))


def _run(args: Sequence[str] | None) -> int:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: note(f"warning: {one_line(message)}")
            code = cli.main(args, prog_name="fastvae", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "fastvae"
        return _fail(f"{error.format_message().rstrip('.')} (see '{path} --help')", error.exit_code)
    except _Interrupted as error:
        print("fastvae:", error.format_message(), file=sys.stderr)
        return error.exit_code
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except BrokenPipeError:
        # Whoever read stdout has left; without this the interpreter complains again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get("FASTVAE_DEBUG"):
            raise
        return _fail("; ".join([_describe(error), *getattr(error, "__notes__", ())]), 1)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    print("fastvae: error:", " ".join(message.split()), file=sys.stderr)
    return code


def _describe(error: Exception) -> str:
    """Name cause and mend."""
    if type(error) is MemoryError and str(error):
        return f"out of memory: {error}"
    if isinstance(error, MemoryError):
        return f"out of memory: {error or 'an allocation failed'}; choose a smaller model, --batch-size or --n-draws"
    if isinstance(error, FastvaeError | ValueError | ImportError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename or 'output'}; choose another path or make room"
    return f"internal error, {type(error).__name__}: {error} (set FASTVAE_DEBUG=1 for the traceback)"
