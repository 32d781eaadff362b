"""The CUDA engine: kernels for compute capability 8.0 and newer, compiled at first use by NVRTC through CuPy.

Its files have the names of the C++ engine's under ``cpp/``: a ``.cu`` file holds kernels, the ``.py`` file beside it
their launch geometry. ``plan.py`` asks a `launch.Device` for memory and launches; ``device.py`` is the one on CuPy, and
imported only where it is used, so that the rest serves machines without CuPy too.
"""

from __future__ import annotations

from functools import cache

from fastvae.kernels import Array
from fastvae.kernels.cuda import driver, noise, paths
from fastvae.kernels.cuda.launch import Device
from fastvae.kernels.cuda.plan import PRECISIONS, CudaPlan
from fastvae.network import Network

__all__ = ["INFERENCE_VALUES", "NAME", "PRECISIONS", "CudaPlan", "isa_level", "normal", "philox", "plan", "products"]

NAME = "cuda"
INFERENCE_VALUES = 2**22  # not yet measured


def isa_level() -> str:
    """Return the device and its architecture, or raise ImportError or BackendError when there is none to use."""
    from fastvae.kernels.cuda.device import describe

    return describe()


def _new_device() -> Device:
    from fastvae.kernels.cuda.device import CupyDevice

    return CupyDevice(overlap=driver.asked())


@cache
def _device_of_noise() -> Device:
    return _new_device()


def plan(network: Network, *, rows: int, draws: int, precision: str, n_threads: int) -> CudaPlan:
    """Return a plan on the current CUDA device; `n_threads` is recorded and changes nothing."""
    sizes = {"rows": rows, "draws": draws, "precision": precision, "n_threads": n_threads}
    return CudaPlan(network, device=_new_device(), name=NAME, products=paths.asked(), **sizes)


def products() -> str:
    """Say who makes the products of a step, and from where on; see `paths`. And whether its launches overlap."""
    return f"{paths.described()}{'; launches overlap' if driver.asked() else ''}"


def philox(*, counter: Array, key: Array, out: Array) -> None:
    """Philox4x32-10 blocks."""
    noise.philox(_device_of_noise(), counter=counter, key=key, out=out)


def normal(*, seed: int, step: int, stream: int, out: Array) -> None:
    """Standard normals of a stream."""
    noise.normal(_device_of_noise(), seed=seed, step=step, stream=stream, out=out)
