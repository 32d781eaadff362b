"""The results as tables, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Section", "Table", "as_text", "sections"]


@dataclass(frozen=True)
class Table:
    """Cells as text; all columns but the first are figures unless `is_text`."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    is_text: bool = False


@dataclass(frozen=True)
class Section:
    """Part of a report: what was measured, its tables, and the result itself, of the kind "case", "sweep" or "elbo"."""

    title: str
    text: str
    kind: str
    result: dict[str, Any]
    tables: list[Table]


def sections(documents: Iterable[dict[str, Any]]) -> Iterator[Section]:
    """Yield the parts of one or more results of ``fastvae bench``: cases, then sweeps, then times to a bound."""
    documents = list(documents)
    for document in documents:
        yield from map(_case, document["cases"])
    for document in documents:
        yield from map(_sweep, document["sweeps"])
    for document in documents:
        yield from map(_elbo, document["times_to_elbo"])


def as_text(section: Section) -> str:
    """Lay a section out in columns."""
    lines = ["", section.title, section.text]
    for table in section.tables:
        cells = [table.header, *table.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        left = [table.is_text or i == 0 for i in range(len(widths))]
        lines.append("")
        for row in cells:
            padded = (c.ljust(w) if is_left else c.rjust(w) for c, w, is_left in zip(row, widths, left, strict=True))
            lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _number(value: float | None, form: str = "{:,.2f}") -> str:
    return "–" if value is None else form.format(value)


def _percent(value: float | None) -> str:
    return _number(value, "{:.0%}")


def _who(row: dict[str, Any]) -> str:
    return f"{row['engine']} {row['precision']}"


def _case(case: dict[str, Any]) -> Section:
    tables = [_times(case), _costs(case)]
    tables += [_phases(row) for row in case["results"] if row["phases"]]
    if case["limits"]:
        tables.append(_limits(case["limits"]))
    tables += _skipped(case["skipped"])
    moved = f", at least {case['megabytes_per_step']:.3g} MB moved" if case["megabytes_per_step"] else ""
    text = (
        f"{case['text']}. Data: {case['data']}. {case['gflop_per_step']:.3g} GFLOP of dense products per step{moved}. "
        f"{case['rounds']} rounds in which everybody takes turns of {case['steps']} steps; medians, and p20 and p80."
    )
    return Section(f"Case {case['case']}", text, "case", case, tables)


def _by_speed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (-row["threads"], row["ms_per_step"]["p50"]))


def _times(case: dict[str, Any]) -> Table:
    header = ("engine", "threads", "ms per step", "p20", "p80", "samples/s", "GFLOP/s", "of GEMM limit")
    rows = [
        (
            _who(row),
            str(row["threads"]),
            _number(row["ms_per_step"]["p50"], "{:,.3f}"),
            _number(row["ms_per_step"]["p20"], "{:,.3f}"),
            _number(row["ms_per_step"]["p80"], "{:,.3f}"),
            _number(row["samples_per_second"], "{:,.0f}"),
            _number(row["gflops"], "{:,.1f}"),
            _percent(row["share_of_gemm_limit"]),
            _number(row["time_over_ours"]),
            _number(row["time_over_fastest_peer"]),
        )
        for row in _by_speed(case["results"])
    ]
    return Table((*header, "time / ours", "time / best peer"), rows)


def _costs(case: dict[str, Any]) -> Table:
    rows = [
        (
            _who(row),
            str(row["threads"]),
            _number(row["peak_megabytes"], "{:,.0f}"),
            _number(row["import_seconds"]),
            _number(row["first_step_seconds"]),
        )
        for row in _by_speed(case["results"])
    ]
    return Table(("engine", "threads", "peak MB above NumPy", "s to import", "s to first step"), rows)


def _phases(row: dict[str, Any]) -> Table:
    header = (f"phase of {_who(row)}, threads: {row['threads']}", "ms per step", "GFLOP", "GFLOP/s", "of GEMM limit")
    rows = [
        (
            phase["phase"],
            _number(phase["ms_per_step"], "{:.3f}"),
            _number(phase["gflop"], "{:.4f}"),
            _number(phase["gflops"], "{:,.0f}"),
            _percent(phase["share_of_gemm_limit"]),
        )
        for phase in row["phases"]
    ]
    return Table(header, rows)


def _limits(limits: list[dict[str, Any]]) -> Table:
    rows = [
        (
            limit["limit"],
            str(limit["threads"]),
            _number(limit["median"], "{:,.0f}"),
            _number(limit["max"], "{:,.0f}"),
            limit["unit"],
        )
        for limit in limits
    ]
    return Table(("limit of the machine", "threads", "median", "max", "unit"), rows)


def _skipped(skipped: list[dict[str, Any]]) -> list[Table]:
    rows = [
        (_who(skip), ", ".join(str(skip[key]) for key in ("threads", "value") if key in skip), skip["reason"])
        for skip in skipped
    ]
    return [Table(("skipped", "threads", "why"), rows, is_text=True)] if rows else []


def _sweep(sweep: dict[str, Any]) -> Section:
    values = sorted({point["value"] for point in sweep["points"]})
    times = {(_who(point), point["value"]): point["ms_per_step"]["p50"] for point in sweep["points"]}
    engines = dict.fromkeys(_who(point) for point in sweep["points"])
    rows = [(who, *(_number(times.get((who, value)), "{:,.3f}") for value in values)) for who in engines]
    threads = "" if sweep["axis"] == "threads" else f", threads: {sweep['threads']}"
    header = (f"ms per step at {sweep['axis']} =", *map(str, values))
    text = f"Case {sweep['case']} with other numbers of {sweep['text']}{threads}."
    tables = [Table(header, rows), *_skipped(sweep["skipped"])]
    return Section(f"Scaling with {sweep['axis']}", text, "sweep", sweep, tables)


def _elbo(race: dict[str, Any]) -> Section:
    key = "seconds_at_median_pace"
    ours = min((row[key] for row in race["results"] if row["is_ours"] and row[key]), default=None)
    rows = [
        (
            _who(row),
            _number(row["seconds"]),
            _number(row[key]),
            _number(row["steps"], "{:,.0f}"),
            _number(row[key] / ours if row[key] and ours else None),
            _number(max(point["elbo"] for point in row["curve"])),
        )
        for row in sorted(race["results"], key=lambda row: row[key] or float("inf"))
    ]
    text = (
        f"{race['text']}. Seconds of training steps alone until the test bound is {race['target']:g} nats, by "
        f"interpolation between evaluations {race['steps_between_evaluations']} steps apart. Training data: "
        f"{race['data']}; test data: {race['test_data']}; threads: {race['threads']}."
    )
    header = ("engine", "seconds", "at median pace", "steps", "time / ours", "highest bound")
    return Section(
        f"Time to a bound of {race['target']:g}", text, "elbo", race, [Table(header, rows), *_skipped(race["skipped"])]
    )
