"""``fastvae sample``, ``reconstruct`` and ``encode``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np

from fastvae.cli.options import (
    checkpoint_argument,
    data_options,
    engine_options,
    json_option,
    open_model,
    print_json,
    rows_for,
    seed_option,
)

if TYPE_CHECKING:
    from fastvae.kernels import Array
    from fastvae.model import Model

F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["as_seen", "encode", "reconstruct", "sample"]


def _out_option(*suffixes: str, default: str) -> Callable[[F], F]:
    def check(_: click.Context, __: click.Parameter, path: Path) -> Path:
        if path.suffix.lower() not in suffixes:
            raise click.BadParameter(f"{path} must end in {' or '.join(suffixes)}")
        if not path.parent.is_dir():
            raise click.BadParameter(f"the folder of {path} does not exist; make it or choose another")
        return path

    text = f"File to write, {' or '.join(suffixes)}."
    return click.option(
        "--out", type=click.Path(path_type=Path), default=default, show_default=True, callback=check, help=text
    )


@click.command()
@checkpoint_argument
@click.option("-n", "--n-samples", type=click.IntRange(1, 2**24), default=100, show_default=True, help="How many.")
@seed_option("Key of the draws; by default that of the training.")
@_out_option(".png", ".npy", default="samples.png")
@engine_options(None)
@json_option
def sample(
    checkpoint: Path,
    n_samples: int,
    seed: int | None,
    out: Path,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write new rows: means of p(x|z) for z from the prior."""
    _, _, model = open_model(checkpoint, backend=backend, threads=threads)
    shape = _image_shape(model, out)
    means = model.sample(n_samples, random_state=seed)
    if shape is None:
        _write_npy(out, means)
    else:
        from fastvae.report import grid, write_png

        write_png(out, grid(means, shape))
    _report(out, n_samples, as_json)


@click.command()
@checkpoint_argument
@data_options
@click.option("-n", "--n-rows", type=click.IntRange(1), help="First rows only; by default 50 for .png, all for .npy.")
@_out_option(".png", ".npy", default="reconstructions.png")
@engine_options(None)
@json_option
def reconstruct(
    checkpoint: Path,
    source: str | None,
    data_dir: Path | None,
    test_fraction: float | None,
    split: str,
    n_rows: int | None,
    out: Path,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write what the model makes of some rows.

    These are the means of p(x|z) at the posterior means of z; a .png shows them below the originals.
    """
    _, content, model = open_model(checkpoint, backend=backend, threads=threads)
    shape = _image_shape(model, out)
    rows = rows_for(content, source=source, data_dir=data_dir, test_fraction=test_fraction, split=split)
    chosen = rows.select(slice(min(n_rows or (rows.n_rows if shape is None else 50), rows.n_rows)))
    means = model.reconstruct(chosen)
    if shape is None:
        _write_npy(out, means)
    else:
        from fastvae.report import reconstruction_grid, write_png

        write_png(out, reconstruction_grid(as_seen(chosen), means, shape))
    _report(out, chosen.n_rows, as_json)


@click.command()
@checkpoint_argument
@data_options
@_out_option(".npy", ".csv", default="codes.npy")
@engine_options(None)
@json_option
def encode(
    checkpoint: Path,
    source: str | None,
    data_dir: Path | None,
    test_fraction: float | None,
    split: str,
    out: Path,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the codes of some rows: their posterior means mu.

    Each row of the data gives one line or array row.
    """
    _, content, model = open_model(checkpoint, backend=backend, threads=threads)
    rows = rows_for(content, source=source, data_dir=data_dir, test_fraction=test_fraction, split=split)
    mu = model.transform(rows)
    if out.suffix.lower() == ".npy":
        _write_npy(out, mu)
    else:
        from fastvae.files import replace_file

        header = ",".join(f"z{j}" for j in range(mu.shape[1]))
        with replace_file(out) as stream:
            np.savetxt(stream, mu, fmt="%.9g", delimiter=",", header=header, comments="")
    _report(out, len(mu), as_json)


def _image_shape(model: Model, out: Path) -> tuple[int, int] | None:
    """Return the shape of the model's images for a .png; None for any other file."""
    from fastvae.errors import DataError

    if out.suffix.lower() != ".png":
        return None
    if model.image_shape_ is None:
        raise DataError(f"the model's data are no images, so {out} cannot show them; write a .npy with --out")
    return model.image_shape_


def as_seen(rows: Any) -> Array:
    """Return a few rows of a dataset as the model sees them."""
    stored = rows.rows.toarray() if rows.is_sparse else rows.rows
    return np.asarray(stored, np.float32) * np.float32(rows.scale)


def _write_npy(out: Path, values: Array) -> None:
    from fastvae.files import replace_file

    with replace_file(out) as stream:
        np.save(stream, values, allow_pickle=False)


def _report(out: Path, n_rows: int, as_json: bool) -> None:
    if as_json:
        print_json({"out": str(out), "n_rows": n_rows})
    else:
        print(out)
