"""``fastvae evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from fastvae.cli.options import (
    checkpoint_argument,
    data_options,
    draws,
    engine_options,
    json_option,
    open_model,
    print_json,
    print_table,
    rows_for,
    seed_option,
)

__all__ = ["evaluate"]


@click.command()
@checkpoint_argument
@data_options
@engine_options(None)
@click.option(
    "--n-draws", type=click.IntRange(1, 2**20), help="Random draws of z per row (L); by default as train does."
)
@seed_option("Key of the draws; by default that of the training.")
@json_option
def evaluate(
    checkpoint: Path,
    source: str | None,
    data_dir: Path | None,
    test_fraction: float | None,
    split: str,
    backend: str | None,
    threads: int | None,
    n_draws: int | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Measure the variational bound in nats per datapoint.

    CHECKPOINT is a file, or the folder of a run. Without further options this repeats the test bound that the training
    reported, bit for bit.
    """
    path, content, model = open_model(checkpoint, backend=backend, threads=threads)
    rows = rows_for(content, source=source, data_dir=data_dir, test_fraction=test_fraction, split=split)
    from fastvae import backends

    bound = model.evaluate(rows, n_draws=n_draws or draws(split), random_state=seed)
    values = {
        **bound.summary(),
        "data": rows.name,
        "split": split,
        "backend": backends.resolve(model.backend),
        "precision": model.precision,
        "steps": model.n_steps_,
        "checkpoint": str(path),
    }
    if as_json:
        print_json(values)
    else:
        print_table(values.items())
