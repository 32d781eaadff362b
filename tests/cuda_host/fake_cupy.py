"""A stand-in for CuPy, as much of it as ``kernels/cuda/device.py`` uses, on the CPU: kernels run as on `HostDevice`.

It keeps some of CuPy's rules: a kernel may have 48 KB of shared memory unless it has asked for more; what a capture
records runs when its graph is launched, and nothing else may happen on the stream meanwhile.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cuda_host.device import PRECISIONS, HostBuffer, HostDevice, HostGraph, library
from fastvae.kernels.cuda.launch import Launch

__all__ = ["installed"]

DEVICE = HostDevice()


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


class CUDADriverError(RuntimeError):
    """As CuPy's."""


def check_status(status: int) -> None:
    """As CuPy's, of the driver."""
    if status:
        raise CUDADriverError(f"status {status}")


class CompileException(Exception):  # noqa: N818
    """As CuPy's."""


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class Runtime(ModuleType):
    """``cupy.cuda.runtime`` of one device; the attributes are what a test may turn."""

    CUDARuntimeError = CUDARuntimeError
    memcpyHostToDevice, memcpyDeviceToHost = 1, 2  # noqa: N815
    driver_version, devices, capability, free = 13000, 1, (9, 0), 2**30
    is_lost = False  # the context, to a failed kernel
    cublas: Cublas
    libcuda: Libcuda

    def deviceSynchronize(self) -> None:  # noqa: N802
        if self.is_lost:
            raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    def driverGetVersion(self) -> int:  # noqa: N802
        return self.driver_version

    def runtimeGetVersion(self) -> int:  # noqa: N802
        return 13000

    def getDeviceCount(self) -> int:  # noqa: N802
        if not self.devices:
            raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return self.devices

    def getDeviceProperties(self, device: int) -> dict[str, Any]:  # noqa: N802
        return {"name": b"Stand-in", "major": self.capability[0], "minor": self.capability[1]}

    def deviceGetAttribute(self, attribute: int, device: int) -> int:  # noqa: N802
        assert attribute == 97
        return DEVICE.shared_bytes

    def memGetInfo(self) -> tuple[int, int]:  # noqa: N802
        return self.free, 2**30

    def memcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> None:  # noqa: N802
        assert kind in (1, 2)
        assert not Stream.by_handle[stream].capturing, "a copy between host and device within a capture"
        ctypes.memmove(to, source, size)

    def memsetAsync(self, to: int, value: int, size: int, stream: int) -> None:  # noqa: N802
        assert not Stream.by_handle[stream].capturing
        ctypes.memset(to, value, size)

    def eventRecord(self, event: int, stream: int) -> None:  # noqa: N802
        Stream.seen.append(("record", stream))

    def streamWaitEvent(self, stream: int, event: int) -> None:  # noqa: N802
        Stream.seen.append(("wait", stream))


class Device:
    """``cupy.cuda.Device``."""

    id = 0

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class Event:
    """``cupy.cuda.Event``."""

    ptr = 1

    def __init__(self, *, disable_timing: bool) -> None:
        assert disable_timing


class Graph:
    """``cupy.cuda.Graph``."""

    def __init__(self, nodes: list[Any]) -> None:
        self.nodes = nodes

    def launch(self, stream: Stream) -> None:
        for node in self.nodes:
            node.launch()


class Stream:
    """``cupy.cuda.Stream``."""

    null: Stream
    current: Stream
    by_handle: dict[int, Stream] = {}  # noqa: RUF012
    seen: list[tuple[str, int]] = []  # noqa: RUF012

    def __init__(self, *, non_blocking: bool) -> None:
        self.ptr = 1000 + len(self.by_handle) if non_blocking else 0
        self.by_handle[self.ptr], self.capturing, self.nodes = self, False, list[Any]()

    def __enter__(self) -> Stream:
        self.before, Stream.current = Stream.current, self
        return self

    def __exit__(self, *_: Any) -> None:
        Stream.current = self.before

    def synchronize(self) -> None:
        assert not self.capturing

    def record(self, event: Event) -> Event:
        return event

    def wait_event(self, event: Event) -> None:
        pass

    def begin_capture(self) -> None:
        self.capturing, self.nodes = True, []

    def end_capture(self) -> Graph:
        self.capturing = False
        return Graph(self.nodes)


