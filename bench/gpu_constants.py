"""What the device can do: a launch, a node of a graph, a barrier of all blocks, matrix products, memory.

Each is timed by CUDA events on a stream of its own, after a warm-up. CuPy is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np

from fastvae.kernels.cuda.launch import Matrix, Product

__all__ = ["BARRIER_SOURCE", "PRODUCTS", "as_stored", "measure_constants", "spread"]

BARRIER_SOURCE = Path(__file__).with_name("constants.cu")
_TURNS = 9
_NODES = 1000
_BARRIERS = 2000
_COPY_BYTES = 2**31
# m, n, k of the products whose rate is measured: a large one, and those of the widest target case
PRODUCTS = ((8192, 8192, 8192), (4096, 4096, 784), (4096, 784, 4096), (784, 4096, 4096))


def spread(samples: list[float]) -> dict[str, float]:
    """Return median, p20 and p80."""
    tenths = quantiles(samples, n=10, method="inclusive")
    return {"p20": tenths[1], "p50": tenths[4], "p80": tenths[7]}


def as_stored(values: Any, precision: str) -> Any:
    """Return float32 values as the products of a precision read them; those of bf16 as their upper halves."""
    bits = values.view(np.uint32)
    if precision == "bf16":
        return ((bits + 0x8000) >> 16).astype(np.uint16)
    return ((bits + 0x1000) & 0xFFFFE000).view(np.float32) if precision == "tf32" else values


def measure_constants() -> dict[str, Any]:
    """Measure all of them, each by itself: what fails is told in its place.

    Returns
    -------
    dict
        Microseconds of ``launch``, ``graph node`` and ``grid barrier``; TFLOP/s of ``products``; GB/s of ``copy``,
        bytes read and bytes written counted. JSON-serialisable.
    """
    parts = {
        "launch_us": _launch,
        "graph_node_us": _graph_node,
        "grid_barrier_us": _grid_barrier,
        "copy_gb_per_second": _copy,
        "products_tflops": _products,
    }
    results: dict[str, Any] = {}
    for name, part in parts.items():
        try:
            results[name] = part()
        except Exception as error:
            results[name] = {"failed": f"{type(error).__name__}: {error}"}
    return results


def _microseconds(work: Callable[[Any], Any], count: int) -> list[float]:
    """Time `work` on a stream several times; microseconds of one of `count`."""
    import cupy

    stream, samples = cupy.cuda.Stream(non_blocking=True), list[float]()
    with stream:
        work(stream)
        for _ in range(_TURNS):
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record(stream)
            work(stream)
            end.record(stream)
            end.synchronize()
            samples.append(1e3 * cupy.cuda.get_elapsed_time(begin, end) / count)
    return samples


def _nothing() -> Callable[[Any], None]:
    import cupy

    kernel = cupy.RawKernel('extern "C" __global__ void nothing() {}', "nothing")

    def launches(_: Any) -> None:
        for _ in range(_NODES):
            kernel((1,), (32,), ())

    return launches


def _launch() -> dict[str, float]:
    return spread(_microseconds(_nothing(), _NODES))


def _graph_node() -> dict[str, float]:
    import cupy

    launches, stream = _nothing(), cupy.cuda.Stream(non_blocking=True)
    with stream:
        launches(stream)  # compiles
        stream.begin_capture()
        launches(stream)
        graph = stream.end_capture()
    return spread(_microseconds(graph.launch, _NODES))


def _grid_barrier() -> dict[str, Any]:
    """Barriers of one block per multiprocessor, all at once on the device because the launch is cooperative."""
    import cupy

    module = cupy.RawModule(code=BARRIER_SOURCE.read_text(), backend="nvrtc", enable_cooperative_groups=True)
    kernel, blocks = module.get_function("grid_barriers"), cupy.cuda.Device().attributes["MultiProcessorCount"]
    counter, failed, total = cupy.zeros(1, np.uint32), cupy.zeros(1, np.uint32), 0
    cupy.cuda.Device().synchronize()

    def barriers(rounds: int) -> Callable[[Any], None]:
        def work(_: Any) -> None:
            nonlocal total
            kernel((blocks,), (256,), (counter, np.uint32(total % 2**32), np.int32(rounds), failed))
            total += rounds * blocks

        return work

    long, short = (_microseconds(barriers(n), 1) for n in (2 * _BARRIERS, _BARRIERS))
    if int(failed[0]):
        raise RuntimeError("a block has not come to the barrier")
    each = [(a - b) / _BARRIERS for a, b in zip(long, short, strict=True)]
    return {**spread(each), "blocks": blocks}


def _copy() -> dict[str, float]:
    import cupy

    source, to = (cupy.empty(_COPY_BYTES, np.uint8) for _ in range(2))
    source.data.memset(7, _COPY_BYTES)
    cupy.cuda.Device().synchronize()

    def work(stream: Any) -> None:
        cupy.cuda.runtime.memcpyAsync(
            to.data.ptr, source.data.ptr, _COPY_BYTES, cupy.cuda.runtime.memcpyDeviceToDevice, stream.ptr
        )

    return spread([2 * _COPY_BYTES / us / 1e3 for us in _microseconds(work, 1)])


def _products() -> list[dict[str, Any]]:
    """Products of cuBLAS on random numbers, as the engine asks for them."""
    import cupy

    sample, lines = np.random.default_rng(0).standard_normal(1_000_003, np.float32), list[dict[str, Any]]()
    for m, n, k in PRODUCTS:
        for precision in ("fp32", "tf32", "bf16"):
            # rounded on the host: CuPy's arithmetic would have to be compiled, which takes longer and wants headers
            stored = [np.resize(as_stored(sample, precision), shape) for shape in ((m, k), (k, n))]
            arrays = [*map(cupy.asarray, stored), cupy.empty((m, n), np.float32)]
            a, b, c = (Matrix(array.data.ptr, array.shape[1]) for array in arrays)
            times = _product_microseconds(Product(a, b, c, m, n, k), precision)
            rates = spread([2e-6 * m * n * k / us for us in times])
            lines.append({"m": m, "n": n, "k": k, "precision": precision, **rates})
    return lines


def _product_microseconds(product: Product, precision: str) -> list[float]:
    import cupy

    from fastvae.kernels.cuda.cublas import WORKSPACE_BYTES, Cublas
    from fastvae.kernels.cuda.device import libcublas

    workspace, handles, repeated = cupy.empty(WORKSPACE_BYTES, np.uint8), list[Cublas](), 10
    cupy.cuda.Device().synchronize()

    def work(stream: Any) -> None:
        if not handles:
            handles.append(Cublas(libcublas(), stream.ptr, workspace.data.ptr, (stream, workspace)))
        for _ in range(repeated):
            handles[0].multiply(product, precision)

    return _microseconds(work, repeated)
