"""The commands, and how they end.

Results go to stdout, everything else to stderr. Exit codes: 0 good, 1 a failed run, 2 wrong usage, 130 Ctrl-C, 143
SIGTERM.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from fastvae.cli.bench import bench
from fastvae.cli.completion import completion
from fastvae.cli.config import config
from fastvae.cli.configuration import ConfigurationError, Origins, configure
from fastvae.cli.data import data
from fastvae.cli.evaluate import evaluate
from fastvae.cli.examples import add_examples
from fastvae.cli.exchange import export, import_
from fastvae.cli.generate import encode, reconstruct, sample
from fastvae.cli.info import info
from fastvae.cli.latent import interpolate, manifold, traverse
from fastvae.cli.options import note
from fastvae.cli.report import report
from fastvae.cli.reproduce import reproduce
from fastvae.cli.restore import denoise, impute
from fastvae.cli.run_options import FLAGS
from fastvae.cli.train import train
from fastvae.errors import FastvaeError, one_line

__all__ = ["cli", "run"]


class _Interrupted(click.ClickException):
    """Ctrl-C; click's own handling would print an empty line."""

    exit_code = 130


class _Terminated(_Interrupted):
    exit_code = 143


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, keeping what it has to say about Ctrl-C."""
        with _terminable() as received:
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as error:
                raise (_Terminated if received else _Interrupted)(str(error) or "interrupted") from None


@contextmanager
def _terminable() -> Iterator[list[int]]:
    """Answer SIGTERM like Ctrl-C, and list the signals that came."""
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fastvae", message="%(prog)s %(version)s")
def cli() -> None:
    """Train variational auto-encoders by Auto-Encoding Variational Bayes, on hand-fused kernels."""


for _command in (
    *(train, evaluate, sample, reconstruct, encode, denoise, impute, manifold, traverse, interpolate),
    *(report, export, import_, data, info, config, completion, bench, reproduce),
):
    cli.add_command(_command)
configure(cli)
add_examples(cli)


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error is one line on stderr."""
    if sys.stdout is None:
        return _fail("stdout is closed, where the results go; redirect it to a file or to /dev/null", 1)
    origins = Origins()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: note(f"warning: {one_line(message)}")
            code = cli.main(args, prog_name="fastvae", standalone_mode=False, obj=origins)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "fastvae"
        message, see = error.format_message().rstrip("."), f" (see '{path} --help')"
        if isinstance(error, ConfigurationError):
            return _fail(message, error.exit_code, see=see)
        return _fail(_with_flags(message), error.exit_code, origins, see)
    except _Interrupted as error:
        note(error.format_message())
        return error.exit_code
    except click.ClickException as error:
        return _fail(_with_flags(error.format_message()), error.exit_code, origins)
    except BrokenPipeError:
        return 1  # whoever read stdout has left
    except Exception as error:
        if os.environ.get("FASTVAE_DEBUG"):
            raise
        return _fail(_with_flags("; ".join([_describe(error), *getattr(error, "__notes__", ())])), 1, origins)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int, origins: Origins | None = None, see: str = "") -> int:
    """Print an error as one line, with the places out of sight that set the options it names."""
    message = one_line(message)
    note(f"error: {message}{origins.of_options_in(message) if origins else ''}{see}")
    return code


def _with_flags(message: str) -> str:
    """Name options where a message of the Python API names parameters."""
    for parameter, flag in FLAGS.items():
        # Not within a path or a longer name; a plain word such as "mean" is a parameter only where it is set or judged.
        name = rf"(?<![\w/.-]){parameter}"
        message = re.sub(rf"{name}=(?:'(\w+)'|([^\s;,]+))", rf"{flag} \1\2", message)
        message = re.sub(name + (r"(?![\w/.=([-])" if "_" in parameter else "(?= must)"), flag, message)
    return message


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
