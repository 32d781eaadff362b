"""`CupyDevice`: memory, launches and graphs through CuPy. The one file that touches CuPy."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from functools import cache
from math import prod
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime

from fastvae.errors import BackendError, one_line
from fastvae.kernels import Array
from fastvae.kernels.cuda import driver
from fastvae.kernels.cuda.cublas import CAPTURING, WORKSPACE_BYTES, Cublas
from fastvae.kernels.cuda.launch import Launch, Product, Work
from fastvae.kernels.cuda.paths import VARIABLE
from fastvae.kernels.cuda.sources import FILES, options, source_of

__all__ = ["CupyDevice", "describe", "libcublas"]

_OLDEST = (8, 0)  # cp.async, and mma of tf32 and bf16
_OLDEST_OVERLAP, _DRIVER_OVERLAP = (9, 0), 12030  # launches of a graph that overlap
_DEVICE_ERRORS = (runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError)
_MAX_SHARED_BYTES = 97  # cudaDevAttrMaxSharedMemoryPerBlockOptin
_WITHOUT_ASKING = 48 * 1024  # bytes of shared memory that a kernel may have by default


@cache
def describe() -> str:
    """Return the current device's name and architecture, as "NVIDIA H200 (sm_90)".

    Raises
    ------
    BackendError
        There is no driver, no device, or one that is too old: in one line, with the mend.
    """
    try:
        if runtime.driverGetVersion() == 0:
            raise BackendError("backend 'cuda' finds no NVIDIA driver: install one, or choose another backend")
        if runtime.getDeviceCount() == 0:
            raise BackendError("backend 'cuda' finds no CUDA device: is CUDA_VISIBLE_DEVICES empty?")
        properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    except runtime.CUDARuntimeError as error:
        raise BackendError(
            f"backend 'cuda' cannot use the driver ({one_line(error)}): install a driver for CUDA "
            f"{runtime.runtimeGetVersion() // 1000}, or the extra for an older one, pip install 'fastvae[cuda12]'"
        ) from None
    name, architecture = properties["name"].decode(), (properties["major"], properties["minor"])
    if architecture < _OLDEST:
        raise BackendError(f"backend 'cuda' needs compute capability 8.0 or newer, and {name} has {architecture}")
    return f"{name} (sm_{architecture[0]}{architecture[1]})"


class _CupyBuffer:
    def __init__(self, pointer: Any, size: int) -> None:
        self._pointer, self.size, self.address = pointer, size, int(pointer.ptr)


class _CupyGraph:
    def __init__(self, device: CupyDevice, graph: Any, launches: Sequence[Work]) -> None:
        self._device, self._graph, self._launches = device, graph, launches

    def launch(self) -> None:
        """Queue it."""
        with self._device.used_by(self._launches):
            self._graph.launch(self._device.stream)


class CupyDevice:
    """The device that is current when this object is made, and a stream of its own on it.

    Parameters
    ----------
    overlap : bool
        Whether a graph's launches may begin before those before them have ended, see `driver`.

    Raises
    ------
    BackendError
        As `describe`; `overlap` is asked of a device or a driver that has no such launches; or, in any method, when it
        is used in a forked child.
    """

    rate = 1e13

    def __init__(self, *, overlap: bool = False) -> None:
        describe()
        if overlap:
            _check_overlap()
        self.shared_bytes = runtime.deviceGetAttribute(_MAX_SHARED_BYTES, cupy.cuda.Device().id)
        self._overlap, self._device, self._process = overlap, cupy.cuda.Device(), os.getpid()
        self.stream, self._copies = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        self.handle = int(self.stream.ptr)
        self._recent: Sequence[Work] = ()
        self._products: Cublas | None = None

    @contextmanager
    def used_by(self, launches: Sequence[Work] = ()) -> Iterator[None]:
        """Make the device and the stream current; say which kernels an error comes from."""
        if self._process != os.getpid():
            raise BackendError("CUDA does not work in a forked child: make the plan in the child, started by 'spawn'")
        self._recent = launches or self._recent
        try:
            with self._device, self.stream:
                if not cupy.cuda.driver.ctxGetCurrent():
                    runtime.free(0)  # makes the device's context current on a thread where nothing else has
                yield
        except _DEVICE_ERRORS as error:
            kernels = "; ".join(dict.fromkeys(map(str, self._recent)))
            raise RuntimeError(f"the CUDA device reports {one_line(error)}, in or after: {kernels}") from error

    def zeros(self, size: int) -> _CupyBuffer:
        """Allocate from CuPy's pool, which keeps what is freed for others."""
        with self.used_by():
            try:
                pointer = cupy.cuda.alloc(size)
            except cupy.cuda.memory.OutOfMemoryError:
                free, total = runtime.memGetInfo()
                raise MemoryError(
                    f"the CUDA device has {free / 2**20:.0f} of {total / 2**20:.0f} MB free, too few for an array "
                    f"of {size / 2**20:.0f} MB"
                ) from None
            pointer.memset_async(0, size, self.stream)
            return _CupyBuffer(pointer, size)

    def clear(self, address: int, size: int) -> None:
        """Fill."""
        with self.used_by():
            runtime.memsetAsync(address, 0, size, self.stream.ptr)

    def upload(self, address: int, array: Array) -> None:
        """Copy in."""
        if array.nbytes:
            with self.used_by():
                kind = runtime.memcpyHostToDevice
                runtime.memcpyAsync(address, array.ctypes.data, array.nbytes, kind, self.stream.ptr)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Allocate memory of the host that the device reads by itself."""
        with self.used_by():
            count = prod(shape)
            memory = cupy.cuda.alloc_pinned_memory(max(count, 1) * np.dtype(dtype).itemsize)
            return np.frombuffer(memory, dtype, count).reshape(shape)

    def upload_ahead(self, address: int, array: Array) -> None:
        """Copy in on a stream beside the other."""
        if not array.nbytes:
            return
        with self.used_by():
            kind = runtime.memcpyHostToDevice
            runtime.memcpyAsync(address, array.ctypes.data, array.nbytes, kind, self._copies.ptr)
            self.stream.wait_event(self._copies.record(cupy.cuda.Event(disable_timing=True)))

    def download(self, array: Array, address: int) -> None:
        """Copy out."""
        with self.used_by():
            if array.nbytes:
                kind = runtime.memcpyDeviceToHost
                runtime.memcpyAsync(array.ctypes.data, address, array.nbytes, kind, self.stream.ptr)
            self.stream.synchronize()

    def run(self, launches: Sequence[Work], precision: str, *, overlap: bool = False) -> None:
        """Queue launches."""
        with self.used_by(launches):
            for launch in launches:
                if isinstance(launch, Product):
                    self._cublas().multiply(launch, precision)
                else:
                    function = self._function(launch, precision).kernel.ptr
                    status = driver.launch(_libcuda(), function, launch, self.stream.ptr, overlap=overlap)
                    cupy.cuda.driver.check_status(status)

    def graph(self, launches: Sequence[Work], precision: str) -> _CupyGraph:
        """Capture launches.

        Kernels are compiled and loaded before, which a capture does not allow: cuBLAS's by making each product once.
        """
        with self.used_by(launches):
            for launch in launches:
                if not isinstance(launch, Product):
                    self._function(launch, precision)
            self.run(list(dict.fromkeys(launch for launch in launches if isinstance(launch, Product))), precision)
            with CAPTURING, _without_collection():
                self.stream.begin_capture()
                try:
                    self.run(launches, precision, overlap=self._overlap)
                finally:
                    graph = self.stream.end_capture()
            return _CupyGraph(self, graph, launches)

    def from_dlpack(self, value: Any) -> Any:
        """Share memory through CuPy."""
        with self.used_by():
            return cupy.from_dlpack(value)

    def follow_caller(self, streams: Set[int]) -> None:
        """Wait, on the device, for CuPy's current stream, for the default stream, which is torch's, and for these."""
        handles = self._callers_streams(streams)
        with self.used_by():
            for handle in handles:
                event = cupy.cuda.Event(disable_timing=True)
                runtime.eventRecord(event.ptr, handle)
                self.stream.wait_event(event)

    def lead_caller(self, streams: Set[int]) -> None:
        """Let them wait, on the device."""
        handles = self._callers_streams(streams)
        with self.used_by():
            event = self.stream.record(cupy.cuda.Event(disable_timing=True))
            for handle in handles:
                runtime.streamWaitEvent(handle, event.ptr)

    def _callers_streams(self, streams: Set[int]) -> set[int]:
        """Handles; 1 and 2, the default streams of the CUDA array interface, are CUDA's own handles of them."""
        return {cupy.cuda.Stream.null.ptr, cupy.cuda.get_current_stream(self._device.id).ptr, *streams}

    def synchronize(self) -> None:
        """Wait."""
        with self.used_by():
            self.stream.synchronize()

    def _cublas(self) -> Cublas:
        if self._products is None:
            workspace = self.zeros(WORKSPACE_BYTES)
            self._products = Cublas(libcublas(), self.stream.ptr, workspace.address, (self.stream, workspace))
        return self._products

    def _function(self, launch: Launch, precision: str) -> Any:
        precision = precision if FILES[launch.file] else "fp32"
        function = _loaded(launch.file, launch.kernel, precision, self._device.id)
        if launch.shared_bytes > max(_WITHOUT_ASKING, function.max_dynamic_shared_size_bytes):
            function.max_dynamic_shared_size_bytes = launch.shared_bytes
        return function


