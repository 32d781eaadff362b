"""Geometry of ``sample.cu``, and where its kernels can be used: elsewhere the fused loop takes the plain ones."""

from __future__ import annotations

from fastvae.kernels.cuda.dense import ACTIVATIONS, Layer
from fastvae.kernels.cuda.latent import Latent
from fastvae.kernels.cuda.launch import ADDRESS, INT, MATRIX, WORD, Launch, struct

__all__ = ["sample_backward", "sample_fits", "sample_rows"]

_SAMPLE_ROWS = struct(
    h=MATRIX, w_heads=MATRIX, heads=MATRIX, z=MATRIX, w=MATRIX, y=MATRIX, eps=ADDRESS, kl=ADDRESS,
    draws=INT, rows=INT, hidden=INT, latent_dim=INT, fan_out=INT, activation=INT, sampled=INT,
    slices=INT, length=INT, seed=WORD, loop=ADDRESS,
)  # fmt: skip
_SAMPLE_BACKWARD = struct(
    dy=MATRIX, w=MATRIX, heads=MATRIX, dheads=MATRIX, w_heads=MATRIX, h=MATRIX, dh=MATRIX, eps=ADDRESS,
    draws=INT, rows=INT, hidden=INT, latent_dim=INT, fan_out=INT, activation=INT, sampled=INT, loop=ADDRESS,
)  # fmt: skip
# sample.cu's
_ROWS, _ROW_THREADS, _HEADS_AHEAD, _LATENT_AHEAD, _DZ_STEP, _DH_COLUMNS = 2, 512, 10, 20, 512, 40
# Rows up to which a block of two rows is preferred to tiles: more read the narrow weights too often. Not yet measured.
_MOST_ROWS = 1024


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
        "sample", "sample_rows", _SAMPLE_ROWS, -(-g.rows // _ROWS), _ROW_THREADS, shared_bytes,
        h=below.y, w_heads=heads.w, heads=heads.y, z=g.z, w=above.w, y=above.y, eps=g.eps, kl=g.kl,
        draws=g.draws, rows=g.rows, hidden=heads.fan_in, latent_dim=g.latent_dim, fan_out=above.fan_out,
        activation=ACTIVATIONS[activation], sampled=g.sampled, slices=slices, length=length, seed=g.seed, loop=g.loop,
    )  # fmt: skip


def sample_backward(g: Latent, heads: Layer, below: Layer, above: Layer, *, activation: str) -> Launch:
    """Back from the decoder's first layer through the sample to the last hidden layer of the encoder."""
    shared_bytes = _sample_backward_bytes(g.latent_dim, above.fan_out, g.draws)
    return Launch.of(
        "sample", "sample_backward", _SAMPLE_BACKWARD, -(-g.rows // _ROWS), _ROW_THREADS, shared_bytes,
        dy=above.dy, w=above.w, heads=heads.y, dheads=heads.dy, w_heads=heads.w, h=below.y, dh=below.dy, eps=g.eps,
        draws=g.draws, rows=g.rows, hidden=heads.fan_in, latent_dim=g.latent_dim, fan_out=above.fan_out,
        activation=ACTIVATIONS[activation], sampled=g.sampled, loop=g.loop,
    )  # fmt: skip
