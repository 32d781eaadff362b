"""``fastvae bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from fastvae import backends
from fastvae.cli.options import PATH, note

__all__ = ["bench"]

# "-" after --json or when it has no value: stdout
_STDOUT = "-"

html_option = click.option("--html", "html_file", type=PATH, help="Write the page with tables and plots to this file.")


@click.group(invoke_without_command=True)
@click.option("--case", "cases", multiple=True, help="Case to time, may be repeated; or all. By default mnist.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    help="Take part: those whose name starts so, such as 'fastvae', 'jax' or 'torch eager bf16'; may be repeated. By "
    "default everybody; in sweeps and in the time to a bound the default backend, eager PyTorch and JAX.",
)
@click.option(
    "--threads", "threads", type=click.IntRange(1), multiple=True, help="May be repeated; by default 1 and all."
)
@click.option("--rounds", type=click.IntRange(1), help="Turns of each that count; by default 15, in sweeps 5.")
@click.option("--steps", type=click.IntRange(1), help="Steps of a turn; by default the case's.")
@click.option("--sweep", "axes", multiple=True, help="Scale the mnist case: threads, M, H, D, may be repeated; or all.")
@click.option("--time-to-elbo", "target", type=float, help="Train until the test bound on MNIST is this, such as -115.")
@click.option("--max-epochs", type=click.IntRange(1), default=20, show_default=True, help="Of --time-to-elbo.")
@click.option(
    "--json",
    "json_file",
    is_flag=False,
    flag_value=_STDOUT,
    metavar="[FILE]",
    help="Write the result as one JSON object to a file; without a file, to stdout in place of the tables.",
)
@html_option
@click.pass_context
def bench(
    context: click.Context,
    cases: tuple[str, ...],
    engines: tuple[str, ...],
    threads: tuple[int, ...],
    rounds: int | None,
    steps: int | None,
    axes: tuple[str, ...],
    target: float | None,
    max_epochs: int,
    json_file: str | None,
    html_file: Path | None,
) -> None:
    """Time training and inference beside PyTorch and JAX.

    Everybody runs in a process of its own and takes turns, beside measurements of what the machine can do. Cases are
    timed unless --sweep or --time-to-elbo asks for these alone.
    """
    if context.invoked_subcommand:
        return
    from fastvae.bench.run import run

    all_threads = backends.default_threads()
    document = run(
        cases=cases or (() if axes or target is not None else ("mnist",)),
        axes=axes,
        target=target,
        engines=engines,
        threads=threads or sorted({1, all_threads}),
        rounds=rounds,
        steps=steps,
        max_epochs=max_epochs,
        with_page=html_file is not None,
        say=note,
    )
    text = json.dumps(document, indent=1)
    if json_file and json_file != _STDOUT:
        _write(Path(json_file), text + "\n")
    if json_file == _STDOUT:
        click.echo(text)
    else:
        _print(document)
    if html_file:
        _write_page(html_file, [document])


@bench.command()
@click.argument("files", nargs=-1, required=True, type=PATH)
@html_option
def report(files: tuple[Path, ...], html_file: Path | None) -> None:
    """Show saved results again, several files as one report.

    FILES are what --json has written.
    """
    from fastvae.bench.run import read

    documents = [read(path) for path in files]
    if html_file:
        _write_page(html_file, documents)
    else:
        _print(*documents)


@bench.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def gpu(arguments: tuple[str, ...]) -> None:
    """Time the CUDA engine beside PyTorch and JAX on a GPU, see fastvae bench gpu --help."""
    from fastvae.bench.gpu import main

    main.main(list(arguments), prog_name="fastvae bench gpu", standalone_mode=False)


def _print(*documents: dict[str, Any]) -> None:
    from fastvae.bench.tables import as_text, sections

    for section in sections(documents):
        click.echo(as_text(section))


def _write_page(path: Path, documents: list[dict[str, Any]]) -> None:
    from fastvae.bench.page import page

    _write(path, page(documents))


def _write(path: Path, text: str) -> None:
    from fastvae.files import replace_file

    with replace_file(path) as stream:
        stream.write(text.encode())
    note(f"wrote {path}")
