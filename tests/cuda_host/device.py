"""`HostDevice`: the CUDA engine's kernels compiled for the CPU, run on NumPy memory by ``host.cpp``."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Sequence, Set
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import fastvae.kernels
from fastvae.kernels import Array
from fastvae.kernels.cuda.launch import ADDRESS, INT, LONG, Product, Work, struct

KERNELS = Path(fastvae.kernels.__file__).parent / "cuda"
HERE = Path(__file__).parent
# Contraction as in NVRTC's default; never fast-math, which would drop NaN.
FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared"]
FLAGS += ["-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-DFASTVAE_HOST"]
CANARY = np.uint8(0xA5)
GUARD = 256  # bytes on either side of an allocation
SHARED_BYTES = 163 * 1024  # the most that a block may have on sm_80
PRECISIONS = ("fp32", "tf32", "bf16")


class HostLaunch(ctypes.Structure):
    """``host.cpp``'s."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("arguments_size", ctypes.c_long),
        ("blocks", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
    )


PRODUCT = struct(
    a=ADDRESS, b=ADDRESS, c=ADDRESS, lda=LONG, ldb=LONG, ldc=LONG,
    m=INT, n=INT, k=INT, transposed_a=INT, transposed_b=INT,
)  # fmt: skip


def compiler() -> str | None:
    """Return the C++ compiler's path, or None; the fibers want Linux."""
    return shutil.which(os.environ.get("CXX", "c++")) if sys.platform == "linux" else None


@cache
def library(precision: str) -> ctypes.CDLL:
    """Compile for a precision, or take what was compiled from the same sources before."""
    sources = sorted(
        path
        for folder in (KERNELS, HERE)
        for path in folder.iterdir()
        if path.suffix in (".cu", ".cuh", ".cpp", ".hpp")
    )
    command = [
        str(compiler()),
        *FLAGS,
        f"-DFASTVAE_PRECISION={PRECISIONS.index(precision)}",
        f"-I{KERNELS}",
        f"-I{HERE}",
    ]
    digest = hashlib.sha256(b"\0".join([*(s.read_bytes() for s in sources), *map(str.encode, command)])).hexdigest()
    target = Path(tempfile.gettempdir()) / f"fastvae-cuda-host-{os.getuid()}" / f"{precision}-{digest[:16]}.so"
    if not target.exists():
        target.parent.mkdir(mode=0o700, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, str(HERE / "host.cpp"), "-o", str(partial)], check=True)
        partial.rename(target)
    return ctypes.CDLL(str(target))


class HostBuffer:
    """Zeros between two guards."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._bytes = np.full(size + 2 * GUARD + 256, CANARY)
        self._first = -(-(self._bytes.ctypes.data + GUARD) // 256) * 256 - self._bytes.ctypes.data
        self._bytes[self._first : self._first + size] = 0
        self.address = self._bytes.ctypes.data + self._first

    def check(self) -> None:
        """Fail when something was written before or behind it."""
        end = self._first + self.size
        if (self._bytes[: self._first] != CANARY).any() or (self._bytes[end:] != CANARY).any():
            raise RuntimeError(f"a kernel wrote beyond an array of {self.size} bytes")


class HostGraph:
    """Launches made by one call of the library, which no signal handler interrupts; with `overlap`, two at a time."""

    def __init__(self, device: HostDevice, launches: Sequence[Work], precision: str, *, overlap: bool = False) -> None:
        self._device, self._launches, self._library = device, list(launches), library(precision)
        self._overlap = overlap
        self._products: list[Array] = []
        self._table = (HostLaunch * len(launches))(*map(self._host_launch, self._launches))

    def _host_launch(self, launch: Work) -> HostLaunch:
        if isinstance(launch, Product):
            (a, lda), (b, ldb), (c, ldc) = launch[:3]
            self._products.append(np.array((a, b, c, lda, ldb, ldc, *launch[3:]), PRODUCT))
            return HostLaunch(None, self._products[-1].ctypes.data, 0, 0, 0, 0)
        assert launch.shared_bytes <= self._device.shared_bytes, (
            f"{launch}: {launch.shared_bytes} bytes of shared memory"
        )
        entry = ctypes.c_char.in_dll(self._library, f"entry_{launch.kernel}")
        arguments = launch.arguments
        sizes = (arguments.nbytes, launch.blocks, launch.threads, launch.shared_bytes)
        return HostLaunch(ctypes.addressof(entry), arguments.ctypes.data, *sizes)

    def launch(self) -> None:
        """Run them."""
        error = ctypes.create_string_buffer(500)
        self._device.seed += 1
        seed = ctypes.c_uint64(self._device.seed)
        done = self._library.run_launches(self._table, len(self._table), self._overlap, seed, error, len(error))
        if error.value:
            raise RuntimeError(f"{self._launches[done]}: {error.value.decode()}")
        self._device.check()


class HostDevice:
    """A device whose threads are fibers and whose memory is NumPy's; `seed` orders the fibers and the blocks.

    `uploaded` and `downloaded` have the bytes of each copy from and to the host; `under_way` are the former that a
    device might not have made yet.
    """

    rate = 1e8
    _handles = count(1000)

    def __init__(self, seed: int = 0, *, shared_bytes: int = SHARED_BYTES) -> None:
        self.seed, self.shared_bytes, self.handle = seed, shared_bytes, next(self._handles)
        self.uploaded, self.downloaded, self.under_way = list[int](), list[int](), 0
        self._buffers = weakref.WeakSet[HostBuffer]()

    def zeros(self, size: int) -> HostBuffer:
        """Allocate."""
        buffer = HostBuffer(size)
        self._buffers.add(buffer)
        return buffer

    def check(self) -> None:
        """Fail when something was written between arrays."""
        for buffer in self._buffers:
            buffer.check()

    def clear(self, address: int, size: int) -> None:
        """Fill."""
        ctypes.memset(address, 0, size)

    def upload(self, address: int, array: Array) -> None:
        """Copy in."""
        self.uploaded.append(array.nbytes)
        self.under_way += 1
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Any memory will do."""
        return np.empty(shape, dtype)

    def upload_ahead(self, address: int, array: Array) -> None:
        """Nothing is ever under way."""
        self.upload(address, array)

    def download(self, array: Array, address: int) -> None:
        """Copy out."""
        self.downloaded.append(array.nbytes)
        self.under_way = 0
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def run(self, launches: Sequence[Work], precision: str) -> None:
        """Run launches."""
        HostGraph(self, launches, precision).launch()

    def graph(self, launches: Sequence[Work], precision: str) -> HostGraph:
        """Record launches."""
        return HostGraph(self, launches, precision, overlap=True)

    def from_dlpack(self, value: Any) -> Any:
        """Return what the tests hand in."""
        return value.shared

    def follow_caller(self, streams: Set[int]) -> None:
        """There is one stream; keep what is asked for."""
        self.followed = streams

    def lead_caller(self, streams: Set[int]) -> None:
        """There is one stream."""
        assert streams == self.followed

    def synchronize(self) -> None:
        """Nothing is ever pending."""
        self.under_way = 0


class SmallDevice(HostDevice):
    """Has no room for an array of more than `limit` bytes."""

    limit = 2**62

    def zeros(self, size: int) -> HostBuffer:
        """Allocate, or not."""
        if size > self.limit:
            raise MemoryError("too small")
        return super().zeros(size)
