"""Small charts as inline SVG: colours and fonts are the style sheet's, values under the pointer the script's."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, TypeGuard

import numpy as np

from fastvae.kernels import Array

__all__ = [
    "Frame",
    "Series",
    "bar_chart",
    "frame_svg",
    "is_number",
    "line_chart",
    "number",
    "scatter_svg",
    "with_error",
]

# More values than a chart has pixels are thinned out.
MAX_POINTS = 600
# From so many values on, the first tenth of them does not decide the range.
_LONG = 20


def number(value: float, digits: int = 2) -> str:
    """Write a number with a true minus sign; one of a diverged model in powers of ten."""
    return (f"{value:,.{digits}f}" if abs(value) < 1e9 else f"{value:.3e}").replace("-", "−")


def with_error(value: float, error: float | None) -> str:
    """Write a number with its standard error, where that is known; a line may break between the two."""
    return number(value) if error is None else f"{number(value)} ±\u00a0{number(error)}"


@dataclass(frozen=True)
class Series:
    """One line of a chart; values that are None or not finite leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: str  # class of the style sheet


@dataclass(frozen=True)
class Frame:
    """The plane of a chart: its size in the units of the SVG, its margins, and the ranges of the data."""

    x: tuple[float, float]
    y: tuple[float, float]
    width: float = 400
    height: float = 240
    left: float = 52
    right: float = 12
    top: float = 10
    bottom: float = 36

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of what is within the axes."""
        return self.left, self.top, self.width - self.left - self.right, self.height - self.top - self.bottom

    def place_x(self, value: float) -> float:
        """Return where a value lies from left to right."""
        left, _, width, _ = self.box
        return left + width * (value - self.x[0]) / (self.x[1] - self.x[0])

    def place_y(self, value: float) -> float:
        """Return where a value lies from top to bottom."""
        _, top, _, height = self.box
        return top + height * (self.y[1] - value) / (self.y[1] - self.y[0])

    def data(self, **more: Any) -> str:
        """Return the attribute by which the scripts find their way in the plane."""
        values = {"box": [round(v, 2) for v in self.box], "x": self.x, "y": self.y, **more}
        return f"data-chart='{escape(json.dumps(values, separators=(',', ':')))}'"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    unit: str,
    y_range: tuple[float, float] | None = None,
    digits: int = 2,
) -> str:
    """Draw lines over a common axis.

    Parameters
    ----------
    title : str
    series : sequence of Series
        At least one with a value.
    x_label, unit : str
    y_range : tuple of float, optional
        By default that of the values, the first tenth aside where it would flatten all the rest.
    digits : int
        Decimals of a value under the pointer; without any the axis has whole numbers only.

    Returns
    -------
    str
        A figure element.
    """
    series = [_thinned(each) for each in series]
    points: list[list[tuple[float, float]]] = [
        [(x, y) for x, y in zip(s.x, s.y, strict=True) if is_number(y)] for s in series
    ]
    xs = [x for line in points for x, _ in line]
    (low, high), is_cut = (y_range, False) if y_range else _range(points)
    frame = Frame(_widened(min(xs), max(xs)), _widened(low, high, 0.04))
    is_whole = all(float(x).is_integer() for x in xs)  # epochs, columns
    lines = "".join(_line(each, frame) for each in series)
    cursor = "<line class=cursor></line>" + "".join(f"<circle class='dot {s.style}' r=3.5></circle>" for s in series)
    known = [{"name": s.name, "x": list(s.x), "y": [_json(y) for y in s.y]} for s in series]
    legend = "".join(f"<span class='key {s.style}'>{escape(s.name)}</span>" for s in series)
    said = "; ".join(
        f"{s.name} from {number(line[0][1], digits)} to {number(line[-1][1], digits)}"
        for s, line in zip(series, points, strict=True)
        if line
    )
    note = "<span class=cut>The lowest values at the start lie below the frame.</span>" if is_cut else ""
    return (
        f"<figure class=chart><figcaption><b>{escape(title)}</b> <span class=unit>{escape(unit)}</span>{legend}{note}"
        f"</figcaption><svg viewBox='0 0 {frame.width:g} {frame.height:g}' role=img tabindex=0 "
        f"aria-label='{escape(f'{title}, {unit}, by {x_label}: {said}.')}' "
        f"{frame.data(series=known, xLabel=x_label, digits=digits)}>"
        f"{frame_svg(frame, x_label=x_label, x_is_whole=is_whole, y_is_whole=digits == 0)}"
        f"<svg class=plane {_clip(frame)}>{lines}</svg>{cursor}</svg><output class=tip></output></figure>"
    )


def bar_chart(title: str, names: Sequence[str], values: Sequence[float], *, x_label: str, unit: str) -> str:
    """Draw one bar for each name, in the order given; a figure element."""
    count = len(values)
    frame = Frame((-0.5, count - 0.5), (min(0.0, *values), max(1e-9, *values) * 1.04))
    width = min(max(frame.box[2] / count * 0.78, 0.5), 32)
    bars = "".join(
        f"<rect x={frame.place_x(i) - width / 2:.1f} y={frame.place_y(max(v, 0)):.1f} width={width:.1f} "
        f"height={abs(frame.place_y(v) - frame.place_y(0)):.1f}></rect>"
        for i, v in enumerate(values)
    )
    every = -(-count // 16)  # names that fit beside each other
    ticks = [(float(i), names[i]) for i in range(0, count, every)]
    known = [{"name": "", "x": list(range(count)), "y": list(values)}]
    said = ", ".join(f"{name}: {number(v)}" for name, v in zip(names[:10], values, strict=False))
    return (
        f"<figure class=chart><figcaption><b>{escape(title)}</b> <span class=unit>{escape(unit)}</span></figcaption>"
        f"<svg viewBox='0 0 {frame.width:g} {frame.height:g}' role=img tabindex=0 "
        f"aria-label='{escape(f'{title}, {unit}, by {x_label}: {said}.')}' "
        f"{frame.data(series=known, xLabel=x_label, names=list(names), digits=3)}>"
        f"{frame_svg(frame, x_label=x_label, x_ticks=ticks)}<g class=bars>{bars}</g>"
        "<line class=cursor></line><circle class='dot s0' r=3.5></circle></svg><output class=tip></output></figure>"
    )


def scatter_svg(points: Array, labels: Array | None, frame: Frame, *, x_label: str, y_label: str) -> str:
    """Draw places of the plane within a frame: the inside of an svg element.

    Parameters
    ----------
    points : ndarray of shape (n, 2)
    labels : ndarray of shape (n,), or None
        Their kinds; each has a colour, and its name at its median.
    frame : Frame
    x_label, y_label : str
    """
    kinds = [None] if labels is None else sorted(set(labels.tolist()))
    clouds, names = [], []
    for i, kind in enumerate(kinds):
        chosen = points if labels is None else points[labels == kind]
        # A point is a line of no length with round ends: a tenth of the bytes of a circle element.
        path = "".join(f"M{frame.place_x(x):.1f} {frame.place_y(y):.1f}h0" for x, y in chosen.tolist())
        clouds.append(f"<path class='cloud {'s1' if kind is None else f'c{i % 10}'}' d='{path}'></path>")
        if kind is not None and len(kinds) <= 30:
            x, y = np.median(chosen, axis=0).tolist()
            place = f"x={frame.place_x(x):.1f} y={frame.place_y(y):.1f}"
            names.append(f"<text class=kind {place} dy=.35em>{escape(str(kind))}</text>")
    return frame_svg(frame, x_label=x_label, y_label=y_label) + "".join(clouds + names)


def frame_svg(
    frame: Frame,
    *,
    x_label: str,
    y_label: str | None = None,
    x_ticks: Sequence[tuple[float, str]] | None = None,
    x_is_whole: bool = False,
    y_is_whole: bool = False,
) -> str:
    """Draw the axes: grid lines, ticks with their values (whole numbers where the axis is so), labels."""
    left, top, width, height = frame.box
    bottom = top + height
    parts = []
    for value, text in _ticks(*frame.y, height / 34, least=1 if y_is_whole else 0):
        y = frame.place_y(value)
        parts.append(f"<line class=grid x1={left:g} x2={left + width:g} y1={y:.1f} y2={y:.1f}></line>")
        parts.append(f"<text class=tick x={left - 7:g} y={y:.1f} dy=.35em text-anchor=end>{text}</text>")
    for value, text in _ticks(*frame.x, width / 60, least=1 if x_is_whole else 0) if x_ticks is None else x_ticks:
        x = frame.place_x(value)
        parts.append(f"<line class=mark x1={x:.1f} x2={x:.1f} y1={bottom:g} y2={bottom + 4:g}></line>")
        parts.append(f"<text class=tick x={x:.1f} y={bottom + 15:g} text-anchor=middle>{escape(text)}</text>")
    parts.append(f"<line class=axis x1={left:g} x2={left + width:g} y1={bottom:g} y2={bottom:g}></line>")
    parts.append(f"<text class=label x={left + width:g} y={frame.height - 4:g} text-anchor=end>{x_label}</text>")
    if y_label is not None:
        parts.append(f"<text class=label x=4 y={top + 4:g} dy=.35em>{y_label}</text>")
    return "".join(parts)


def _thinned(series: Series) -> Series:
    """Leave out values evenly until a chart can show the rest; the first and the last stay."""
    count = len(series.x)
    if count <= MAX_POINTS:
        return series
    kept = np.unique(np.linspace(0, count - 1, MAX_POINTS).round().astype(int)).tolist()
    return Series(series.name, [series.x[i] for i in kept], [series.y[i] for i in kept], series.style)


def _clip(frame: Frame) -> str:
    left, top, width, height = frame.box
    box = f"{left:g} {top:g} {width:g} {height:g}"
    return f"x={left:g} y={top:g} width={width:g} height={height:g} viewBox='{box}'"


def _line(series: Series, frame: Frame) -> str:
    pieces: list[list[str]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if is_number(y):
            pieces[-1].append(f"{frame.place_x(x):.1f} {frame.place_y(y):.1f}")
        elif pieces[-1]:
            pieces.append([])
    path = "".join("M" + "L".join(piece) + ("h0" if len(piece) == 1 else "") for piece in pieces if piece)
    points = " points" if all(len(piece) < 2 for piece in pieces) else ""  # such as the only epoch
    return f"<path class='line {series.style}{points}' d='{path}'></path>"


def _range(points: Sequence[Sequence[tuple[float, float]]]) -> tuple[tuple[float, float], bool]:
    """Return the range of the values, and whether that of the start was left out."""
    ys = [y for line in points for _, y in line]
    later = [y for line in points for _, y in line[len(line) // 10 :]]
    low, high = min(ys), max(ys)
    is_cut = max(map(len, points)) >= _LONG and min(later) - low > 0.5 * (high - low)
    return (min(later) if is_cut else low, high), is_cut


def _widened(low: float, high: float, share: float = 0.0) -> tuple[float, float]:
    """Widen a range by a share of it on both sides, and one of a single value so that it has a width."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        pad = 0.05 * abs(low) or 0.5
        return low - pad, high + pad
    pad = share * (high - low)
    return low - pad, high + pad


def _ticks(low: float, high: float, wanted: float, least: float = 0) -> list[tuple[float, str]]:
    """Return round values of a range and how they are written: as many as wanted, or somewhat fewer."""
    raw = max((high - low) / max(wanted, 1), least)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step - 1e-9)
    values = [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, number(value + 0.0, digits)) for value in values]


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether a value of the history can be drawn."""
    return value is not None and math.isfinite(value)


def _json(value: float | None) -> float | None:
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
