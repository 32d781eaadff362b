"""How every function of this engine is compiled: flags, the on-disk cache, addresses, and vectors of this machine.

Compiled functions take addresses (int64) in place of arrays: one specialisation serves every network, storage dtype and
read-only or memory-mapped input, and nothing is reference-counted inside a step.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, config, njit, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

from fastvae.errors import BackendError

__all__ = ["FLOAT", "PANEL", "TILE_ROWS", "VECTOR", "compiled", "entry", "f32", "inlined", "isa_level"]

# Contraction to fused multiply-add alone: NaN and infinity must come through, and sums keep their order.
_FLAGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}

f32: Any = np.float32  # literals are float64 otherwise
FLOAT = 4  # bytes


def _digest() -> str:
    """Checksum of this folder: Numba's cache looks at the file of a function alone, not at those that it calls."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_DIGEST = _digest()


class _Cache(FunctionCache):
    """Machine code on disk, renewed whenever a file of this folder changes."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), _DIGEST)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function that other compiled functions call."""
    return njit(**_FLAGS)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile a function into every one that calls it: LLVM makes no vectors of a loop that calls another."""
    return njit(forceinline=True, **_FLAGS)(function)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls; it is kept on disk where Numba finds a folder that it may write to."""
    dispatcher = njit(**_FLAGS)(function)
    with contextlib.suppress(RuntimeError):  # no such folder: compiled anew in every process
        dispatcher._cache = _Cache(function)
    return dispatcher


def _features() -> frozenset[str]:
    """Instruction sets that Numba compiles for: the machine's, or those of NUMBA_CPU_NAME and NUMBA_CPU_FEATURES."""
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return frozenset(part[1:] for part in (config.CPU_FEATURES or "").split(",") if part.startswith("+"))
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


_FEATURES = _features()
VECTOR = 16 if "avx512f" in _FEATURES else 8 if "avx" in _FEATURES else 4  # floats
PANEL = 2 * VECTOR  # columns of a packed panel
TILE_ROWS = 14 if VECTOR == 16 else 6  # 14 x 2 accumulators of AVX-512's 32 registers


def isa_level() -> str:
    """Return the instruction set that decides the order of sums and the rounding of products.

    Raises
    ------
    BackendError
        Numba is told not to compile.
    """
    if config.DISABLE_JIT:
        raise BackendError("backend 'numba' needs Numba's compiler: unset NUMBA_DISABLE_JIT")
    return {16: "avx512", 8: "avx2" if "fma" in _FEATURES else "avx", 4: "baseline"}[VECTOR]


vector_type = ir.VectorType(ir.FloatType(), VECTOR)


def pointer_at(builder: Any, address: Any) -> Any:
    """Emit a pointer from an address.

    Through an empty piece of assembly: Numba optimises a callee's code again after machine code was made of it, when
    LLVM may have rewritten ``inttoptr`` as an offset from null, and loads through that are undefined to it.
    """
    move = ir.FunctionType(ir.PointerType(ir.IntType(8)), [ir.IntType(64)])
    return builder.call(ir.InlineAsm(move, "", "=r,0"), [address])


@intrinsic
def _pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return pointer_at(builder, arguments[0])

    return types.voidptr(types.int64), generate


@compiled
def floats(address: int, n: int) -> Any:
    """View n float32 at an address."""
    return carray(_pointer(address), (n,), np.float32)


@compiled
def float64s(address: int, n: int) -> Any:
    """View n float64 at an address."""
    return carray(_pointer(address), (n,), np.float64)


@compiled
def int32s(address: int, n: int) -> Any:
    """View n int32 at an address."""
    return carray(_pointer(address), (n,), np.int32)


@compiled
def int64s(address: int, n: int) -> Any:
    """View n int64 at an address."""
    return carray(_pointer(address), (n,), np.int64)


@compiled
def uint32s(address: int, n: int) -> Any:
    """View n uint32 at an address."""
    return carray(_pointer(address), (n,), np.uint32)


@compiled
def bytes_at(address: int, n: int) -> Any:
    """View n uint8 at an address."""
    return carray(_pointer(address), (n,), np.uint8)
