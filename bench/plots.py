"""The plots of the page, as SVG whose ink is the text colour of the page around it; needs matplotlib."""

from __future__ import annotations

import io
from typing import Any

from fastvae.bench.tables import Section

__all__ = ["plots"]

# Stands for the page's text colour until the SVG is written, and becomes currentColor.
_INK = "#010203"
_OURS, _PEERS = "#e4572e", {"torch": "#4c8bf5", "jax": "#2aa198"}
_MARKERS = "osD^vP*X"
# Narrow, so that the text stays readable where the page is as narrow as a phone.
_WIDTH = 4.4


def plots(section: Section) -> list[str]:
    """Return a section's plots as SVG elements."""
    if not (section.result["points"] if section.kind == "sweep" else section.result["results"]):
        return []
    if section.kind == "case":
        return [_bars(section.result, "ms_per_step"), _bars(section.result, "share_of_gemm_limit")]
    return [_sweep(section.result) if section.kind == "sweep" else _elbo(section.result)]


def _figure(height: float, title: str) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    ink = {key: _INK for key in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")}
    style = {
        **ink,
        "font.size": 8,
        "font.family": "sans-serif",
        "svg.fonttype": "none",
        "svg.hashsalt": "fastvae",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    plt.rcParams.update(style)
    figure, axes = plt.subplots(figsize=(_WIDTH, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib.pyplot as plt

    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def _colour(row: dict[str, Any]) -> str:
    return _OURS if row["is_ours"] else _PEERS.get(row["engine"].partition(" ")[0], "#888888")


def _bars(case: dict[str, Any], quantity: str) -> str:
    """One line of bars for each engine, the most threads above, fewer below and paler."""
    is_time = quantity == "ms_per_step"
    counts = sorted({row["threads"] for row in case["results"]}, reverse=True)
    found = {(row["engine"], row["precision"], row["threads"]): row for row in case["results"]}
    rows = sorted(case["results"], key=lambda row: (-row["threads"], row["ms_per_step"]["p50"]))
    engines = list(dict.fromkeys((row["engine"], row["precision"]) for row in rows))
    what = "ms per step, median and p20 to p80" if is_time else "dense GFLOP/s, % of the measured GEMM limit"
    figure, axes = _figure(0.8 + 0.17 * len(engines) * (len(counts) + 0.5), f"{case['case']}: {what}")
    thick = 0.8 / len(counts)
    longest = max((row[quantity]["p50"] if is_time else 100 * (row[quantity] or 0)) for row in rows)
    for i, threads in enumerate(counts):
        for y, engine in enumerate(engines):
            row = found.get((*engine, threads))
            if row is None or row[quantity] is None:
                continue
            value = row[quantity]["p50"] if is_time else 100 * row[quantity]
            place = y + (i - (len(counts) - 1) / 2) * thick
            axes.barh(place, value, thick * 0.9, color=_colour(row), alpha=0.9 if i == 0 else 0.45)
            end = value
            if is_time:  # a longer spread is cut off, or it would dwarf the bars
                end = min(row[quantity]["p80"], 1.1 * longest)
                axes.plot([row[quantity]["p20"], end], [place, place], color=_INK, linewidth=0.8)
            text = f"{value:,.3g}" if is_time else f"{value:.0f} %"
            axes.annotate(text, (end, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(engines)), [" ".join(engine) for engine in engines])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.25 * longest or 1)
    if not is_time:
        axes.axvline(100, color=_INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("threads: " + ", ".join(f"{n}{' (pale)' if i else ''}" for i, n in enumerate(counts)))
    return _svg(figure)


def _lines(axes: Any, curves: dict[tuple[str, str], tuple[dict[str, Any], list[float], list[float]]]) -> None:
    """Draw a line for each engine; bf16 is dashed."""
    for i, ((engine, precision), (row, x, y)) in enumerate(curves.items()):
        axes.plot(
            x,
            y,
            color=_colour(row),
            linestyle="--" if precision == "bf16" else "-",
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=3.5,
            linewidth=1.2,
            label=f"{engine} {precision}",
        )
    axes.legend(fontsize=7)


def _sweep(sweep: dict[str, Any]) -> str:
    from matplotlib.ticker import LogLocator

    figure, axes = _figure(3.2, f"{sweep['case']}: ms per step against {sweep['axis']}")
    curves: dict[tuple[str, str], tuple[dict[str, Any], list[float], list[float]]] = {}
    for point in sweep["points"]:
        _, x, y = curves.setdefault((point["engine"], point["precision"]), (point, [], []))
        x.append(point["value"])
        y.append(point["ms_per_step"]["p50"])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _lines(axes, curves)
    values = sorted({point["value"] for point in sweep["points"]})
    axes.set_xticks(values, list(map(str, values)))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(sweep["text"])
    return _svg(figure)


def _elbo(race: dict[str, Any]) -> str:
    figure, axes = _figure(3.2, "bound of test rows, nats per datapoint")
    curves = {}
    for row in race["results"]:
        points = row["curve"][1:]  # the start is hundreds of nats below
        x, y = [point["seconds"] for point in points], [point["elbo"] for point in points]
        curves[row["engine"], row["precision"]] = (row, x, y)
    _lines(axes, curves)
    axes.axhline(race["target"], color=_INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("seconds of training")
    return _svg(figure)
