"""Geometry of ``rng.cu``."""

from __future__ import annotations

from fastvae.kernels.cuda.launch import ADDRESS, INT, LONG, WORD, Launch, struct

__all__ = ["normals", "philox_blocks"]

_BLOCKS = struct(counter=ADDRESS, key=ADDRESS, out=ADDRESS, n=LONG)
_NORMALS = struct(seed=WORD, step=WORD, out=ADDRESS, n=LONG, stream=INT)
_THREADS = 256


def philox_blocks(*, counter: int, key: int, out: int, n: int) -> Launch:
    """`n` blocks of given counters."""
    blocks = -(-n // _THREADS)
    return Launch.of("rng", "philox_blocks", _BLOCKS, blocks, _THREADS, counter=counter, key=key, out=out, n=n)


def normals(*, seed: int, step: int, stream: int, out: int, n: int) -> Launch:
    """`n` standard normals of a stream."""
    blocks = -(-n // (4 * _THREADS))
    fields = {"seed": seed, "step": step, "stream": stream, "out": out, "n": n}
    return Launch.of("rng", "normals", _NORMALS, blocks, _THREADS, **fields)
