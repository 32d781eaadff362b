"""The CUDA engine without a GPU: the same launches and ``.cu`` files, on the CPU. An engine of the tests alone."""

from __future__ import annotations

from cuda_host.device import PRECISIONS, HostDevice, compiler
from fastvae.kernels import Array
from fastvae.kernels.cuda import noise
from fastvae.kernels.cuda.plan import CudaPlan
from fastvae.network import Network

__all__ = ["NAME", "PRECISIONS", "compiler", "normal", "philox", "plan"]

NAME = "cuda-host"


def plan(network: Network, *, rows: int, draws: int, precision: str, n_threads: int) -> CudaPlan:
    """Return a plan."""
    sizes = {"rows": rows, "draws": draws, "precision": precision, "n_threads": n_threads}
    return CudaPlan(network, device=HostDevice(), name=NAME, **sizes)


def philox(*, counter: Array, key: Array, out: Array) -> None:
    """Philox blocks."""
    noise.philox(HostDevice(), counter=counter, key=key, out=out)


def normal(*, seed: int, step: int, stream: int, out: Array) -> None:
    """Standard normals of a stream."""
    noise.normal(HostDevice(), seed=seed, step=step, stream=stream, out=out)
