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
from fastvae.kernels.cuda.latent import Latent
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
    "sample_backward",
    "sample_fits",
    "sample_rows",
]

_FIRST_LAYER = struct(
    data=ADDRESS, index=ADDRESS, numbers=ADDRESS, x=MATRIX, w=MATRIX, y=MATRIX, seed=WORD, scale=FLOAT, binarize=INT,
    rows=INT, fan_in=INT, fan_out=INT, activation=INT, loop=ADDRESS,
)  # fmt: skip
_SAMPLE_ROWS = struct(
    h=MATRIX, w_heads=MATRIX, heads=MATRIX, z=MATRIX, w=MATRIX, y=MATRIX, eps=ADDRESS, kl=ADDRESS,
    draws=INT, rows=INT, hidden=INT, latent_dim=INT, fan_out=INT, activation=INT, sampled=INT,
    slices=INT, length=INT, seed=WORD, loop=ADDRESS,
)  # fmt: skip
_OUTPUT_LAYER = struct(
    density=DENSITY, h=MATRIX, w=MATRIX, x=MATRIX, dout=MATRIX, log_px=ADDRESS,
    rows=INT, x_rows=INT, fan_in=INT, column_tiles=INT, scale=FLOAT, loop=ADDRESS,
)  # fmt: skip
_OUTPUT_BACKWARD = struct(gradient=INPUT_GRADIENT, statistics=STATISTICS)
_SAMPLE_BACKWARD = struct(
    dy=MATRIX, w=MATRIX, heads=MATRIX, dheads=MATRIX, w_heads=MATRIX, h=MATRIX, dh=MATRIX, eps=ADDRESS,
    draws=INT, rows=INT, hidden=INT, latent_dim=INT, fan_out=INT, activation=INT, sampled=INT, loop=ADDRESS,
)  # fmt: skip
# phases.cu's
_ROWS, _ROW_THREADS, _HEADS_AHEAD, _LATENT_AHEAD, _DZ_STEP, _DH_COLUMNS = 2, 512, 10, 20, 512, 40
# Rows up to which a block of two rows is preferred to tiles: more read the narrow weights too often. Not yet measured.
_MOST_ROWS = 1024


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


def _slices(hidden: int, latent_dim: int) -> tuple[int, int]:
    """Into how many slices the sum over H is cut, as threads allow, and how long they are."""
    most = _ROW_THREADS // -(-2 * latent_dim // 4)
    length = -(-hidden // (most * _HEADS_AHEAD)) * _HEADS_AHEAD
    return -(-hidden // length), length


def _sample_bytes(hidden: int, latent_dim: int, draws: int) -> int:
    slices, length = _slices(hidden, latent_dim)
    parts = slices * 4 * (-(-2 * latent_dim // 4) | 1)
    z = -(-latent_dim // _LATENT_AHEAD) * _LATENT_AHEAD
    return 4 * _ROWS * (parts + -(-slices * length // 4) * 4 + draws * (z + latent_dim))


def _sample_backward_bytes(latent_dim: int, fan_out: int, draws: int) -> int:
    dheads, dy = -(-2 * latent_dim // _DH_COLUMNS) * _DH_COLUMNS, -(-fan_out // _DZ_STEP) * _DZ_STEP
    return 4 * _ROWS * (dheads + dy + (3 + draws) * latent_dim) + 8


def sample_fits(
    encoder: tuple[Layer, ...], decoder: tuple[Layer, ...], rows: int, draws: int, shared_bytes: int
) -> bool:
    """Whether both sides have a hidden layer, and the rows between them are few and narrow enough for a block."""
    heads, latent_dim = encoder[-1], decoder[0].fan_in
    sizes = (
        _sample_bytes(heads.fan_in, latent_dim, draws),
        _sample_backward_bytes(latent_dim, decoder[0].fan_out, draws),
    )
    fits = heads.fan_out <= _ROW_THREADS and max(sizes) <= shared_bytes
    return len(encoder) > 1 and len(decoder) > 1 and rows <= _MOST_ROWS and fits


def sample_rows(g: Latent, heads: Layer, below: Layer, above: Layer, *, activation: str) -> Launch:
    """From the last hidden layer `below` through the heads and the sample to the decoder's first layer `above`."""
    shared_bytes = _sample_bytes(heads.fan_in, g.latent_dim, g.draws)
    slices, length = _slices(heads.fan_in, g.latent_dim)
    return Launch.of(
        "phases", "sample_rows", _SAMPLE_ROWS, -(-g.rows // _ROWS), _ROW_THREADS, shared_bytes,
        h=below.y, w_heads=heads.w, heads=heads.y, z=g.z, w=above.w, y=above.y, eps=g.eps, kl=g.kl,
        draws=g.draws, rows=g.rows, hidden=heads.fan_in, latent_dim=g.latent_dim, fan_out=above.fan_out,
        activation=ACTIVATIONS[activation], sampled=g.sampled, slices=slices, length=length, seed=g.seed, loop=g.loop,
    )  # fmt: skip


def sample_backward(g: Latent, heads: Layer, below: Layer, above: Layer, *, activation: str) -> Launch:
    """Back from the decoder's first layer through the sample to the last hidden layer of the encoder."""
    shared_bytes = _sample_backward_bytes(g.latent_dim, above.fan_out, g.draws)
    return Launch.of(
        "phases", "sample_backward", _SAMPLE_BACKWARD, -(-g.rows // _ROWS), _ROW_THREADS, shared_bytes,
        dy=above.dy, w=above.w, heads=heads.y, dheads=heads.dy, w_heads=heads.w, h=below.y, dh=below.dy, eps=g.eps,
        draws=g.draws, rows=g.rows, hidden=heads.fan_in, latent_dim=g.latent_dim, fan_out=above.fan_out,
        activation=ACTIVATIONS[activation], sampled=g.sampled, loop=g.loop,
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
