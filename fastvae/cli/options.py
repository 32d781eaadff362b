"""Options, output and model loading that several commands share."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from fastvae import backends
from fastvae.callbacks import say
from fastvae.network import MAX_WIDTH, check_init

if TYPE_CHECKING:
    from fastvae.checkpoint import Checkpoint
    from fastvae.data import Dataset
    from fastvae.errors import CheckpointError
    from fastvae.model import Model

__all__ = [
    "PATH",
    "absolute",
    "checkpoint_argument",
    "complete_data",
    "complete_dataset",
    "data_dir_option",
    "data_options",
    "engine_options",
    "init",
    "json_option",
    "note",
    "open_model",
    "print_json",
    "print_table",
    "report_damaged",
    "rows_for",
    "seed_option",
    "test_fraction_option",
    "widths",
]

F = TypeVar("F", bound=Callable[..., Any])

# Of the floats in tables; all others are in nats.
_FORMATS = {
    "samples_per_second": "{:,.0f}",
    "seconds": "{:,.1f} s",
    "effective_sample_size": "{:,.1f}",
    "acceptance": "{:.1%}",
    "acceptance_train": "{:.1%}",
    "amount": "{:g}",
    "psnr_corrupted": "{:.2f} dB",
    "psnr_denoised": "{:.2f} dB",
    "data_range": "{:g}",
    "missing": "{:.1%}",
    "rmse": "{:.4f}",
}


class _NonEmptyPath(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse the empty path, which would mean the working directory."""
        if value == "":
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


PATH = _NonEmptyPath(path_type=Path)

checkpoint_argument = click.argument("checkpoint", type=PATH)
test_fraction_option = click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of a file's rows to test on; by default 0.1, or the file's own split. Of a .npy file, which stays on "
    "disk, these are the last rows, of any other a random choice.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
data_dir_option = click.option("--data-dir", type=PATH, help="Folder of the named datasets' files, used as it is.")


def seed_option(text: str, default: int | None = None) -> Callable[[F], F]:
    """Return the option --seed."""
    return click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=default, show_default=True, help=text)


def engine_options(backend: str | None) -> Callable[[F], F]:
    """Return the options --backend and --threads; a default backend of None is that of the training."""
    names, text = ("auto", *backends.NAMES), "Engine." if backend else "Engine; by default that of the training."

    def add(function: F) -> F:
        for option in (
            click.option(
                "--threads",
                type=click.IntRange(1, backends.MAX_THREADS),
                help="Threads; by default all processors at hand.",
            ),
            click.option("--backend", type=click.Choice(names), default=backend, show_default=True, help=text),
        ):
            function = option(function)
        return function

    return add


def data_options(function: F) -> F:
    """Add --data, --data-dir, --test-fraction and --split to a command that uses a checkpoint."""
    for option in (
        click.option(
            "--split", type=click.Choice(["train", "test"]), default="test", show_default=True, help="Which rows."
        ),
        test_fraction_option,
        data_dir_option,
        click.option(
            "--data",
            "source",
            help="Dataset or file; by default that of the training.",
            shell_complete=complete_data,
        ),
    ):
        function = option(function)
    return function


def complete_dataset(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the named datasets that begin so."""
    from fastvae.data.registry import REGISTRY

    return [CompletionItem(name) for name in REGISTRY if name.startswith(incomplete)]


def complete_data(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the named datasets that begin so, or else let the shell name files."""
    return complete_dataset(context, parameter, incomplete) or [CompletionItem(incomplete, type="file")]


def note(message: str) -> None:
    """Print a line on stderr."""
    say(f"fastvae: {message}")


def absolute(source: str) -> str:
    """Return the absolute path of a file, by which any working directory finds it; the name of a dataset stays."""
    from fastvae.data.registry import REGISTRY

    path = os.path.abspath(os.path.expanduser(source))
    return path if source not in REGISTRY and os.path.isfile(path) else source


def print_json(values: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    print(json.dumps({name: None if _is_not_finite(value) else value for name, value in values.items()}))


def _is_not_finite(value: Any) -> bool:
    # JSON has no NaN
    return isinstance(value, float) and not math.isfinite(value)


def print_table(values: Iterable[tuple[str, Any]]) -> None:
    """Print names and values in two columns on stdout, floats with their unit; values that are None are left out.

    Lists are of floats too.
    """
    shown = [(name, value) for name, value in values if value is not None]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        form = _FORMATS.get(name, "{:,.3f} nats")
        if isinstance(value, list):
            value = " ".join(form.format(item).removesuffix(" nats") for item in value) + " nats"
        text = form.format(value) if isinstance(value, float) else value
        print(f"{name:<{width}}  {text}")


def report_damaged(path: Path, error: CheckpointError) -> None:
    """Name a damaged checkpoint on stderr."""
    note(f"skipping a damaged checkpoint: {' '.join(str(error).split())}")


def open_model(path: Path, *, backend: str | None = None, threads: int | None = None) -> tuple[Path, Checkpoint, Model]:
    """Read a checkpoint: a file, or the newest of a folder of checkpoints or of a run.

    Parameters
    ----------
    path : Path
    backend : str, optional
        By default the one that the model was given for training.
    threads : int, optional

    Returns
    -------
    path, checkpoint, model
        The file read, its content, and the model in it.

    Raises
    ------
    CheckpointError
        There is none that is whole and holds a VAE.
    """
    from fastvae.model import Model
    from fastvae.model_file import read_model

    path, checkpoint, model = read_model(path, report_damaged, Model)
    model.n_threads = threads
    if backend is not None:
        model.backend = backend
    return path, checkpoint, model


def rows_for(
    checkpoint: Checkpoint,
    *,
    source: str | None,
    data_dir: Path | None,
    test_fraction: float | None,
    split: str,
) -> Dataset:
    """Return the rows that a command is asked to use, by default the test set of the training.

    Raises
    ------
    DataError
        The data cannot be read, or have no test set.
    """
    from fastvae.data import load
    from fastvae.errors import DataError

    run = checkpoint.metadata.get("run") or {}
    if source is None and not run:
        raise DataError("the checkpoint does not say what data it was trained on; name some with --data")
    source = run["data"] if source is None else absolute(source)
    if source == run.get("data"):
        test_fraction = run["test_fraction"] if test_fraction is None else test_fraction
        data_dir = run["data_dir"] if data_dir is None else data_dir
    halves = load(source, data_dir=data_dir, test_fraction=test_fraction)
    chosen = halves.train if split == "train" else halves.test
    if chosen is None:
        raise DataError(f"{source} was loaded without a test set; use --split train or a --test-fraction above 0")
    return chosen


def init(_: click.Context, __: click.Parameter, value: str | None) -> str | float | None:
    """Turn ``--init fan_in`` or ``--init 0.1`` into what `fastvae.network.initialise` takes."""
    if value is None:
        return None
    try:
        return check_init(value if value == "fan_in" else float(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither fan_in nor a positive standard deviation") from None


def widths(_: click.Context, parameter: click.Parameter, values: Sequence[str]) -> tuple[int, ...] | None:
    """Turn ``--hidden 500 --hidden 300``, ``--hidden 500,300`` or ``--hidden none`` into a tuple."""
    if not values:
        return None
    if list(values) == ["none"]:
        return ()
    parts = [part.strip() for value in values for part in value.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= MAX_WIDTH for part in parts):
        raise click.BadParameter(
            f"{','.join(parts)!r} is not a list of widths such as 500 or 500,300, each from 1 to {MAX_WIDTH}, "
            "nor none by itself"
        )
    return tuple(int(part) for part in parts)
