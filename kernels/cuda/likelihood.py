"""Geometry of ``likelihood.cu``."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastvae.kernels.cuda.launch import ADDRESS, FLOAT, INT, MATRIX, WORD, Launch, Matrix, struct
from fastvae.network import Network

__all__ = [
    "DENSITY",
    "STATISTICS",
    "Importance",
    "Statistics",
    "add_prior",
    "density_of",
    "likelihood",
    "likelihood_mean",
    "likelihood_sample",
    "statistics",
    "weigh",
]

DENSITY = struct(gaussian=INT, identity_mean=INT, logvar_floor=FLOAT, data_dim=INT)
_LIKELIHOOD = struct(
    density=DENSITY, x=MATRIX, out=MATRIX, dout=MATRIX, log_px=ADDRESS, scale=FLOAT, x_rows=INT, loop=ADDRESS
)
_MEAN = struct(density=DENSITY, out=MATRIX, mean=MATRIX)
_SAMPLE = struct(density=DENSITY, out=MATRIX, x=MATRIX, seed=WORD, step=WORD, rows=INT, loop=ADDRESS)
_WEIGH = struct(
    dout=MATRIX, log_px=ADDRESS, kl=ADDRESS, weights=ADDRESS, means=ADDRESS, excesses=ADDRESS,
    draws=INT, rows=INT, columns=INT, parts=INT, loop=ADDRESS,
)  # fmt: skip
_PRIOR = struct(z=MATRIX, dz=MATRIX, log_pxz=ADDRESS, rows=INT, latent_dim=INT)
STATISTICS = struct(
    log_px=ADDRESS,
    kl=ADDRESS,
    stats=ADDRESS,
    steps=ADDRESS,
    terms=INT,
    all_rows=INT,
    kl_terms=INT,
    kl_rows=INT,
    kl_is_new=INT,
    loop=ADDRESS,
)
_SCRATCH = 4 * 32  # bytes of one float per warp


def density_of(network: Network) -> tuple[int, int, float, int]:
    """Return the likelihood in the kernels' form."""
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
    density = density_of(network)
    return Launch.of("likelihood", "likelihood", _LIKELIHOOD, rows, 256, _SCRATCH, density=density, **fields)


def likelihood_mean(network: Network, *, out: Matrix, mean: Matrix, rows: int) -> Launch:
    """Mean of p(x|z)."""
    fields: dict[str, Any] = {"density": density_of(network), "out": out, "mean": mean}
    return Launch.of("likelihood", "likelihood_mean", _MEAN, rows, 256, **fields)


def likelihood_sample(
    network: Network, *, out: Matrix, x: Matrix, rows: int, seed: int, step: int = 0, loop: int = 0
) -> Launch:
    """Draw from p(x|z); within the fused loop `step` is the loop's."""
    blocks = -(-rows * network.data_dim // (4 * 256))
    fields: dict[str, Any] = {"out": out, "x": x, "seed": seed, "step": step, "rows": rows, "loop": loop}
    return Launch.of("likelihood", "likelihood_sample", _SAMPLE, blocks, 256, density=density_of(network), **fields)


class Importance(NamedTuple):
    """Where the importance-weighted bound has the draws' weights, [L][M], and the datapoints' terms, (M,) each.

    The terms are the mean of log p(x|z) under the weights, and what it exceeds the bound by.
    """

    weights: int
    means: int
    excesses: int


def weigh(
    to: Importance, *, dout: Matrix, log_px: int, kl: int, draws: int, rows: int, columns: int, parts: int, loop: int
) -> Launch:
    """Weights and terms from log p(x|z), in `parts` of each row, and kl; `dout` is weighed, unless it is nowhere."""
    fields: dict[str, Any] = {"dout": dout, "log_px": log_px, "kl": kl, "draws": draws, "rows": rows, "loop": loop}
    return Launch.of("likelihood", "weigh", _WEIGH, rows, 256, columns=columns, parts=parts, **fields, **to._asdict())


def add_prior(*, z: Matrix, dz: Matrix, log_pxz: int, rows: int, latent_dim: int) -> Launch:
    """From log p(x|z) to log p(x, z), and likewise its gradient."""
    fields: dict[str, Any] = {"z": z, "dz": dz, "log_pxz": log_pxz, "rows": rows, "latent_dim": latent_dim}
    return Launch.of("likelihood", "add_prior", _PRIOR, -(-rows // 4), 128, **fields)


class Statistics(NamedTuple):
    """The minibatch's terms of log p(x|z) and of the KL divergence, which are summed over, and where the means go.

    `kl_is_new` says that the launch before writes those of the KL divergence too.
    """

    log_px: int
    kl: int
    stats: int
    steps: int
    terms: int
    all_rows: int
    kl_terms: int
    kl_rows: int
    kl_is_new: int
    loop: int


def statistics(g: Statistics) -> Launch:
    """Means over the minibatch, and whether the step is completed."""
    return Launch.of("likelihood", "statistics", STATISTICS, 1, 256, 2 * _SCRATCH, **g._asdict())
