"""``fastvae evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastvae.cli.options import (
    checkpoint_argument,
    data_options,
    engine_options,
    json_option,
    open_model,
    print_json,
    print_table,
    rows_for,
    seed_option,
)

if TYPE_CHECKING:
    from fastvae.evaluation import Result

__all__ = ["evaluate"]


# estimator -> the options that only some have
_OPTIONS: dict[str, tuple[str, ...]] = {
    "bound": (),
    "importance": (),
    "marginal-likelihood": ("n_leapfrog", "n_burn_in", "density", "start"),
    "ais": ("n_leapfrog", "n_temperatures"),
}


@click.command()
@checkpoint_argument
@data_options
@engine_options(None)
@click.option(
    "--estimator",
    type=click.Choice([*_OPTIONS]),
    default="bound",
    show_default=True,
    help="The bound, or log p(x) by importance sampling, by the paper's appendix D, by annealed importance sampling.",
)
@click.option(
    "--n-draws",
    "--k",
    type=click.IntRange(1, 2**20),
    help="Draws of z per row: L of the bound, by default as train does; importance samples, by default 500; samples in "
    "each half of appendix D, 50; chains of ais, 16.",
)
@click.option("--n-leapfrog", type=click.IntRange(1), help="Leapfrog steps per transition: 4 of appendix D, 10 of ais.")
@click.option("--n-burn-in", type=click.IntRange(1), help="Transitions of appendix D before its samples, 100.")
@click.option(
    "--density", type=click.Choice(["kde", "gaussian", "diagonal"]), help="What appendix D fits to its samples, kde."
)
@click.option(
    "--start",
    type=click.Choice(["encoder", "prior"]),
    help="Where appendix D's chains begin: encoder, for mcem prior, which needs no encoder.",
)
@click.option("--n-temperatures", type=click.IntRange(1, 2**20), help="Temperatures of ais, 1000.")
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
    estimator: str,
    n_draws: int | None,
    seed: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the bound, or log p(x), in nats per datapoint.

    CHECKPOINT is a file, or the folder of a run. Without further options this repeats the test bound that the training
    reported, bit for bit.
    """
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if name not in _OPTIONS[estimator]:
            others = ", ".join(other for other, names in _OPTIONS.items() if name in names)
            raise click.UsageError(f"--{name.replace('_', '-')} belongs to --estimator {others}, not {estimator}")
    path, content, model = open_model(checkpoint, backend=backend, threads=threads)
    rows = rows_for(content, source=source, data_dir=data_dir, test_fraction=test_fraction, split=split)
    from fastvae import backends
    from fastvae.evaluation import draws_for

    result: Result
    if estimator == "bound":
        result = model.evaluate(rows, n_draws=n_draws or draws_for(split), random_state=seed)
    else:
        options |= {} if n_draws is None else {"n_draws": n_draws}
        result = model.log_likelihood(rows, estimator=estimator, random_state=seed, split=split, **options)
    values = {
        **result.summary(),
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
