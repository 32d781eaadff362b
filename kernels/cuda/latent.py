"""Geometry of ``latent.cu``."""

from __future__ import annotations

from typing import NamedTuple

from fastvae.kernels.cuda.launch import ADDRESS, FLOAT, INT, MATRIX, NOWHERE, WORD, Launch, Matrix, struct

__all__ = ["Dream", "Latent", "dream_backward", "dream_forward", "latent_backward", "latent_forward"]

_LATENT = struct(
    mu=MATRIX, logvar=MATRIX, eps=ADDRESS, z=MATRIX, kl=ADDRESS, weight=ADDRESS, dz=MATRIX, dmu=MATRIX, dlogvar=MATRIX,
    draws=INT, rows=INT, latent_dim=INT, kl_scale=FLOAT, seed=WORD, loop=ADDRESS,
)  # fmt: skip
_DREAM = struct(
    z=MATRIX, mu=MATRIX, logvar=MATRIX, dmu=MATRIX, dlogvar=MATRIX, rows=INT, latent_dim=INT, seed=WORD, loop=ADDRESS
)
_ROWS_PER_BLOCK = 4


class Latent(NamedTuple):
    """Arguments of both directions; within the fused loop eps is drawn with `seed`, and kl_scale is the step's.

    `sampled` takes log q(z|x) - log p(z) at each draw in place of the analytic KL divergence.
    """

    mu: Matrix
    logvar: Matrix
    eps: int
    draws: int
    rows: int
    latent_dim: int
    z: Matrix = NOWHERE
    kl: int = 0
    weight: int = 0
    dz: Matrix = NOWHERE
    dmu: Matrix = NOWHERE
    dlogvar: Matrix = NOWHERE
    kl_scale: float = 0.0
    seed: int = 0
    loop: int = 0
    sampled: bool = False


def _launch(kernel: str, g: Latent) -> Launch:
    blocks, fields = -(-g.rows // _ROWS_PER_BLOCK), g._asdict()
    kernel += "_sampled" if fields.pop("sampled") else ""
    return Launch.of("latent", kernel, _LATENT, blocks, 32 * _ROWS_PER_BLOCK, **fields)


def latent_forward(g: Latent) -> Launch:
    """Sample and KL divergence."""
    return _launch("latent_forward", g)


def latent_backward(g: Latent) -> Launch:
    """Gradients to mu and logvar."""
    return _launch("latent_backward", g)


class Dream(NamedTuple):
    """Arguments of both directions of a dream's latent variables, within the fused loop alone."""

    z: Matrix
    mu: Matrix
    logvar: Matrix
    dmu: Matrix
    dlogvar: Matrix
    rows: int
    latent_dim: int
    seed: int
    loop: int


def _dream_launch(kernel: str, g: Dream) -> Launch:
    return Launch.of("latent", kernel, _DREAM, -(-g.rows // _ROWS_PER_BLOCK), 32 * _ROWS_PER_BLOCK, **g._asdict())


def dream_forward(g: Dream) -> Launch:
    """Draw z from N(0, I)."""
    return _dream_launch("dream_forward", g)


def dream_backward(g: Dream) -> Launch:
    """Gradients of log q(z|x) to mu and logvar."""
    return _dream_launch("dream_backward", g)