class RawKernel:
    """``cupy.RawKernel`` out of a module."""

    num_regs, max_dynamic_shared_size_bytes = 32, 48 * 1024
    by_pointer: list[RawKernel] = []  # noqa: RUF012

    def __init__(self, name: str, precision: str) -> None:
        self.name, self.precision = name, precision
        self.by_pointer.append(self)
        self.kernel = SimpleNamespace(ptr=len(self.by_pointer))


class Libcuda:
    """libcuda, as much of it as ``driver.py`` calls; `overlapping` has the names of the kernels launched so."""

    def __init__(self) -> None:
        self.status, self.overlapping = 0, list[str]()

    def cuLaunchKernelEx(self, configuration: Any, function: Any, arguments: Any, extra: Any) -> int:  # noqa: N802
        given, kernel = configuration._obj, RawKernel.by_pointer[function.value - 1]
        attributes = [given.attributes[i] for i in range(given.n_attributes)]
        assert all((attribute.id, attribute.value) == (6, 1) for attribute in attributes)
        assert (*given.grid[1:], *given.block[1:]) == (1, 1, 1, 1)
        self.overlapping += [kernel.name] * len(attributes)
        if given.shared_bytes > kernel.max_dynamic_shared_size_bytes:
            return 1
        size = ctypes.c_long.in_dll(library(kernel.precision), f"entry_{kernel.name}").value
        copied = np.frombuffer(ctypes.string_at(arguments[0], size), np.uint8).copy()
        launch = Launch("", kernel.name, given.grid[0], given.block[0], copied, given.shared_bytes)
        node, stream = HostGraph(DEVICE, [launch], kernel.precision), Stream.by_handle[given.stream]
        if stream.capturing:
            assert not gc.isenabled(), "a collection within a capture may destroy what waits for the device"
            stream.nodes.append(node)
        else:
            node.launch()
        return self.status


class RawModule:
    """``cupy.RawModule``."""

    def __init__(self, *, code: str, options: tuple[str, ...], backend: str) -> None:
        macro = re.fullmatch(r"-std=c\+\+17 -DFASTVAE_PRECISION=(\d)", " ".join(options))
        assert macro, options
        assert backend == "nvrtc"
        self.code, self.precision = code, PRECISIONS[int(macro[1])]

    def get_function(self, name: str) -> RawKernel:
        assert re.search(rf"^(AHEAD_)?KERNEL\({name},", self.code, re.MULTILINE), f"no kernel {name} in this source"
        return RawKernel(name, self.precision)


class Cublas:
    """libcublas, as much of it as ``cublas.py`` calls, by columns as BLAS has it."""

    def __init__(self) -> None:
        self.cublasGetStatusString = lambda status: f"status {status}".encode()  # takes a restype, as ctypes' do
        self.status, self.stream, self.workspace = 0, 0, 0

    def cublasCreate_v2(self, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 77
        return self.status

    def cublasDestroy_v2(self, handle: Any) -> int:  # noqa: N802
        assert not any(stream.capturing for stream in Stream.by_handle.values())
        return 0

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:  # noqa: N802
        self.stream, self.workspace = stream.value, 0
        return 0

    def cublasSetWorkspace_v2(self, handle: Any, workspace: Any, size: Any) -> int:  # noqa: N802
        assert size.value == 32 * 2**20
        self.workspace = workspace.value
        return 0

    def cublasGemmEx(self, handle: Any, *arguments: Any) -> int:  # noqa: N802
        assert handle.value == 77
        assert self.workspace % 256 == 0 < self.workspace
        stream = Stream.by_handle[self.stream]
        node = CublasNode(*(getattr(getattr(a, "_obj", a), "value", getattr(a, "_obj", a)) for a in arguments))
        if stream.capturing:
            stream.nodes.append(node)
        else:
            node.launch()
        return self.status


class CublasNode:
    """``c = alpha op(a) op(b) + beta c``, matrices by columns."""

    def __init__(self, *arguments: Any) -> None:
        transposed_a, transposed_b, m, n, k, self.alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc = (
            arguments[:-2]
        )
        compute, algorithm = arguments[-2:]
        assert (type_a, type_c, beta, algorithm) == (type_b, 0, 0, -1)
        assert compute in ((68,) if type_a == 14 else (68, 77))
        self.tf32 = compute == 77
        # what tensor cores want: 16 bytes wherever memory is contiguous
        itemsize, contiguous = (2 if type_a == 14 else 4), (k if transposed_a else m, n if transposed_b else k, m)
        assert all(extent * itemsize % 16 == 0 for extent in (*contiguous, lda, ldb, ldc))
        assert all(address % 16 == 0 for address in (a, b, c))
        self.a = self.columns(a, type_a, *((k, m) if transposed_a else (m, k)), lda)
        self.b = self.columns(b, type_b, *((n, k) if transposed_b else (k, n)), ldb)
        self.c = self.columns(c, type_c, m, n, ldc)
        self.a, self.b = self.a.T if transposed_a else self.a, self.b.T if transposed_b else self.b

    @staticmethod
    def columns(address: int, kind: int, rows: int, columns: int, ld: int) -> Any:
        assert rows <= ld
        size = (columns - 1) * ld + rows
        flat = np.ctypeslib.as_array(((ctypes.c_uint16 if kind == 14 else ctypes.c_float) * size).from_address(address))
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), (flat.itemsize, ld * flat.itemsize))

    def operand(self, stored: Any) -> Any:
        if stored.dtype == np.uint16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return (stored.copy().view(np.uint32) & 0xFFFFE000).view(np.float32) if self.tf32 else stored

    def launch(self) -> None:
        self.c[:] = self.alpha * (self.operand(self.a) @ self.operand(self.b))


