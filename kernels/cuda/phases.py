"""Geometry of ``phases.cu``, and where its kernels can be used: elsewhere the fused loop takes the plain ones."""

from __future__ import annotations

from fastvae.kernels import BINARIZE
from fastvae.kernels.cuda.dense import (
    ACTIVATIONS,
    DEPTH,
    INPUT_GRADIENT,
    SMALL,
    SPLIT,
    Layer,
    Tile,
    tile_for,
)
from fastvae.kernels.cuda.gather import Dataset
from fastvae.kernels.cuda.launch import ADDRESS, FLOAT, INT, MATRIX, WORD, Launch, Matrix, struct
from fastvae.kernels.cuda.likelihood import DENSITY, STATISTICS, Statistics, density_of
from fastvae.network import Network

__all__ = [
    "first_layer",
    "first_layer_fits",
    "most_terms",
    "output_backward",
    "output_layer",
    "output_layer_fits",
    "output_tiles",
]

_FIRST_LAYER = struct(
    data=ADDRESS, index=ADDRESS, numbers=ADDRESS, x=MATRIX, w=MATRIX, y=MATRIX, seed=WORD, scale=FLOAT, binarize=INT,
    rows=INT, fan_in=INT, fan_out=INT, activation=INT, loop=ADDRESS,
)  # fmt: skip
_OUTPUT_LAYER = struct(
    density=DENSITY, h=MATRIX, w=MATRIX, x=MATRIX, dout=MATRIX, log_px=ADDRESS,
    rows=INT, x_rows=INT, fan_in=INT, column_tiles=INT, scale=FLOAT, loop=ADDRESS,
)  # fmt: skip
_OUTPUT_BACKWARD = struct(gradient=INPUT_GRADIENT, statistics=STATISTICS)


def _byte_row(n: int) -> int:
    return (-(-n // DEPTH) * DEPTH + 111) // 128 * 128 + 16


def _first_layer_bytes(tile: Tile, n: int) -> int:
    return tile.shared_bytes(of_rows=False) + tile.rows * _byte_row(n)


def first_layer_fits(data: Dataset, layer: Layer, rows: int, precision: str, shared_bytes: int) -> bool:
    """Whether the dataset is dense bytes, and a tile's rows of it fit into a block's shared memory."""
    tile = tile_for((rows, layer.fan_out), few=SPLIT[precision])
    return not data.indptr and data.dtype.itemsize == 1 and _first_layer_bytes(tile, layer.fan_in) <= shared_bytes


def first_layer(
    data: Dataset,
    layer: Layer,
    *,
    index: int,
    numbers: int,
    x: Matrix,
    rows: int,
    scale: float,
    binarize: str,
    seed: int,
    activation: str,
    precision: str,
    loop: int,
) -> Launch:
    """Gather x and compute the first hidden layer."""
    tile = tile_for((rows, layer.fan_out), few=SPLIT[precision])
    return Launch.of(
        "phases", f"first_layer_{tile.name}", _FIRST_LAYER, tile.blocks((rows, layer.fan_out)), tile.threads,
        _first_layer_bytes(tile, layer.fan_in),
        data=data.values, index=index, numbers=numbers, x=x, w=layer.w, y=layer.y, seed=seed, scale=scale,
        binarize=BINARIZE.index(binarize), rows=rows, fan_in=layer.fan_in, fan_out=layer.fan_out,
        activation=ACTIVATIONS[activation], loop=loop,
    )  # fmt: skip


def output_layer_fits(network: Network) -> bool:
    """Whether both heads of the decoder begin at multiples of 16 bytes."""
    return network.likelihood == "bernoulli" or network.data_dim % 4 == 0


def output_tiles(network: Network, rows: int, precision: str) -> int:
    """Terms of log p(x|z) that `output_layer` leaves for each row."""
    return tile_for((rows, network.data_dim), few=SPLIT[precision]).across(network.data_dim)


def most_terms(network: Network, rows: int) -> int:
    """Terms that so many rows, or fewer, leave at most."""
    return rows * SMALL.across(network.data_dim)


def output_layer(
    network: Network,
    layer: Layer,
    *,
    h: Matrix,
    x: Matrix,
    x_rows: int,
    rows: int,
    scale: float,
    log_px: int,
    precision: str,
    loop: int,
) -> Launch:
    """The decoder's last layer with the likelihood and its gradient in the epilogue."""
    shape = rows, network.data_dim
    tile = tile_for(shape, few=SPLIT[precision])
    return Launch.of(
        "phases", f"{network.likelihood}_layer_{tile.name}", _OUTPUT_LAYER, tile.blocks(shape), tile.threads,
        tile.shared_bytes(),
        density=density_of(network), h=h, w=layer.w, x=x, dout=layer.dy, log_px=log_px,
        rows=rows, x_rows=x_rows, fan_in=layer.fan_in, column_tiles=tile.across(network.data_dim), scale=scale,
        loop=loop,
    )  # fmt: skip


def output_backward(
    layer: Layer, dx: Matrix, rows: int, statistics: Statistics, *, h: Matrix, activation: str, precision: str
) -> Launch:
    """Gradient of the last layer's input, and the statistics beside it."""
    tile = tile_for((rows, layer.fan_in), few=SPLIT[precision])
    gradient = (layer.dy, layer.w, h, dx, rows, layer.fan_in, layer.fan_out, ACTIVATIONS[activation], 0)
    return Launch.of(
        "phases", f"output_backward_{tile.name}", _OUTPUT_BACKWARD, tile.blocks((rows, layer.fan_in)) + 1, tile.threads,
        tile.shared_bytes(),
        gradient=gradient, statistics=statistics,
    )  # fmt: skip
