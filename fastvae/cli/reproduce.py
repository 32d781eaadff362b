"""``fastvae reproduce``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fastvae import backends
from fastvae.cli.options import PATH, data_dir_option, engine_options, init, json_option, note, print_json, seed_option

__all__ = ["reproduce"]

F = TypeVar("F", bound=Callable[..., Any])

QUICK_SAMPLES = 200_000


@click.group()
def reproduce() -> None:
    """Run the paper's experiments again, over its own curves.

    Every figure goes on from where an earlier command with the same --out was stopped.
    """


def _machine_options(function: F) -> F:
    for option in (
        json_option,
        click.option("--precision", default="fp32", show_default=True, help="One that the backend has, see info."),
        engine_options("auto"),
        seed_option("Key of all randomness.", default=0),
        data_dir_option,
    ):
        function = option(function)
    return function


def _run_options(function: F) -> F:
    for option in (
        _machine_options,
        click.option("--out", type=PATH, default=Path("runs/paper"), show_default=True, help="Folder of the results."),
        click.option("--draw-only", is_flag=True, help="Train nothing; draw and score what --out has so far."),
        click.option("--quick", is_flag=True, help=f"Train on {QUICK_SAMPLES:,} samples only, to see that it works."),
        click.option("--jobs", type=click.IntRange(1), help="Experiments side by side  [default: one per processor]"),
        click.option(
            "--samples", type=click.FloatRange(1e5, 1e9), help="Training samples  [default: 1e7, baselines 1e6]"
        ),
        click.option("--init", callback=init, help="Initial weights, fan_in or a standard deviation, for the rule's."),
        click.option("--step-size", type=click.FloatRange(0, min_open=True), help="Adagrad's, for the rule's choice."),
        click.option("--n-train", type=int, multiple=True, help="Training rows; may be repeated; by default all."),
        click.option(
            "--algorithm", multiple=True, help="aevb, wake-sleep, mcem or autoencoder; may be repeated; by default all."
        ),
        click.option("--latent-dim", type=int, multiple=True, help="May be repeated; by default all of the figure."),
        click.option("--dataset", multiple=True, help="mnist or freyface; may be repeated; by default all."),
    ):
        function = option(function)
    return function


def _run(figure: str, options: dict[str, Any]) -> list[Any]:
    """Run the experiments of a figure that the options choose, and return them."""
    from fastvae.optional import require
    from fastvae.reproduce.paper import experiments
    from fastvae.reproduce.together import run_all

    require("matplotlib", extra="plot", for_what="a figure").use("agg")
    jobs = options["jobs"] or backends.default_threads()
    try:
        chosen = experiments(
            figure,
            datasets=options["dataset"],
            latent_dims=options["latent_dim"],
            algorithms=options["algorithm"],
            n_train=options["n_train"],
            n_samples=QUICK_SAMPLES if options["quick"] else options["samples"] and int(options["samples"]),
            step_size=options["step_size"],
            init=options["init"],
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if options["draw_only"]:
        from fastvae.reproduce.run import read_curves

        begun = [e for e in chosen if read_curves(options["out"] / "runs" / e.name)["test"]]
        if not begun:
            raise click.UsageError(f"{options['out']} has no point of {figure} yet; leave --draw-only out")
        return begun
    machine = _machine(options, share=min(jobs, len(chosen)))
    run_all(chosen, options["out"] / "runs", machine, jobs=jobs, say=note)
    return chosen


def _machine(options: dict[str, Any], *, share: int = 1) -> Any:
    """Return where to run; by default an experiment has all processors, or its share of them."""
    from fastvae.reproduce.run import Machine

    return Machine(
        backend=options["backend"],
        precision=options["precision"],
        threads=options["threads"] or max(1, backends.default_threads() // share),
        seed=options["seed"],
        data_dir=None if options["data_dir"] is None else str(options["data_dir"].expanduser().resolve()),
    )


def _write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    from fastvae.files import replace_file

    with replace_file(path) as stream:
        stream.write((json.dumps(rows, indent=1) + "\n").encode())


def _curves(figure: str, options: dict[str, Any]) -> None:
    chosen = _run(figure, options)
    from fastvae.reproduce.results import write

    values = write(figure, chosen, options["out"])
    if options["as_json"]:
        print_json(values)
        return
    columns = ("dataset", "n_train", "algorithm", "latent_dim", "split", "samples", "ours", "paper", "difference")
    print("{:<9} {:>7} {:<10} {:>3} {:<5} {:>11} {:>9} {:>9} {:>7}".format(*(c[:10] for c in columns)))
    for row in values["scores"]:
        cells = [f"{v:.2f}" if isinstance(v, float) else "" if v is None else v for v in map(row.get, columns)]
        print("{:<9} {:>7} {:<10} {:>3} {:<5} {:>11,} {:>9} {:>9} {:>7}".format(*cells))
    print(options["out"] / f"{figure}.png")


def _pictures(paths: list[Path], as_json: bool) -> None:
    if as_json:
        print_json({"out": [str(path) for path in paths]})
    else:
        print("\n".join(map(str, paths)))


@reproduce.command()
@_run_options
def fig2(**options: Any) -> None:
    """Bounds against training samples, AEVB and wake-sleep."""
    _curves("fig2", options)


@reproduce.command()
@_run_options
def fig3(**options: Any) -> None:
    """Marginal likelihoods against training samples, Monte Carlo EM beside the two."""
    _curves("fig3", options)


@reproduce.command()
@_run_options
def fig4(**options: Any) -> None:
    """Manifolds of models with two latents."""
    chosen = _run("fig4", options)
    from fastvae.reproduce.pictures import write_manifolds

    _pictures(write_manifolds(chosen, options["out"]), options["as_json"])


@reproduce.command()
@_run_options
def fig5(**options: Any) -> None:
    """Samples from models with 2, 5, 10 and 20 latents."""
    chosen = _run("fig5", options)
    from fastvae.reproduce.pictures import write_samples

    _pictures(write_samples(chosen, options["out"]), options["as_json"])


@reproduce.command()
@_run_options
def baselines(**options: Any) -> None:
    """Reconstruction errors at equal code size, beside an autoencoder and PCA."""
    chosen = _run("baselines", options)
    from fastvae.reproduce.baselines import baselines

    rows = [
        {"dataset": dataset, **row}
        for dataset in dict.fromkeys(e.dataset for e in chosen)
        for row in baselines([e for e in chosen if e.dataset == dataset], options["out"] / "runs", _machine(options))
    ]
    _write_json(options["out"] / "baselines.json", rows)
    if options["as_json"]:
        print_json({"baselines": rows})
        return
    for row in rows:
        errors = "  ".join(f"{name} {row[name]:.5f}" for name in ("pca", "autoencoder", "aevb") if row.get(name))
        print(f"{row['dataset']:<9} J = {row['latent_dim']:<3} mean squared error per pixel: {errors}")


@reproduce.command()
@click.option("--out", type=PATH, default=Path("runs/paper"), show_default=True, help="Folder of the results.")
@click.option("--quick", is_flag=True, help="Train for one epoch only, to see that it works.")
@_machine_options
def variance(quick: bool, out: Path, as_json: bool, **options: Any) -> None:
    """Variance of the gradient by SGVB-A, SGVB-B and the score function."""
    from fastvae.files import make_folder
    from fastvae.optional import require
    from fastvae.reproduce.variance import EPOCHS, plot, variances

    require("matplotlib", extra="plot", for_what="a figure").use("agg")
    rows = variances(_machine(options), epochs=EPOCHS[:2] if quick else EPOCHS, say=note)
    make_folder(out)
    _write_json(out / "variance.json", rows)
    plot(rows, out / "variance")
    if as_json:
        print_json({"variances": rows})
        return
    for row in rows:
        print(
            f"{row['samples']:>11,} samples  {row['estimator']:<14} variance {row['variance']:.3g}, "
            f"{row['ratio']:.3g} times SGVB-B's; squared length of the gradient {row['signal']:.3g}"
        )
    print(out / "variance.png")


@reproduce.command()
@_machine_options
def speed(as_json: bool, **options: Any) -> None:
    """Training samples per second beside the paper's 417 to 833."""
    from fastvae.reproduce.speed import speeds

    rows = speeds(_machine(options))
    if as_json:
        print_json({"speeds": rows})
        return
    for row in rows:
        print(
            f"{row['dataset']:<9} J = {row['latent_dim']:<3} {row['samples_per_second']:>9,.0f} samples/s  "
            f"{row['minutes_per_million']:.2f} minutes per million (the paper: 20 to 40)  "
            f"{row['times_the_paper']:,.0f} times the paper's fastest"
        )
