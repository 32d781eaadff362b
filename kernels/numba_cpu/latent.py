"""The sample, the KL divergence, and the gradients of both to mu and logvar.

z = mu + exp(logvar / 2) eps (section 2.4); kl = -1/2 sum (1 + logvar - mu^2 - exp(logvar)) (appendix B); or, for kl,
log q(z|x) - log p(z) = 1/2 sum (z^2 - eps^2 - logvar) at each draw (equation 6). Rows of M; eps is [L][M][J], z and dz
have row l * M + m.

And of 1/M sum log q(z|x) at a dream's z, eps = (z - mu) exp(-logvar / 2): dmu = eps exp(-logvar / 2) / M,
dlogvar = 1/2 (eps^2 - 1) / M.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastvae.kernels.numba_cpu.compile import FLOAT, compiled, f32, floats
from fastvae.kernels.numba_cpu.vec import exp, exp_minus_1_minus, ordered_sum

__all__ = [
    "Latent",
    "dream_backward_row",
    "latent_backward_row",
    "latent_backward_sampled_row",
    "latent_forward_row",
    "latent_forward_sampled_row",
]


class Latent(NamedTuple):
    """Arguments of both directions: addresses, and leading dimensions of the heads, of z and dz, and of dheads.

    kl is (M,), sampled (L, M); weight (L, M) is that of each draw's kl, where it is 0 all are kl_scale.
    """

    mu: int
    logvar: int
    head_ld: int
    eps: int
    draws: int
    rows: int
    latent_dim: int
    z: int
    z_ld: int
    kl: int
    dz: int
    dz_ld: int
    kl_scale: Any
    weight: int
    dmu: int
    dlogvar: int
    dhead_ld: int


@compiled
def latent_forward_row(g: Latent, m: int, scratch: int) -> None:
    """Row m of z and kl; `scratch` holds 2 J floats."""
    n, head = g.latent_dim, FLOAT * m * g.head_ld
    mu, logvar, terms, sd = (
        floats(g.mu + head, n),
        floats(g.logvar + head, n),
        floats(scratch, n),
        floats(scratch + FLOAT * n, n),
    )
    for j in range(n):
        terms[j] = mu[j] * mu[j] + exp_minus_1_minus(logvar[j], exp(logvar[j]))
        sd[j] = exp(f32(0.5) * logvar[j])
    for draw in range(g.draws):
        row = draw * g.rows + m
        z, eps = floats(g.z + FLOAT * row * g.z_ld, n), floats(g.eps + FLOAT * row * n, n)
        for j in range(n):
            z[j] = mu[j] + sd[j] * eps[j]
    floats(g.kl, m + 1)[m] = f32(0.5) * ordered_sum(scratch, n)


@compiled
def latent_backward_row(g: Latent, m: int, scratch: int) -> None:
    """Row m of dmu and dlogvar; `scratch` holds 2 J floats."""
    n, head, dhead = g.latent_dim, FLOAT * m * g.head_ld, FLOAT * m * g.dhead_ld
    mu, logvar = floats(g.mu + head, n), floats(g.logvar + head, n)
    dmu, dlogvar = floats(g.dmu + dhead, n), floats(g.dlogvar + dhead, n)
    dz_sum, dz_eps = floats(scratch, n), floats(scratch + FLOAT * n, n)
    dz_sum[:] = f32(0.0)
    dz_eps[:] = f32(0.0)
    for draw in range(g.draws):
        row = draw * g.rows + m
        dz, eps = floats(g.dz + FLOAT * row * g.dz_ld, n), floats(g.eps + FLOAT * row * n, n)
        for j in range(n):
            dz_sum[j] += dz[j]
            dz_eps[j] += dz[j] * eps[j]
    for j in range(n):
        v = logvar[j]
        expm1 = exp_minus_1_minus(v, exp(v)) + v
        dmu[j] = dz_sum[j] - g.kl_scale * mu[j]
        dlogvar[j] = f32(0.5) * (exp(f32(0.5) * v) * dz_eps[j] - g.kl_scale * expm1)


@compiled
def latent_forward_sampled_row(g: Latent, m: int, scratch: int) -> None:
    """Row m of z and kl of every draw; `scratch` holds 2 J floats."""
    n, head = g.latent_dim, FLOAT * m * g.head_ld
    mu, logvar, terms, sd = (
        floats(g.mu + head, n),
        floats(g.logvar + head, n),
        floats(scratch, n),
        floats(scratch + FLOAT * n, n),
    )
    for j in range(n):
        sd[j] = exp(f32(0.5) * logvar[j])
    for draw in range(g.draws):
        row = draw * g.rows + m
        z, eps = floats(g.z + FLOAT * row * g.z_ld, n), floats(g.eps + FLOAT * row * n, n)
        for j in range(n):
            z[j] = mu[j] + sd[j] * eps[j]
            terms[j] = z[j] * z[j] - eps[j] * eps[j] - logvar[j]
        floats(g.kl, row + 1)[row] = f32(0.5) * ordered_sum(scratch, n)


@compiled
def latent_backward_sampled_row(g: Latent, m: int, scratch: int) -> None:
    """Row m of dmu and dlogvar, kl being that of the draws; `scratch` holds 2 J floats.

    dz less weight z is the bound's derivative by z with the draw's KL term; log q(z|x) has one more by logvar, -1/2.
    """
    n, head, dhead = g.latent_dim, FLOAT * m * g.head_ld, FLOAT * m * g.dhead_ld
    mu, logvar = floats(g.mu + head, n), floats(g.logvar + head, n)
    dmu, dlogvar = floats(g.dmu + dhead, n), floats(g.dlogvar + dhead, n)
    sd, dz_eps, weights = floats(scratch, n), floats(scratch + FLOAT * n, n), f32(0.0)
    for j in range(n):
        sd[j] = exp(f32(0.5) * logvar[j])
    dmu[:] = f32(0.0)
    dz_eps[:] = f32(0.0)
    for draw in range(g.draws):
        row = draw * g.rows + m
        dz, eps = floats(g.dz + FLOAT * row * g.dz_ld, n), floats(g.eps + FLOAT * row * n, n)
        weight = floats(g.weight, row + 1)[row] if g.weight else g.kl_scale
        for j in range(n):
            d = dz[j] - weight * (mu[j] + sd[j] * eps[j])
            dmu[j] += d
            dz_eps[j] += d * eps[j]
        weights += weight
    for j in range(n):
        dlogvar[j] = f32(0.5) * (sd[j] * dz_eps[j] + weights)


@compiled
def dream_backward_row(g: Latent, m: int) -> None:
    """Row m of dmu and dlogvar of the dreams, of which z has one for each row."""
    n, head, dhead, rows = g.latent_dim, FLOAT * m * g.head_ld, FLOAT * m * g.dhead_ld, f32(g.rows)
    mu, logvar, z = floats(g.mu + head, n), floats(g.logvar + head, n), floats(g.z + FLOAT * m * g.z_ld, n)
    dmu, dlogvar = floats(g.dmu + dhead, n), floats(g.dlogvar + dhead, n)
    for j in range(n):
        inverse_sd = exp(f32(-0.5) * logvar[j])
        eps = (z[j] - mu[j]) * inverse_sd
        dmu[j] = eps * inverse_sd / rows
        dlogvar[j] = f32(0.5) * (eps * eps - f32(1.0)) / rows
