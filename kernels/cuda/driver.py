"""Launches through ctypes: CuPy's own have no attributes, and so none that lets two follow each other closely.

A launch with `overlap` begins when every block of the one before has waited for its own predecessor
(`wait_for_launch_before` in ``ptx.cuh``): its prologue runs beside the other's work.
https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__EXEC.html, cuLaunchKernelEx
"""

from __future__ import annotations

import ctypes
import os
from ctypes import byref, c_char, c_int, c_uint, c_void_p, pointer
from typing import Any

from fastvae.errors import BackendError
from fastvae.kernels.cuda.launch import Launch

__all__ = ["VARIABLE", "asked", "launch"]

VARIABLE = "FASTVAE_CUDA_OVERLAP"
# cuda.h's
_PROGRAMMATIC_STREAM_SERIALIZATION = 6


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute, whose value is a union of 64 bytes."""

    _fields_ = (("id", c_int), ("padding", c_char * 4), ("value", c_int), ("rest", c_char * 60))


class _Configuration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("n_attributes", c_uint),
    )


def asked() -> bool:
    """Return whether the environment asks for overlap; without, or "off", it does not.

    Raises
    ------
    BackendError
        It says something else.
    """
    value = os.environ.get(VARIABLE) or "off"
    if value not in ("on", "off"):
        raise BackendError(f"{VARIABLE} is {value!r}: choose from on, off")
    return value == "on"


def launch(library: Any, function: int, work: Launch, stream: int, *, overlap: bool) -> int:
    """Queue a kernel.

    Parameters
    ----------
    library : ctypes.CDLL
        libcuda.
    function, stream : int
        CUfunction, CUstream.
    work : Launch
        Whose kernel `function` is.
    overlap : bool
        Whether it may begin before the launch before has ended; its kernel must wait for that.

    Returns
    -------
    int
        CUresult: 0, or the driver's error.
    """
    one = _Attribute(_PROGRAMMATIC_STREAM_SERIALIZATION, b"", 1)
    grid, block = (work.blocks, 1, 1), (work.threads, 1, 1)
    configuration = _Configuration(grid, block, work.shared_bytes, stream, pointer(one), int(overlap))
    arguments = (c_void_p * 1)(work.arguments.ctypes.data)
    return int(library.cuLaunchKernelEx(byref(configuration), c_void_p(function), arguments, None))
