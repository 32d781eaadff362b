"""What the commands that write rows or pictures of them share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np

from fastvae.cli.options import print_json, print_table

if TYPE_CHECKING:
    from fastvae.data import Dataset
    from fastvae.kernels import Array
    from fastvae.model import Model

__all__ = ["first_rows", "image_shape", "n_rows_option", "out_option", "pick_row", "report", "write_npy"]

F = TypeVar("F", bound=Callable[..., Any])

n_rows_option = click.option(
    "-n", "--n-rows", type=click.IntRange(1), help="First rows only; by default 50 for .png, all for .npy."
)


def out_option(*suffixes: str, default: str | None) -> Callable[[F], F]:
    """Return the option --out for a file with one of the endings."""

    def check(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
        if path is None:
            return None
        if path.suffix.lower() not in suffixes:
            raise click.BadParameter(f"{path} must end in {' or '.join(suffixes)}")
        if not path.parent.is_dir():
            raise click.BadParameter(f"the folder of {path} does not exist; make it or choose another")
        return path

    text = f"File to write, {' or '.join(suffixes)}."
    return click.option(
        "--out", type=click.Path(path_type=Path), default=default, show_default=True, callback=check, help=text
    )


def image_shape(model: Model, out: Path) -> tuple[int, int] | None:
    """Return the shape of the model's images for a .png; None for any other file.

    Raises
    ------
    DataError
        The model's data are no images.
    """
    from fastvae.errors import DataError

    if out.suffix.lower() != ".png":
        return None
    if model.image_shape_ is None:
        raise DataError(f"the model's data are no images, so {out} cannot show them; write a .npy with --out")
    return model.image_shape_


def first_rows(rows: Dataset, n_rows: int | None, out: Path) -> Dataset:
    """Return as many rows as --n-rows says."""
    wanted = n_rows or (50 if out.suffix.lower() == ".png" else rows.n_rows)
    return rows.select(slice(min(wanted, rows.n_rows)))


def pick_row(rows: Dataset, number: int) -> Dataset:
    """Return one row.

    Raises
    ------
    DataError
        There is no such row.
    """
    from fastvae.errors import DataError

    if number >= rows.n_rows:
        raise DataError(f"{rows.name} has no row {number}; take one from 0 to {rows.n_rows - 1}")
    return rows.select(slice(number, number + 1))


def write_npy(out: Path, values: Array) -> None:
    """Write an array."""
    from fastvae.files import replace_file

    with replace_file(out) as stream:
        np.save(stream, values, allow_pickle=False)


def report(out: Path, n_rows: int, as_json: bool, **figures: Any) -> None:
    """Say what was written, and what was measured of it."""
    if as_json:
        print_json({"out": str(out), "n_rows": n_rows, **figures})
    elif figures:
        print_table([*figures.items(), ("out", str(out))])
    else:
        print(out)
