"""``fastvae report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fastvae.cli.options import PATH, data_dir_option, engine_options, json_option, note, open_model, print_json
from fastvae.cli.rows import out_option

if TYPE_CHECKING:
    from fastvae.report.subject import Subject

__all__ = ["report"]


@click.command()
@click.argument("runs", metavar="RUN...", type=PATH, nargs=-1, required=True)
@out_option(".html", default=None)
@data_dir_option
@engine_options(None)
@json_option
def report(
    runs: tuple[Path, ...],
    out: Path | None,
    data_dir: Path | None,
    backend: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the report of a run, or compare several.

    A report is one HTML file that needs nothing else, by default RUN/report.html or comparison.html. A run that is
    going on is shown by its newest checkpoint. Where its data are absent the page has no reconstructions and says so.
    """
    from fastvae.report.comparison import write_comparison
    from fastvae.report.page import write_subject

    subjects = _subjects(runs, data_dir=data_dir, backend=backend, threads=threads)
    if len(runs) == 1:
        out = out or (runs[0] if runs[0].is_dir() else Path()) / "report.html"
        write_subject(out, subjects[0])
    else:
        out = out or Path("comparison.html")
        write_comparison(out, subjects)
    if as_json:
        print_json({"out": str(out), "runs": [str(run) for run in runs]})
    else:
        print(out)


def _subjects(
    runs: tuple[Path, ...], *, data_dir: Path | None, backend: str | None, threads: int | None
) -> list[Subject]:
    """Open the runs, the rows of each source once."""
    from fastvae.report.subject import of_run, run_rows

    loaded: dict[str, Any] = {}
    subjects = []
    for run in runs:
        _, checkpoint, model = open_model(run, backend=backend, threads=threads)
        key = str([checkpoint.metadata.get("run"), checkpoint.metadata["data"]["fingerprint"]])
        if key not in loaded:
            loaded[key] = run_rows(checkpoint.metadata, data_dir=data_dir)
        subject = of_run(run, model, checkpoint.metadata, **loaded[key])
        if subject.absent:
            note(f"{run} is shown without its data: {subject.absent}")
        subjects.append(subject)
    if len({subject.title for subject in subjects}) < len(subjects):
        for run, subject in zip(runs, subjects, strict=True):
            subject.title = str(run)
    return subjects
