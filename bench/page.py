"""The page of results: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from fastvae.bench.plots import plots
from fastvae.bench.tables import Section, Table, sections

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --ground: #ffffff; --line: #d9dce1; --quiet: #5c6370;
  --ours: #fdeee9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e5e8; --ground: #16181c; --line: #343840; --quiet: #9aa1ad; --ours: #3a241d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: var(--ink); background: var(--ground);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p { max-width: 46rem; margin: .4rem 0; }
.quiet, figcaption { color: var(--quiet); font-size: .85rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  margin: 1rem 0; }
.plots svg { width: 100%; height: auto; max-width: 36rem; display: block; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, .text th, .text td { text-align: left; white-space: nowrap; }
.text td:last-child { white-space: normal; }
tr.ours { background: var(--ours); }
details { margin: .8rem 0; }
summary { cursor: pointer; }
"""


def page(documents: Sequence[dict[str, Any]]) -> str:
    """Return the page of one or more results of ``fastvae bench``.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    machines = dict.fromkeys(_machine(document) for document in documents)
    dates = sorted(document["date"] for document in documents)
    body = [
        "<h1>fastvae benchmarks</h1>",
        *(f"<p class=quiet>{escape(machine)}</p>" for machine in machines),
        f"<p class=quiet>Measured {escape(' to '.join(dict.fromkeys((dates[0], dates[-1]))))}.</p>",
        "<p>Engines and peers of one plot or table ran in the same minutes, each in a process of its own, and took "
        "turns; what counts are their ratios. A ratio is to the fastest of the same precision and number of threads, "
        "ours or the peers'. The GEMM limit is the rate of the best large matrix product in the same rounds.</p>",
        *map(_section, sections(documents)),
    ]
    head = (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>fastvae benchmarks</title><style>{_STYLE}</style></head>"
    )
    return f"{head}<body>{chr(10).join(body)}</body></html>\n"


def _machine(document: dict[str, Any]) -> str:
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = (machine["processor"], f"{machine['processors']} processors", machine["isa_level"], machine["system"])
    return "; ".join((*filter(None, parts), versions))


def _section(section: Section) -> str:
    drawn = "".join(f"<figure style='margin:0'>{svg}</figure>" for svg in plots(section))
    main, *more = section.tables
    rest = "".join(map(_table, more))
    return (
        f"<section><h2>{escape(section.title)}</h2><p>{escape(section.text)}</p><div class=plots>{drawn}</div>"
        f"{_table(main)}" + (f"<details><summary>More</summary>{rest}</details>" if rest else "") + "</section>"
    )


def _table(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        ours = " class=ours" if tag == "td" and cells[0].startswith("fastvae ") else ""
        return f"<tr{ours}>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = line(table.header, "th") + "".join(line(row, "td") for row in table.rows)
    return f"<div class=wide><table{' class=text' if table.is_text else ''}>{rows}</table></div>"
