"""What the machine can do: rates of large matrix products and of memory; see `fastvae.bench.worker` for a runner."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from time import perf_counter
from typing import Any

import numpy as np

from fastvae.kernels import Array

__all__ = ["make"]

_GEMM_SIZES = (512, 1024, 2048)
# Floats of each array of the memory test: 256 MB, much more than a last-level cache holds.
_STREAM_SIZE = 2**26


def make(case: None, data: None, *, n_threads: int, what: str) -> _Limit:
    """Return the runner of a limit: ``numpy sgemm``, ``torch sgemm``, ``torch bf16 gemm``, ``copy`` or ``add``."""
    if what in ("copy", "add"):
        return _stream(what, n_threads)
    return _peak(_numpy_product() if what == "numpy sgemm" else _torch_product(n_threads, "bf16" in what))


class _Limit:
    """A function repeated; `info` names the work of one repetition and the size chosen."""

    def __init__(self, function: Callable[[], Any], **info: float) -> None:
        self.function, self.info = function, info

    def run(self, order: Array) -> None:
        for _ in order:
            self.function()


def _numpy_product() -> Callable[[int], Callable[[], Any]]:
    def at(size: int) -> Callable[[], Any]:
        x, y = np.random.default_rng(0).standard_normal((2, size, size), dtype=np.float32)
        out = np.empty_like(x)
        return lambda: np.matmul(x, y, out=out)

    return at


def _torch_product(n_threads: int, bf16: bool) -> Callable[[int], Callable[[], Any]]:
    import torch

    torch.set_num_threads(n_threads)

    def at(size: int) -> Callable[[], Any]:
        x, y = torch.randn(2, size, size).to(torch.bfloat16 if bf16 else torch.float32)
        out = torch.empty_like(x)
        return lambda: torch.mm(x, y, out=out)

    return at


def _peak(product: Callable[[int], Callable[[], Any]]) -> _Limit:
    """Choose the size of the highest rate."""

    def limit(size: int) -> _Limit:
        return _Limit(product(size), gflop=2e-9 * size**3, size=size)

    def seconds(limit: _Limit) -> float:
        start = perf_counter()
        limit.function()
        return perf_counter() - start

    def rate(limit: _Limit) -> float:
        return limit.info["gflop"] / min(seconds(limit) for _ in range(5))

    return max(map(limit, _GEMM_SIZES), key=rate)


def _stream(what: str, n_threads: int) -> _Limit:
    """Copy or add large arrays, a share for each thread; NumPy lets go of the GIL within."""
    x, y, out = (np.ones(_STREAM_SIZE, np.float32) for _ in range(3))
    shares = [slice(*edges) for edges in _shares(n_threads)]
    pool = ThreadPoolExecutor(n_threads)

    def one(share: slice) -> None:
        if what == "copy":
            np.copyto(out[share], x[share])
        else:
            np.add(x[share], y[share], out=out[share])

    moved = (2 if what == "copy" else 3) * 4 * _STREAM_SIZE
    return _Limit(lambda: list(pool.map(one, shares)), gigabytes=moved / 1e9, size=_STREAM_SIZE)


def _shares(n: int) -> list[tuple[int, int]]:
    edges = [i * _STREAM_SIZE // n for i in range(n + 1)]
    return list(pairwise(edges))
