"""Philox4x32-10 streams, as fastvae/rng.py defines them: key = seed, counter = (word / 4, step low, step high, stream).

Normals are made in float64 and rounded once, as there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import int32, uint64

from fastvae.kernels.numba_cpu.compile import compiled, f32, floats, inlined

__all__ = ["Key", "binarize_row", "key_of", "normal_block", "philox_block"]

_LOW = uint64(0xFFFFFFFF)


class Key(NamedTuple):
    """Two key words and the last three counter words of a stream, uint64."""

    k0: Any
    k1: Any
    c1: Any
    c2: Any
    c3: Any


@compiled
def key_of(seed: Any, step: Any, stream: int) -> Key:
    """Key of a stream; seed and step are uint64."""
    return Key(seed & _LOW, seed >> uint64(32), step & _LOW, step >> uint64(32), uint64(stream))


@inlined
def philox_block(key: Key, block: Any) -> tuple[Any, Any, Any, Any]:
    """Four 32-bit words, in uint64."""
    c0, c1, c2, c3 = uint64(block) & _LOW, key.c1, key.c2, key.c3
    k0, k1 = key.k0, key.k1
    for _ in range(10):
        p0, p1 = uint64(0xD2511F53) * c0, uint64(0xCD9E8D57) * c2
        c0, c2 = (p1 >> uint64(32)) ^ c1 ^ k0, (p0 >> uint64(32)) ^ c3 ^ k1
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + uint64(0x9E3779B9)) & _LOW, (k1 + uint64(0xBB67AE85)) & _LOW
    return c0, c1, c2, c3


@compiled
def uniform(word: Any) -> float:
    """((word >> 8) + 1/2) / 2^24, exact in float64."""
    return (float(word >> uint64(8)) + 0.5) * 2.0**-24


@compiled
def _binary(x: float, word: Any) -> float:
    """[u < x], u of a word: k + 1/2 < y of y = 2^24 x. Exact: from 2^23 on y is whole, and 1/2 decides nothing."""
    y = x * f32(2.0**24)
    return f32(1.0) if f32(int32(word >> uint64(8))) + (f32(0.5) if y < f32(2.0**23) else f32(0.0)) < y else f32(0.0)


@compiled
def _binarize(x: Any, key: Key, first: int) -> None:
    """One element after the other."""
    for d in range(len(x)):
        x[d] = _binary(x[d], philox_block(key, (first + d) // 4)[(first + d) % 4])


@compiled
def binarize_row(x: Any, n: int, seed: Any, step: Any, stream: int, first: int) -> None:
    """x[d] becomes [u < x[d]], u from word `first + d` of the stream; whole blocks in a loop that becomes vectors."""
    key, head = key_of(seed, step, stream), min(-first % 4, n)
    blocks = (n - head) // 4
    tail, whole = head + 4 * blocks, x[head : head + 4 * blocks]
    for i in range(blocks):
        words = philox_block(key, (first + head) // 4 + i)
        for j in range(4):
            whole[4 * i + j] = _binary(whole[4 * i + j], words[j])
    _binarize(x[:head], key, first)
    _binarize(x[tail:], key, first + tail)


@compiled
def normal_block(key: Key, block: int, out_at: int, first: int, last: int) -> None:
    """Of elements [4 block, 4 block + 4) of a stream of standard normals those in [first, last), by Box-Muller."""
    words = philox_block(key, block)
    out = floats(out_at, last)
    for pair in range(2):
        i = 4 * block + 2 * pair
        radius = math.sqrt(-2.0 * math.log(uniform(words[2 * pair])))
        angle = 2.0 * math.pi * uniform(words[2 * pair + 1])
        if first <= i < last:
            out[i] = f32(radius * math.cos(angle))
        if first <= i + 1 < last:
            out[i + 1] = f32(radius * math.sin(angle))
