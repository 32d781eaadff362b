"""Geometry of ``passes.cu``."""

from __future__ import annotations

from typing import Any

from fastvae.kernels.cuda.dense import ACTIVATIONS, Layer
from fastvae.kernels.cuda.launch import ADDRESS, FLOAT, INT, MATRIX, Launch, Matrix, struct
from fastvae.kernels.cuda.likelihood import DENSITY, density_of
from fastvae.network import Network

__all__ = ["bias_rows", "compare_rows", "slope_rows", "store_rows", "update_layer"]

_STORE = struct(
    **{"from": MATRIX, "b": ADDRESS, "to": MATRIX, "rows": INT, "columns": INT, "activation": INT, "one": INT},
    loop=ADDRESS,
)
_BIAS = struct(y=MATRIX, b=ADDRESS, rows=INT, columns=INT)
_COMPARE = struct(
    density=DENSITY, x=MATRIX, out=MATRIX, b=ADDRESS, dout=MATRIX, log_px=ADDRESS, weights=ADDRESS, scale=FLOAT,
    x_rows=INT, loop=ADDRESS,
)  # fmt: skip
_SLOPE = struct(
    **{"from": MATRIX, "h": MATRIX, "dh": MATRIX, "rows": INT, "columns": INT, "activation": INT}, loop=ADDRESS
)
_UPDATE = struct(g=MATRIX, w=MATRIX, s0=ADDRESS, s1=ADDRESS, copy=MATRIX, fan_in=INT, fan_out=INT, loop=ADDRESS)
_THREADS = 256
_SCRATCH = 4 * 32  # bytes of one float per warp


def _by_fours(rows: int, m: Matrix) -> int:
    """Blocks for one thread per four elements."""
    return -(-rows * m.ld // (4 * _THREADS))


def _bias(layer: Layer) -> int:
    return layer.w.p + 4 * layer.fan_in * layer.w.ld


def store_rows(
    source: Matrix,
    to: Matrix,
    rows: int,
    columns: int,
    *,
    layer: Layer | None = None,
    activation: str = "none",
    one: bool = False,
    loop: int = 0,
) -> Launch:
    """Rows as the products read them, after the bias of `layer` and the activation; with `one`, a one behind them."""
    fields: dict[str, Any] = {"from": source, "b": _bias(layer) if layer else 0, "to": to, "rows": rows}
    fields |= {"columns": columns, "activation": ACTIVATIONS[activation], "one": one, "loop": loop}
    return Launch.of("passes", "store_rows", _STORE, _by_fours(rows, to), _THREADS, **fields)


def bias_rows(layer: Layer, rows: int) -> Launch:
    """Add the bias to the layer's y."""
    fields: dict[str, Any] = {"y": layer.y, "b": _bias(layer), "rows": rows, "columns": layer.fan_out}
    return Launch.of("passes", "bias_rows", _BIAS, _by_fours(rows, layer.y), _THREADS, **fields)


def compare_rows(
    network: Network,
    layer: Layer,
    *,
    x: Matrix,
    x_rows: int,
    dout: Matrix,
    rows: int,
    log_px: int,
    loop: int,
    weights: int = 0,
) -> Launch:
    """Log p(x|z) of each row of the last layer's y, still without its bias, and its gradient, unless it is nowhere.

    The gradient is of the mean over the rows, or of their sum with `weights`.
    """
    return Launch.of(
        "passes", "compare_rows", _COMPARE, rows, _THREADS, _SCRATCH,
        density=density_of(network), x=x, out=layer.y, b=_bias(layer), dout=dout, log_px=log_px,
        weights=weights, scale=1.0 if weights else 1 / rows, x_rows=x_rows, loop=loop,
    )  # fmt: skip


def slope_rows(source: Matrix, h: Matrix, dh: Matrix, rows: int, columns: int, *, activation: str, loop: int) -> Launch:
    """From the gradient of a hidden layer h to that of its preactivation."""
    fields: dict[str, Any] = {"from": source, "h": h, "dh": dh, "rows": rows, "columns": columns, "loop": loop}
    fields["activation"] = ACTIVATIONS[activation]
    return Launch.of("passes", "slope_rows", _SLOPE, _by_fours(rows, dh), _THREADS, **fields)


def update_layer(layer: Layer, g: Matrix, *, state: tuple[int, int], copy: Matrix, loop: int) -> Launch:
    """The optimizer's step along the gradient `g`, and the new copy of W."""
    return Launch.of(
        "passes", "update_layer", _UPDATE, _by_fours(layer.fan_in + 1, layer.w), _THREADS,
        g=g, w=layer.w, s0=state[0], s1=state[1], copy=copy, fan_in=layer.fan_in, fan_out=layer.fan_out, loop=loop,
    )  # fmt: skip