class Pointer:
    """``cupy.cuda.MemoryPointer``, with something in it."""

    def __init__(self, size: int) -> None:
        self.buffer = HostBuffer(size)
        self.ptr = self.buffer.address
        ctypes.memset(self.ptr, 0xFF, size)

    def memset_async(self, value: int, size: int, stream: Stream) -> None:
        assert size <= self.buffer.size
        ctypes.memset(self.ptr, value, size)


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    """Let ``import cupy`` find this, and ``device.py`` be imported anew."""
    cupy, cuda, runtime = ModuleType("cupy"), ModuleType("cupy.cuda"), Runtime("cupy.cuda.runtime")
    cupy.cuda, cupy.RawModule = cuda, RawModule  # type: ignore[attr-defined]
    cupy.from_dlpack = lambda value: value.shared  # type: ignore[attr-defined]
    cupy.asarray = np.array  # type: ignore[attr-defined]
    Stream.null = Stream.current = Stream(non_blocking=False)
    Stream.seen.clear()

    def alloc(size: int) -> Pointer:
        assert Stream.current is not Stream.null, "memory of another stream"
        if size > runtime.free:
            raise OutOfMemoryError
        return Pointer(size)

    members = {
        "runtime": runtime,
        "Device": Device,
        "Event": Event,
        "Stream": Stream,
        "alloc": alloc,
        "alloc_pinned_memory": bytearray,
        "get_current_stream": lambda device: Stream.current,
        "driver": ModuleType("driver"),
        "compiler": ModuleType("compiler"),
        "memory": ModuleType("memory"),
    }
    for name, member in members.items():
        setattr(cuda, name, member)
    cuda.driver.CUDADriverError = CUDADriverError  # type: ignore[attr-defined]
    cuda.driver.ctxGetCurrent = lambda: 1  # type: ignore[attr-defined]
    cuda.driver.check_status = check_status  # type: ignore[attr-defined]
    cuda.compiler.CompileException = CompileException  # type: ignore[attr-defined]
    cuda.memory.OutOfMemoryError = OutOfMemoryError  # type: ignore[attr-defined]
    libs, load = ModuleType("cupy_backends.cuda.libs"), ctypes.CDLL
    runtime.cublas, runtime.libcuda = Cublas(), Libcuda()
    libraries = {"libcublas.so.13": runtime.cublas, "libcuda.so.1": runtime.libcuda}
    libs.cublas = ModuleType("cupy_backends.cuda.libs.cublas")  # type: ignore[attr-defined]
    backends = ModuleType("cupy_backends"), ModuleType("cupy_backends.cuda")
    for module in (cupy, cuda, runtime, *backends, libs):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libraries.get(name) or load(name))
    monkeypatch.delitem(sys.modules, "fastvae.kernels.cuda.device", raising=False)
    yield runtime
    sys.modules.pop("fastvae.kernels.cuda.device", None)
