"""``fastvae manifold``, ``traverse`` and ``interpolate``."""

from __future__ import annotations

from pathlib import Path

import click

from fastvae.cli.options import (
    checkpoint_argument,
    data_options,
    engine_options,
    json_option,
    open_model,
    rows_for,
)
from fastvae.cli.rows import image_shape, out_option, pick_row, report, write_npy

__all__ = ["interpolate", "manifold", "traverse"]


@click.command()
@checkpoint_argument
@click.option("-n", "--side", type=click.IntRange(1, 1024), default=20, show_default=True, help="Images per side.")
@out_option(".png", ".npy", default="manifold.png")
@engine_options(None)
@json_option
def manifold(checkpoint: Path, side: int, out: Path, backend: str | None, threads: int | None, as_json: bool) -> None:
    """Write what lies all over a latent space of two dimensions.

    These are the means of p(x|z) on a grid that is even in the prior's probability (figure 4 of the paper): the first
    dimension rises to the right, the second upwards.
    """
    _, _, model = open_model(checkpoint, backend=backend, threads=threads)
    shape = image_shape(model, out)
    means = model.manifold(side)
    if shape is None:
        write_npy(out, means)
    else:
        from fastvae.report import grid, write_png

        write_png(out, grid(means, shape, columns=side))
    report(out, len(means), as_json)


@click.command()
@checkpoint_argument
@data_options
@click.option("--row", type=click.IntRange(0), help="Row of the data to start from; by default z = 0.")
@click.option(
    "--dimension",
    "dimensions",
    type=click.IntRange(0),
    multiple=True,
    help="Dimension to move along, from 0; may be given several times. By default all.",
)
@click.option("--n-steps", type=click.IntRange(2, 1024), default=11, show_default=True, help="Images per dimension.")
@click.option(
    "--span", type=float, default=3.0, show_default=True, help="From minus to plus this, in prior deviations."
)
@out_option(".png", ".npy", default="traversals.png")
@engine_options(None)
@json_option
def traverse(
    checkpoint: Path,
    source: str | None,
    data_dir: Path | None,
    test_fraction: float | None,
    split: str,
    row: int | None,
    dimensions: tuple[int, ...],
    n_steps: int,
    span: float,
    out: Path,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write what single latent dimensions change.

    Each line moves along one dimension, the others held; these are means of p(x|z). A .npy has an axis for the lines
    and one for their images.
    """
    _, content, model = open_model(checkpoint, backend=backend, threads=threads)
    shape = image_shape(model, out)
    start = None
    if row is not None:
        rows = rows_for(content, source=source, data_dir=data_dir, test_fraction=test_fraction, split=split)
        start = pick_row(rows, row)
    means = model.traverse(start, dimensions=dimensions or None, n_steps=n_steps, span=span)
    if shape is None:
        write_npy(out, means)
    else:
        from fastvae.report import grid, write_png

        write_png(out, grid(means.reshape(-1, means.shape[-1]), shape, columns=n_steps))
    report(out, len(means) * n_steps, as_json)


@click.command()
@checkpoint_argument
@data_options
@click.option(
    "--rows", "numbers", type=click.IntRange(0), nargs=2, default=(0, 1), show_default=True, help="From which to which."
)
@click.option("-n", "--n-steps", type=click.IntRange(2, 1024), default=10, show_default=True, help="Images.")
@out_option(".png", ".npy", default="interpolation.png")
@engine_options(None)
@json_option
def interpolate(
    checkpoint: Path,
    source: str | None,
    data_dir: Path | None,
    test_fraction: float | None,
    split: str,
    numbers: tuple[int, int],
    n_steps: int,
    out: Path,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the way from one row to another.

    These are means of p(x|z) on the straight line between the posterior means of z.
    """
    _, content, model = open_model(checkpoint, backend=backend, threads=threads)
    shape = image_shape(model, out)
    rows = rows_for(content, source=source, data_dir=data_dir, test_fraction=test_fraction, split=split)
    first, last = (pick_row(rows, number) for number in numbers)
    means = model.interpolate(first, last, n_steps)
    if shape is None:
        write_npy(out, means)
    else:
        from fastvae.report import grid, write_png

        write_png(out, grid(means, shape, columns=n_steps))
    report(out, len(means), as_json)
