"""log p(x|z) and its gradient from the decoder's heads in one pass, rows of out.

bernoulli: sum x a - max(a, 0) - log1p(exp(-|a|)); gradient x - sigmoid(a)
gaussian:  -1/2 sum log(2 pi) + logvar + (x - mean)^2 / exp(logvar), logvar = floor + softplus(s - floor)

And x ~ p(x|z): [u < sigmoid(a)], mean + exp(logvar / 2) n.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastvae.kernels.numba_cpu.compile import FLOAT, compiled, f32, floats
from fastvae.kernels.numba_cpu.rng import binarize_row, key_of, normal_block
from fastvae.kernels.numba_cpu.vec import exp, log1p_unit, ordered_sum, relu, sigmoid, softplus
from fastvae.rng import Stream

__all__ = ["BERNOULLI", "LOG_TWO_PI", "Density", "likelihood_mean_row", "likelihood_row", "likelihood_sample_row"]

BERNOULLI, GAUSSIAN = range(2)
LOG_TWO_PI = f32(1.83787707)
_STREAM = int(Stream.DREAM)


class Density(NamedTuple):
    """p(x|z): its kind, and the width D of x."""

    kind: int
    sigmoid_mean: int
    logvar_floor: Any
    data_dim: int


@compiled
def _bernoulli_row(g: Density, x_at: int, out: int, scale: Any, dout_at: int, scratch: int) -> float:
    n = g.data_dim
    x, a, dout, terms = floats(x_at, n), floats(out, n), floats(dout_at, n), floats(scratch, n)
    for d in range(n):
        e = exp(-abs(a[d]))
        inverse = f32(1.0) / (f32(1.0) + e)
        terms[d] = (x[d] * a[d] - relu(a[d])) - log1p_unit(e)  # in this order the large parts cancel when x is 1
        dout[d] = scale * (x[d] - (e * inverse if a[d] < f32(0.0) else inverse))
    return ordered_sum(scratch, n)


@compiled
def _gaussian_row(g: Density, x_at: int, out: int, scale: Any, dout_at: int, scratch: int) -> float:
    n, floor = g.data_dim, g.logvar_floor
    x, a, s, terms = floats(x_at, n), floats(out, n), floats(out + FLOAT * n, n), floats(scratch, n)
    dmean, dlogvar = floats(dout_at, n), floats(dout_at + FLOAT * n, n)
    for d in range(n):
        mean = sigmoid(a[d]) if g.sigmoid_mean else a[d]
        logvar = floor + softplus(s[d] - floor)
        precision, error = exp(-logvar), x[d] - mean
        square = error * error * precision
        terms[d] = LOG_TWO_PI + logvar + square
        slope = mean * (f32(1.0) - mean) if g.sigmoid_mean else f32(1.0)
        dmean[d] = scale * error * precision * slope
        dlogvar[d] = f32(0.5) * scale * (square - f32(1.0)) * sigmoid(s[d] - floor)
    return f32(-0.5) * ordered_sum(scratch, n)


@compiled
def likelihood_row(g: Density, x: int, out: int, scale: Any, dout: int, scratch: int) -> float:
    """Log p of one row, and its scaled gradient; `scratch` holds D floats."""
    if g.kind == BERNOULLI:
        return _bernoulli_row(g, x, out, scale, dout, scratch)
    return _gaussian_row(g, x, out, scale, dout, scratch)


@compiled
def likelihood_mean_row(g: Density, out: int, mean_at: int) -> None:
    """Mean of p(x|z) of one row."""
    n = g.data_dim
    a, mean = floats(out, n), floats(mean_at, n)
    if g.kind == BERNOULLI or g.sigmoid_mean:
        for d in range(n):
            mean[d] = sigmoid(a[d])
    else:
        for d in range(n):
            mean[d] = a[d]


@compiled
def likelihood_sample_row(g: Density, out: int, seed: Any, step: Any, r: int, x_at: int) -> None:
    """Row r of x, which begins at `x_at` with row 0: element r D + d of the noise is that of x."""
    n = g.data_dim
    first, x = r * n, floats(x_at + FLOAT * r * n, n)
    if g.kind == BERNOULLI:
        likelihood_mean_row(g, out, x_at + FLOAT * first)
        binarize_row(x, n, seed, step, _STREAM, first)
        return
    key, floor = key_of(seed, step, _STREAM), g.logvar_floor
    for block in range(first // 4, (first + n + 3) // 4):
        normal_block(key, block, x_at, first, first + n)
    a, s = floats(out, n), floats(out + FLOAT * n, n)
    for d in range(n):
        mean = sigmoid(a[d]) if g.sigmoid_mean else a[d]
        logvar = floor + softplus(s[d] - floor)
        x[d] = mean + exp(f32(0.5) * logvar) * x[d]
