"""Geometry of ``latent.cu``."""

from __future__ import annotations

from typing import NamedTuple

from fastvae.kernels.cuda.launch import ADDRESS, FLOAT, INT, MATRIX, NOWHERE, WORD, Launch, Matrix, struct

__all__ = ["Latent", "latent_backward", "latent_forward"]

_LATENT = struct(
    mu=MATRIX, logvar=MATRIX, eps=ADDRESS, z=MATRIX, kl=ADDRESS, weight=ADDRESS, dz=MATRIX, dmu=MATRIX, dlogvar=MATRIX,
    draws=INT, rows=INT, latent_dim=INT, kl_scale=FLOAT, seed=WORD, loop=ADDRESS,
)  # fmt: skip
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
