"""Elementary functions of one float32, a few units in the last place, without branches: LLVM's loops become vectors.

LLVM has no vector forms of exp and tanh of its own. The polynomials are near-minimax fits on the interval given beside
each; the error quoted is the fit's, before rounding.
"""

from __future__ import annotations

import math
from typing import Any

from numba import int32, types
from numba.extending import intrinsic

from fastvae.kernels.numba_cpu.compile import compiled, f32, floats

__all__ = [
    "exp",
    "exp_minus_1_minus",
    "log1p_unit",
    "one_minus_exp",
    "ordered_sum",
    "rsqrt",
    "sigmoid",
    "softplus",
    "tanh",
]


@intrinsic
def _bits(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.int32))

    return types.int32(types.float32), generate


@intrinsic
def _from_bits(typing_context: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@compiled
def exp(x: float) -> float:
    """2^n exp(r), |r| <= log(2)/2; fit error 3e-9. Below -86.9 zero, above 88.72 infinity."""
    shifted = x * f32(1.44269504) + f32(12582912.0)  # 1.5 * 2^23 rounds to an integer
    n = shifted - f32(12582912.0)
    r = x - n * f32(0.693359375)
    r = r + n * f32(2.12194440e-4)
    p = f32(1.39504764e-3) * r + f32(8.36888235e-3)
    p = (p * r + f32(4.1666206e-2)) * r + f32(0.166665182)
    p = (p * r + f32(0.5)) * (r * r) + r
    p = p + f32(1.0)
    y = p * _from_bits(int32((int32(_bits(shifted) - 0x4B400000) + 126) << 23)) * f32(2.0)
    y = f32(0.0) if x < f32(-86.9) else y
    return f32(math.inf) if x > f32(88.7228) else y


@compiled
def _twice_atanh(s: float) -> float:
    """2 atanh(s) for |s| <= 1/3; fit error 6e-12."""
    t = s * s
    q = (f32(0.217923969) * t + f32(0.171478495)) * t + f32(0.22301501)
    q = ((q * t + f32(0.28568396)) * t + f32(0.400000542)) * t + f32(0.666666687)
    return f32(2.0) * s + s * t * q


@compiled
def log1p_unit(e: float) -> float:
    """log(1 + e) for 0 <= e <= 1."""
    return _twice_atanh(e / (f32(2.0) + e))


@compiled
def sigmoid(a: float) -> float:
    """1 / (1 + exp(-a)), from exp(-|a|)."""
    e = exp(-abs(a))
    inverse = f32(1.0) / (f32(1.0) + e)
    return e * inverse if a < f32(0.0) else inverse


@compiled
def relu(a: float) -> float:
    """max(a, 0); NaN stays NaN."""
    return f32(0.0) if a < f32(0.0) else a


@compiled
def softplus(a: float) -> float:
    """log(1 + exp(a))."""
    return relu(a) + log1p_unit(exp(-abs(a)))


@compiled
def tanh(x: float) -> float:
    """|x| <= 0.625: x + x^3 T(x^2), fit error 1.5e-10; beyond: 1 - 2 / (exp(2|x|) + 1)."""
    t = x * x
    p = (f32(2.14753696e-3) * t - f32(8.18267372e-3)) * t + f32(2.17029676e-2)
    p = ((p * t - f32(5.39472029e-2)) * t + f32(0.133332103)) * t - f32(0.333333313)
    small = p * (t * x) + x
    a = abs(x)
    large = math.copysign(f32(1.0) - f32(2.0) / (exp(f32(2.0) * a) + f32(1.0)), x)
    return small if a < f32(0.625) else large


@compiled
def one_minus_exp(h: float) -> float:
    """1 - exp(-h) for h >= 0; up to 1/2 as h - h^2 E(h), fit error 1.6e-10."""
    p = (f32(-1.64880286e-4) * h + f32(1.37070706e-3)) * h - f32(8.32871068e-3)
    p = ((p * h + f32(4.16661315e-2)) * h - f32(0.166666642)) * h + f32(0.5)
    return h - h * h * p if h < f32(0.5) else f32(1.0) - exp(-h)


@compiled
def exp_minus_1_minus(v: float, exp_v: float) -> float:
    """exp(v) - 1 - v; for |v| <= 1/2 as v^2 K(v), fit error 3.4e-10, free of the difference's cancellation."""
    p = (f32(2.49570458e-5) * v + f32(1.99621849e-4)) * v + f32(1.38886075e-3)
    p = ((p * v + f32(8.33318196e-3)) * v + f32(4.16666679e-2)) * v + f32(0.166666672)
    p = p * v + f32(0.5)
    return v * v * p if abs(v) < f32(0.5) else exp_v - f32(1.0) - v


@compiled
def rsqrt(a: float) -> float:
    """1 / sqrt(a) for positive normal a."""
    return f32(1.0) / math.sqrt(a)


LANES = 16


@compiled
def ordered_sum(address: int, n: int) -> float:
    """Sum of n floats: lane l adds the terms l, l + 16, ..., then the lanes are halved. It overwrites them."""
    terms = floats(address, n)
    for i in range(LANES, n - n % LANES, LANES):
        lanes = floats(address + 4 * i, LANES)
        for lane in range(LANES):
            terms[lane] += lanes[lane]
    whole = min(n, LANES)
    for i in range(max(n - n % LANES, LANES), n):
        terms[i % LANES] += terms[i]
    total = f32(0.0)
    for lane in range(whole):
        total += terms[lane]
    return total
