"""Geometry of ``latent.cu``."""

from __future__ import annotations

from typing import NamedTuple

from fastvae.kernels.cuda.launch import ADDRESS, FLOAT, INT, MATRIX, NOWHERE, WORD, Launch, Matrix, struct

__all__ = ["Latent", "latent_backward", "latent_forward"]

_LATENT = struct(
    mu=MATRIX, logvar=MATRIX, eps=ADDRESS, z=MATRIX, kl=ADDRESS, dz=MATRIX, dmu=MATRIX, dlogvar=MATRIX,
    draws=INT, rows=INT, latent_dim=INT, kl_scale=FLOAT, seed=WORD, loop=ADDRESS,
)  # fmt: skip
_ROWS_PER_BLOCK = 4


class Latent(NamedTuple):
    """Arguments of both directions; within the fused loop eps is drawn with `seed`, and kl_scale is the step's."""

    mu: Matrix
    logvar: Matrix
    eps: int
    draws: int
    rows: int
    latent_dim: int
    z: Matrix = NOWHERE
    kl: int = 0
    dz: Matrix = NOWHERE
    dmu: Matrix = NOWHERE
    dlogvar: Matrix = NOWHERE
    kl_scale: float = 0.0
    seed: int = 0
    loop: int = 0


def _launch(kernel: str, g: Latent) -> Launch:
    blocks = -(-g.rows // _ROWS_PER_BLOCK)
    return Launch.of("latent", kernel, _LATENT, blocks, 32 * _ROWS_PER_BLOCK, **g._asdict())


def latent_forward(g: Latent) -> Launch:
    """Sample and KL divergence."""
    return _launch("latent_forward", g)


def latent_backward(g: Latent) -> Launch:
    """Gradients to mu and logvar."""
    return _launch("latent_backward", g)
