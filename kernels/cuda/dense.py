"""Geometry of ``dense.cu``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from fastvae.kernels.cuda.launch import ADDRESS, INT, MATRIX, NOWHERE, Launch, Matrix, struct

__all__ = [
    "ACTIVATIONS",
    "DEPTH",
    "INPUT_GRADIENT",
    "SMALL",
    "SPLIT",
    "Gradient",
    "Layer",
    "Tile",
    "copy_rows",
    "forward",
    "input_gradient",
    "leading",
    "tile_for",
    "weight_gradients",
]

ACTIVATIONS = {"none": 0, "tanh": 1, "relu": 2, "softplus": 3, "sigmoid": 4}
_SHAPE = {"rows": INT, "fan_in": INT, "fan_out": INT}
_FORWARD = struct(x=MATRIX, w=MATRIX, y=MATRIX, **_SHAPE, activation=INT, loop=ADDRESS)
INPUT_GRADIENT = struct(dy=MATRIX, w=MATRIX, h=MATRIX, dx=MATRIX, **_SHAPE, activation=INT, loop=ADDRESS)
_WEIGHT_GRADIENT = struct(
    x=MATRIX, dy=MATRIX, **_SHAPE, first_block=INT, early=INT, grad=ADDRESS, w=MATRIX, s0=ADDRESS, s1=ADDRESS
)
_MAX_LAYERS = 8
_WEIGHT_GRADIENTS = struct(layers=(_WEIGHT_GRADIENT, _MAX_LAYERS), count=INT, loop=ADDRESS)
_COPY = struct(**{"from": MATRIX, "to": MATRIX, "rows": INT, "columns": INT})

DEPTH = 32  # product.cuh's


class Tile(NamedTuple):
    """Rows and columns of a result that one block computes."""

    name: str
    rows: int
    columns: int
    threads: int
    stages: int
    groups: int = 1  # of threads, each with a part of K and stages of its own

    def across(self, columns: int) -> int:
        """Return the number of tiles side by side."""
        return -(-columns // self.columns)

    def blocks(self, shape: tuple[int, int]) -> int:
        """Return the number of tiles of a result."""
        return -(-shape[0] // self.rows) * self.across(shape[1])

    def shared_bytes(self, *, of_rows: bool = True) -> int:
        """Shared memory for tiles of both operands, or of the one with the result's columns alone."""
        return 4 * self.groups * self.stages * (of_rows * self.rows + self.columns) * DEPTH


SMALL, LARGE = Tile("small", 32, 32, 128, stages=5), Tile("large", 64, 64, 256, stages=3)
_SPLIT_ROWS = {"fp32": 16, "tf32": 32, "bf16": 32}
SPLIT = {precision: Tile("split", rows, 32, 128, stages=3, groups=4) for precision, rows in _SPLIT_ROWS.items()}
# Large tiles read less and keep the arithmetic units busier, once there are enough of them for a device of 132
# multiprocessors. Not yet measured.
_ENOUGH_TILES = 132


def tile_for(*results: tuple[int, int], few: Tile = SMALL) -> Tile:
    """Choose the tiles for results of these shapes; `few` where the large ones would be few."""
    return LARGE if sum(map(LARGE.blocks, results)) >= _ENOUGH_TILES else few


def leading(columns: int) -> int:
    """Leading dimension of a matrix in the engine's own memory: whole groups of 64 bytes."""
    return -(-columns // 16) * 16


class Layer(NamedTuple):
    """One affine layer in the engine's memory: w (fan_in + 1, fan_out), whose last row is b; y and dy (R, fan_out)."""

    fan_in: int
    fan_out: int
    offset: int  # of its parameters in the flat buffer
    w: Matrix
    y: Matrix
    dy: Matrix


def forward(layer: Layer, x: Matrix, rows: int, *, activation: str, precision: str, loop: int = 0) -> Launch:
    """Affine layer and activation: ``y = f(x W + b)``."""
    tile = tile_for((rows, layer.fan_out), few=SPLIT[precision] if loop else SMALL)
    return Launch.of(
        "dense", f"forward_{tile.name}", _FORWARD, tile.blocks((rows, layer.fan_out)), tile.threads,
        tile.shared_bytes(),
        x=x, w=layer.w, y=layer.y, rows=rows, fan_in=layer.fan_in, fan_out=layer.fan_out,
        activation=ACTIVATIONS[activation], loop=loop,
    )  # fmt: skip


def input_gradient(
    layer: Layer, dx: Matrix, rows: int, *, precision: str, h: Matrix = NOWHERE, activation: str = "none", loop: int = 0
) -> Launch:
    """Gradient of the input: ``dx = dy W^T``, times the slope at the layer's input where that is a hidden layer `h`."""
    tile = tile_for((rows, layer.fan_in), few=SPLIT[precision] if loop else SMALL)
    return Launch.of(
        "dense", f"input_gradient_{tile.name}", INPUT_GRADIENT, tile.blocks((rows, layer.fan_in)), tile.threads,
        tile.shared_bytes(),
        dy=layer.dy, w=layer.w, h=h, dx=dx, rows=rows, fan_in=layer.fan_in, fan_out=layer.fan_out,
        activation=ACTIVATIONS[activation], loop=loop,
    )  # fmt: skip


class Gradient(NamedTuple):
    """The parameters' gradient of one layer: its input, its rows, and where it goes.

    Either `grad`, the canonical gradient's address, is added to; or it is 0 and the optimizer steps on w with `state`.
    `early` says that dy was written by a launch before the one before: in the fused loop alone.
    """

    layer: Layer
    x: Matrix
    rows: int
    grad: int = 0
    state: tuple[int, int] = (0, 0)
    early: bool = False


def weight_gradients(gradients: Iterable[Gradient], *, precision: str, loop: int = 0) -> Iterator[Launch]:
    """Gradients of the parameters of several layers, ``dW = x^T dy``, in one launch or as few as there must be."""
    rest = iter(gradients)
    while group := list(islice(rest, _MAX_LAYERS)):
        tile = tile_for(*((g.layer.fan_in, g.layer.fan_out) for g in group))
        layers, blocks = [], 0
        for g in group:
            shape = g.layer.fan_in, g.layer.fan_out
            layers.append((g.x, g.layer.dy, g.rows, *shape, blocks, g.early, g.grad, g.layer.w, *g.state))
            blocks += tile.blocks(shape)
        empty = (NOWHERE, NOWHERE, 0, 0, 0, 0, 0, 0, NOWHERE, 0, 0)
        yield Launch.of(
            "dense", f"weight_gradients_{tile.name}", _WEIGHT_GRADIENTS, blocks, tile.threads,
            tile.shared_bytes(),
            layers=layers + [empty] * (_MAX_LAYERS - len(layers)), count=len(layers), loop=loop,
        )  # fmt: skip


def copy_rows(source: Matrix, to: Matrix, rows: int, columns: int) -> Launch:
    """Rows from one leading dimension to another."""
    fields: dict[str, Any] = {"from": source, "to": to, "rows": rows, "columns": columns}
    return Launch.of("dense", "copy_rows", _COPY, rows, 256, **fields)
