"""``fastvae denoise`` and ``impute``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from fastvae.cli.options import (
    PATH,
    checkpoint_argument,
    data_options,
    engine_options,
    json_option,
    open_model,
    rows_for,
    seed_option,
)
from fastvae.cli.rows import first_rows, image_shape, n_rows_option, out_option, report, write_npy
from fastvae.uses import CORRUPTIONS, corrupt, value_range

if TYPE_CHECKING:
    from fastvae.kernels import Array
    from fastvae.model import Model

__all__ = ["denoise", "impute"]

_SIDES = ("lower", "upper", "left", "right")
_HOLE = 0.5  # grey of missing pixels


@click.command()
@checkpoint_argument
@data_options
@n_rows_option
@click.option("--kind", type=click.Choice(CORRUPTIONS), default="gaussian", show_default=True, help="Of corruption.")
@click.option(
    "--amount",
    type=click.FloatRange(0),
    default=0.2,
    show_default=True,
    help="Standard deviation of gaussian noise, or share of the values that the other kinds set.",
)
@seed_option("Key of the noise; by default that of the training.")
@out_option(".png", ".npy", default="denoised.png")
@engine_options(None)
@json_option
def denoise(
    checkpoint: Path,
    source: str | None,
    data_dir: Path | None,
    test_fraction: float | None,
    split: str,
    n_rows: int | None,
    kind: str,
    amount: float,
    seed: int | None,
    out: Path,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Corrupt some rows and denoise them.

    Both are measured against the originals, in dB. Denoised rows are the means of p(x|z) at the posterior means of the
    corrupted ones; a .png shows originals, corrupted and denoised ones below each other. `fastvae reconstruct` denoises
    rows that come corrupted.
    """
    _, content, model = open_model(checkpoint, backend=backend, threads=threads)
    shape = image_shape(model, out)
    rows = rows_for(content, source=source, data_dir=data_dir, test_fraction=test_fraction, split=split)
    clean = first_rows(rows, n_rows, out).as_seen()
    key = model.seed_ if seed is None else seed
    corrupted = corrupt(clean, kind=kind, amount=amount, random_state=key, data_range=value_range(model, clean))
    denoised = model.denoise(corrupted, clean=clean)
    if shape is None:
        write_npy(out, denoised.rows)
    else:
        from fastvae.report import comparison_grid, write_png

        write_png(out, comparison_grid([clean, corrupted, denoised.rows], shape))
    report(out, len(clean), as_json, kind=kind, amount=amount, seed=key, **denoised.summary())


@click.command()
@checkpoint_argument
@data_options
@n_rows_option
@click.option("--missing", "side", type=click.Choice(_SIDES), help="Half of each image to leave out; default lower.")
@click.option(
    "--mask",
    type=PATH,
    help="In place of it a .npy of booleans, true where a value is missing: for every row, for one, or of an image.",
)
@click.option("--n-iterations", type=click.IntRange(1), default=100, show_default=True, help="Draws of z per chain.")
@click.option("--n-burn-in", type=click.IntRange(0), default=10, show_default=True, help="The first, not counted.")
@click.option("--n-chains", type=click.IntRange(1), default=1, show_default=True, help="Chains per row.")
@seed_option("Key of the draws; by default that of the training.")
@out_option(".png", ".npy", default="imputed.png")
@engine_options(None)
@json_option
def impute(
    checkpoint: Path,
    source: str | None,
    data_dir: Path | None,
    test_fraction: float | None,
    split: str,
    n_rows: int | None,
    side: str | None,
    mask: Path | None,
    n_iterations: int,
    n_burn_in: int,
    n_chains: int,
    seed: int | None,
    out: Path,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Fill in missing values of some rows.

    They become the mean of p(x|z) over chains that alternate z from q(z|x) and missing values from p(x|z). A .png shows
    the rows without their missing values above the filled-in ones, with --missing below the originals.
    """
    if side is not None and mask is not None:
        raise click.UsageError("--missing and --mask exclude each other")
    if n_burn_in >= n_iterations:
        raise click.UsageError(f"--n-burn-in {n_burn_in} leaves none of --n-iterations {n_iterations}")
    _, content, model = open_model(checkpoint, backend=backend, threads=threads)
    shape = image_shape(model, out)
    missing = _half(model, side or "lower") if mask is None else _read_mask(model, mask)
    rows = rows_for(content, source=source, data_dir=data_dir, test_fraction=test_fraction, split=split)
    chosen = first_rows(rows, n_rows, out)
    missing = missing[: chosen.n_rows] if missing.ndim == 2 else missing
    imputed = model.impute(
        chosen, missing, n_iterations=n_iterations, n_burn_in=n_burn_in, n_chains=n_chains, random_state=seed
    )
    originals = chosen.as_seen()
    if shape is None:
        write_npy(out, imputed.rows)
    else:
        from fastvae.report import comparison_grid, write_png

        versions = [np.where(missing, np.float32(_HOLE), originals), imputed.rows]
        write_png(out, comparison_grid([originals, *versions] if mask is None else versions, shape))
    error = None if mask is not None else float(np.sqrt(np.square(imputed.rows - originals)[:, missing].mean()))
    report(
        out,
        chosen.n_rows,
        as_json,
        missing=float(missing.mean()),
        n_iterations=n_iterations,
        n_burn_in=n_burn_in,
        n_chains=n_chains,
        seed=imputed.seed,
        acceptance=imputed.acceptance,
        rmse=error,
    )


def _half(model: Model, side: str) -> Array:
    """Return the mask of half an image, shape (D,)."""
    from fastvae.errors import DataError

    if model.image_shape_ is None:
        raise DataError(
            f"the model's data are no images, so they have no {side} half; name what is missing with --mask"
        )
    mask = np.zeros(model.image_shape_, bool)
    lines = mask if side in ("lower", "upper") else mask.T
    half = len(lines) // 2
    lines[slice(half, None) if side in ("lower", "right") else slice(half)] = True
    return mask.reshape(-1)


def _read_mask(model: Model, path: Path) -> Array:
    """Return the mask in a file, one of an image as that of a row."""
    from fastvae.errors import DataError, one_line

    try:
        mask: Array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a .npy file ({one_line(error)}); write it with np.save") from error
    return mask.reshape(-1) if mask.shape == model.image_shape_ else mask
