"""Products by cuBLAS through ctypes.

CuPy's own calls of cuBLAS are refused while a stream is captured, which cuBLAS itself allows when its stream and its
workspace are given: https://docs.nvidia.com/cuda/cublas/#cuda-graphs-support
"""

from __future__ import annotations

import os
import threading
import weakref
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_void_p
from typing import Any

from fastvae.kernels.cuda.launch import Product

__all__ = ["CAPTURING", "WORKSPACE_BYTES", "Cublas"]

# Held while a stream is captured: destroying a handle waits for the device, which breaks a capture in any thread.
CAPTURING = threading.RLock()
# What cuBLAS recommends for compute capability 9.0, and more than for the older ones.
WORKSPACE_BYTES = 32 * 2**20
# cublas_api.h's and library_types.h's
_NOT_TRANSPOSED, _TRANSPOSED = 0, 1
_FLOAT32, _BFLOAT16 = 0, 14
_COMPUTE_FLOAT32, _COMPUTE_TF32 = 68, 77
_DEFAULT_ALGORITHM = -1


class Cublas:
    """A handle on the current device, whose work goes to one stream and uses one workspace: the same bits every run.

    Parameters
    ----------
    library : ctypes.CDLL
        libcublas.
    stream, workspace : int
        CUDA stream; address of `WORKSPACE_BYTES` bytes.
    owners : object
        What the two belong to, which is kept until the handle is destroyed.

    Raises
    ------
    RuntimeError
        cuBLAS reports an error; here or in `multiply`.
    """

    def __init__(self, library: Any, stream: int, workspace: int, owners: Any) -> None:
        self._library, handle = library, c_void_p()
        library.cublasGetStatusString.restype = c_char_p
        self._call("cublasCreate_v2", byref(handle))
        self._handle = handle
        weakref.finalize(self, _destroy, library, handle, os.getpid(), owners).atexit = False
        self._call("cublasSetStream_v2", handle, c_void_p(stream))  # takes a given workspace away
        self._call("cublasSetWorkspace_v2", handle, c_void_p(workspace), c_size_t(WORKSPACE_BYTES))

    def multiply(self, product: Product, precision: str) -> None:
        """Queue a product. cuBLAS has columns where we have rows: it is asked for c^T = op(b)^T op(a)^T."""
        operand = _BFLOAT16 if precision == "bf16" else _FLOAT32
        compute = _COMPUTE_TF32 if precision == "tf32" else _COMPUTE_FLOAT32
        a, b, c = product.a, product.b, product.c
        self._call(
            "cublasGemmEx", self._handle,
            _TRANSPOSED if product.transposed_b else _NOT_TRANSPOSED,
            _TRANSPOSED if product.transposed_a else _NOT_TRANSPOSED,
            c_int(product.n), c_int(product.m), c_int(product.k), byref(c_float(1.0)),
            c_void_p(b.p), operand, c_int(b.ld), c_void_p(a.p), operand, c_int(a.ld), byref(c_float(0.0)),
            c_void_p(c.p), _FLOAT32, c_int(c.ld), compute, _DEFAULT_ALGORITHM, of=product,
        )  # fmt: skip

    def _call(self, name: str, *arguments: Any, of: Product | None = None) -> None:
        if status := getattr(self._library, name)(*arguments):
            reason = self._library.cublasGetStatusString(status).decode()
            raise RuntimeError(f"cuBLAS reports {reason} in {name}{f' of {of}' if of else ''}")


def _destroy(library: Any, handle: Any, process: int, owners: Any) -> None:
    if os.getpid() == process:  # a forked child has no CUDA
        with CAPTURING:
            library.cublasDestroy_v2(handle)
