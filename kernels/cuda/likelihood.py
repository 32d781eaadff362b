"""Geometry of ``likelihood.cu``."""

from __future__ import annotations

from typing import Any

from fastvae.kernels.cuda.launch import ADDRESS, FLOAT, INT, MATRIX, Launch, Matrix, struct
from fastvae.network import Network

__all__ = ["add_prior", "likelihood", "likelihood_mean", "statistics"]

_DENSITY = struct(gaussian=INT, identity_mean=INT, logvar_floor=FLOAT, data_dim=INT)
_LIKELIHOOD = struct(
    density=_DENSITY, x=MATRIX, out=MATRIX, dout=MATRIX, log_px=ADDRESS, scale=FLOAT, x_rows=INT, loop=ADDRESS
)
_MEAN = struct(density=_DENSITY, out=MATRIX, mean=MATRIX)
_PRIOR = struct(z=MATRIX, dz=MATRIX, log_pxz=ADDRESS, rows=INT, latent_dim=INT)
_STATISTICS = struct(log_px=ADDRESS, kl=ADDRESS, stats=ADDRESS, steps=ADDRESS, all_rows=INT, rows=INT, loop=ADDRESS)
_SCRATCH = 4 * 32  # bytes of one float per warp


def _density(network: Network) -> tuple[int, int, float, int]:
    gaussian = network.likelihood == "gaussian"
    return int(gaussian), int(gaussian and network.mean == "identity"), network.logvar_floor, network.data_dim


def likelihood(
    network: Network,
    *,
    x: Matrix,
    x_rows: int,
    out: Matrix,
    rows: int,
    scale: float,
    log_px: int,
    dout: Matrix,
    loop: int = 0,
) -> Launch:
    """Log p(x|z) of `rows` rows, and its scaled gradient unless `dout` is nowhere."""
    fields = {"x": x, "out": out, "dout": dout, "log_px": log_px, "scale": scale, "x_rows": x_rows, "loop": loop}
    density = _density(network)
    return Launch.of("likelihood", "likelihood", _LIKELIHOOD, (rows,), 256, _SCRATCH, density=density, **fields)


def likelihood_mean(network: Network, *, out: Matrix, mean: Matrix, rows: int) -> Launch:
    """Mean of p(x|z)."""
    fields: dict[str, Any] = {"density": _density(network), "out": out, "mean": mean}
    return Launch.of("likelihood", "likelihood_mean", _MEAN, (rows,), 256, **fields)


def add_prior(*, z: Matrix, dz: Matrix, log_pxz: int, rows: int, latent_dim: int) -> Launch:
    """From log p(x|z) to log p(x, z), and likewise its gradient."""
    fields: dict[str, Any] = {"z": z, "dz": dz, "log_pxz": log_pxz, "rows": rows, "latent_dim": latent_dim}
    return Launch.of("likelihood", "add_prior", _PRIOR, (-(-rows // 4),), 128, **fields)


def statistics(*, log_px: int, kl: int, stats: int, steps: int, all_rows: int, rows: int, loop: int) -> Launch:
    """Means over the minibatch, and whether the step is completed."""
    fields = {"log_px": log_px, "kl": kl, "stats": stats, "steps": steps, "all_rows": all_rows, "rows": rows}
    return Launch.of("likelihood", "statistics", _STATISTICS, (1,), 32, **fields, loop=loop)
