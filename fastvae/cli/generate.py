"""``fastvae sample``, ``reconstruct`` and ``encode``."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from fastvae.cli.options import (
    checkpoint_argument,
    data_options,
    engine_options,
    json_option,
    open_model,
    rows_for,
    seed_option,
)
from fastvae.cli.rows import first_rows, image_shape, n_rows_option, out_option, report, write_npy

__all__ = ["encode", "reconstruct", "sample"]


@click.command()
@checkpoint_argument
@click.option("-n", "--n-samples", type=click.IntRange(1, 2**24), default=100, show_default=True, help="How many.")
@seed_option("Key of the draws; by default that of the training.")
@out_option(".png", ".npy", default="samples.png")
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
    shape = image_shape(model, out)
    means = model.sample(n_samples, random_state=seed)
    if shape is None:
        write_npy(out, means)
    else:
        from fastvae.report import grid, write_png

        write_png(out, grid(means, shape))
    report(out, n_samples, as_json)


@click.command()
@checkpoint_argument
@data_options
@n_rows_option
@out_option(".png", ".npy", default="reconstructions.png")
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
    shape = image_shape(model, out)
    rows = rows_for(content, source=source, data_dir=data_dir, test_fraction=test_fraction, split=split)
    chosen = first_rows(rows, n_rows, out)
    means = model.reconstruct(chosen)
    if shape is None:
        write_npy(out, means)
    else:
        from fastvae.report import comparison_grid, write_png

        write_png(out, comparison_grid([chosen.as_seen(), means], shape))
    report(out, chosen.n_rows, as_json)


@click.command()
@checkpoint_argument
@data_options
@out_option(".npy", ".csv", default="codes.npy")
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
        write_npy(out, mu)
    else:
        from fastvae.files import replace_file

        header = ",".join(f"z{j}" for j in range(mu.shape[1]))
        with replace_file(out) as stream:
            np.savetxt(stream, mu, fmt="%.9g", delimiter=",", header=header, comments="")
    report(out, len(mu), as_json)