def _check_overlap() -> None:
    properties = runtime.getDeviceProperties(cupy.cuda.Device().id)
    if (properties["major"], properties["minor"]) < _OLDEST_OVERLAP or runtime.driverGetVersion() < _DRIVER_OVERLAP:
        raise BackendError(
            f"{driver.VARIABLE}=on needs compute capability 9.0 and a driver for CUDA 12.3, or newer ones: leave it out"
        )


@cache
def _libcuda() -> Any:
    return ctypes.CDLL("libcuda.so.1")


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep the garbage collector from destroying a handle in this thread, which has the lock already."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@cache
def libcublas() -> Any:
    """Return the library that CuPy finds, wherever that is, and loads."""
    try:
        from cupy_backends.cuda.libs import cublas as _loads_it  # noqa: F401

        return ctypes.CDLL(f"libcublas.so.{runtime.runtimeGetVersion() // 1000}")
    except (ImportError, OSError) as error:
        raise BackendError(
            f"backend 'cuda' finds no cuBLAS ({one_line(error)}): pip install 'cupy-cuda13x[ctk]', or set "
            f"{VARIABLE}=own to do without"
        ) from None


@cache
def _loaded(file: str, kernel: str, precision: str, device: int) -> Any:
    """Return a kernel that is compiled, and loaded on the device, which is current."""
    try:
        function = _module(file, precision).get_function(kernel)
        _ = function.num_regs  # compiles and loads it
    except _DEVICE_ERRORS:
        raise
    except (cupy.cuda.compiler.CompileException, RuntimeError) as error:  # the latter: no NVRTC, or no headers of CUDA
        raise BackendError(f"backend 'cuda' cannot compile {file}.cu for device {device}: {one_line(error)}") from error
    return function


@cache
def _module(file: str, precision: str) -> Any:
    return cupy.RawModule(code=source_of(file), options=options(file, precision), backend="nvrtc")
