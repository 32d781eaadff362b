"""A page that sets several runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import accumulate
from pathlib import Path

import numpy as np

from fastvae.evaluation import compare
from fastvae.report.charts import Series, is_number, line_chart, number, with_error
from fastvae.report.page import assemble, write_page
from fastvae.report.sections import CURVES, unit_range
from fastvae.report.subject import Subject
from fastvae.report.tables import configuration, duration, table

__all__ = ["ranking", "write_comparison"]

_STYLES = 8
# A difference counts from this many standard errors on.
_ERRORS = 2.0


def write_comparison(path: Path, subjects: Sequence[Subject]) -> None:
    """Write the page of several runs: their figures, curves, and where their configurations differ.

    Parameters
    ----------
    path : Path
    subjects : sequence of Subject
        At least two; their titles tell them apart.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    parts = [
        ("figures", "Final figures", _figures(subjects)),
        ("curves", "Curves", _curves(subjects)),
        ("configuration", "Where they differ", _differences(subjects)),
    ]
    title = f"{len(subjects)} runs compared"
    write_page(path, assemble(title, " · ".join(s.title for s in subjects), [], parts))


def ranking(subjects: Sequence[Subject]) -> tuple[int | None, list[str], str]:
    """Judge which run is best, if the measurements can tell.

    Returns
    -------
    best : int or None
        Place of the run whose bound is above every other's by more than two standard errors of their difference, row by
        row; None where there is none such, or the bounds are of different things.
    behind : list of str
        For each run how far it is behind the highest.
    told : str
        Why it is marked, or is not.
    """
    bounds = [s.bound for s in subjects]
    nothing, unmarked = [""] * len(subjects), "No run is marked as best:"
    if any(bound is None for bound in bounds):
        return None, nothing, f"{unmarked} not every run has a bound measured on rows that are at hand."
    known = [bound for bound in bounds if bound is not None]
    if len({s.model.network_.likelihood for s in subjects}) > 1:
        return None, nothing, f"{unmarked} bounds of different likelihoods are not comparable."
    if len({(bound.rows_key, bound.n_rows) for bound in known}) > 1:
        return (
            None,
            nothing,
            f"{unmarked} the bounds are of different rows, or of rows treated differently.",
        )
    lead = int(np.argmax([bound.elbo.mean() for bound in known]))
    behind, rivals = [], []
    for i, bound in enumerate(known):
        if i == lead:
            behind.append("")
            continue
        found = compare(known[lead], bound)
        error = found.standard_error or 0.0
        behind.append(with_error(found.difference, error))
        if not found.difference > _ERRORS * error:
            rivals.append(subjects[i].title)
    how = "differences are taken row by row over the same rows, ± is their standard error"
    if rivals:
        who = f"{', '.join(rivals)} {'is' if len(rivals) == 1 else 'are'}"
        return None, behind, f"{unmarked} {who} within two standard errors of the highest; {how}."
    told = f"Marked as best since every other run is behind by more than two standard errors; {how}."
    return lead, behind, told


def _figures(subjects: Sequence[Subject]) -> str:
    best, behind, told = ranking(subjects)
    header = ["run", "bound, nats per datapoint", "behind the highest, nats", "log p(x|z), nats", "KL, nats"]
    header += ["active units", "samples/s", "training time", "epochs"]
    rows = []
    for subject, apart in zip(subjects, behind, strict=True):
        state, found = subject.model.state_, None if subject.bound is None else subject.bound.summary()
        measured = [""] * 5
        if found is not None:
            bound = with_error(found["elbo"], found["elbo_standard_error"])
            measured = [bound, apart, number(found["log_px_z"]), number(found["kl"])]
            measured.append(f"{found['active_units']:,} of {subject.model.network_.latent_dim:,}")
        speed = f"{state.samples / max(state.seconds, 1e-9):,.0f}"
        rows.append([subject.title, *measured, speed, duration(state.seconds), f"{state.epochs_closed:,}"])
    notes = [told, "Another seed can change a bound by more than these errors, which are over rows."]
    notes += [f"{s.title}: no bound measured, {s.absent}." for s in subjects if s.absent]
    return table(header, rows, best=best) + "".join(f"<p class=note>{escape(line)}</p>" for line in notes)


def _curves(subjects: Sequence[Subject]) -> str:
    charts = []
    for title, unit, train, test, digits in CURVES:
        for column, split in ((test, "test"), (train, "train")):
            shown = [(i, s) for i, s in enumerate(subjects) if _has(s, column)]
            # Train alone only where no run has test rows: one figure of each kind.
            if not shown:
                continue
            limits = unit_range(column, max(s.model.network_.latent_dim for s in subjects))
            by_epoch = [_series(i, s, column, s.model.history_["epoch"]) for i, s in shown]
            name = f"{title}, {split}"
            charts.append(line_chart(name, by_epoch, x_label="epoch", unit=unit, digits=digits, y_range=limits))
            if title == CURVES[0][0]:
                by_time = [_series(i, s, column, list(accumulate(s.model.history_["seconds"]))) for i, s in shown]
                name = f"{title}, {split}, by time"
                charts.append(line_chart(name, by_time, x_label="seconds of training", unit=unit, digits=digits))
            break
    return f"<div class=charts>{''.join(charts)}</div>" if charts else "<p class=note>No epoch is complete yet.</p>"


def _has(subject: Subject, column: str) -> bool:
    return any(map(is_number, subject.model.history_.get(column, ())))


def _series(place: int, subject: Subject, column: str, x: list[float]) -> Series:
    return Series(subject.title, x, subject.model.history_[column], f"s{place % _STYLES}")


def _differences(subjects: Sequence[Subject]) -> str:
    known = [configuration(s) for s in subjects]
    lines = []
    for group in known[0]:
        for name in dict.fromkeys(name for each in known for name in each[group]):
            values = [each[group].get(name, "") for each in known]
            if len(set(values)) > 1:
                lines.append([name, *values])
    if not lines:
        return "<p class=note>The configurations are the same.</p>"
    return table(["", *(s.title for s in subjects)], lines)
