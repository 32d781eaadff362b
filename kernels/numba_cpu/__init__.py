"""The Numba engine: the kernels compiled at first use by LLVM, for machines without a C++ compiler.

Its files have the names of the C++ engine's under ``cpp/``. Compiled code is kept on disk, in ``__pycache__`` here or,
where that cannot be written, in Numba's own folder; ``NUMBA_CACHE_DIR`` names another.
"""

from __future__ import annotations

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.checks import check_array, check_noise
from fastvae.kernels.numba_cpu import operations
from fastvae.kernels.numba_cpu.compile import isa_level
from fastvae.kernels.numba_cpu.plan import NAME, PRECISIONS, NumbaPlan
from fastvae.kernels.numba_cpu.thread_pool import run_team
from fastvae.network import Network

__all__ = ["NAME", "PRECISIONS", "NumbaPlan", "isa_level", "normal", "philox", "plan"]


def plan(network: Network, *, rows: int, draws: int, precision: str, n_threads: int) -> NumbaPlan:
    """Return a plan."""
    return NumbaPlan(network, rows=rows, draws=draws, precision=precision, n_threads=n_threads)


def philox(*, counter: Array, key: Array, out: Array) -> None:
    """Philox4x32-10 blocks."""
    shape = (len(counter) if isinstance(counter, np.ndarray) and counter.ndim else 0, 4)
    check_array("counter", counter, shape, np.uint32)
    check_array("key", key, (2,), np.uint32)
    check_array("out", out, shape, np.uint32, output=True)
    run_team(1, operations.philox, counter.ctypes.data, key.ctypes.data, out.ctypes.data, len(counter))


def normal(*, seed: int, step: int, stream: int, out: Array) -> None:
    """Standard normals of a stream."""
    check_noise(seed=seed, step=step)
    check_array("out", out, np.shape(out), np.float32, output=True)
    run_team(1, operations.normal, np.uint64(seed), np.uint64(step), int(stream), out.ctypes.data, out.size)
