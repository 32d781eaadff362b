"""The noise by itself, on any device."""

from __future__ import annotations

import numpy as np

from fastvae.kernels import Array
from fastvae.kernels.checks import check_array, check_noise
from fastvae.kernels.cuda.launch import Device
from fastvae.kernels.cuda.rng import normals, philox_blocks
from fastvae.kernels.cuda.workspace import Memory

__all__ = ["normal", "philox"]


def philox(device: Device, *, counter: Array, key: Array, out: Array) -> None:
    """Philox4x32-10 blocks."""
    shape = (len(counter) if isinstance(counter, np.ndarray) and counter.ndim else 0, 4)
    check_array("counter", counter, shape, np.uint32)
    check_array("key", key, (2,), np.uint32)
    check_array("out", out, shape, np.uint32, output=True)
    if not out.size:
        return
    memory = Memory(device)
    at = {name: memory.bytes(array.nbytes) for name, array in (("counter", counter), ("key", key), ("out", out))}
    device.upload(at["counter"], counter)
    device.upload(at["key"], key)
    device.run([philox_blocks(**at, n=len(out))], "fp32")
    device.download(out, at["out"])


def normal(device: Device, *, seed: int, step: int, stream: int, out: Array) -> None:
    """Standard normals of a stream."""
    check_noise(seed=seed, step=step)
    check_array("out", out, np.shape(out), np.float32, output=True)
    if not out.size:
        return
    memory = Memory(device)
    at = memory.bytes(out.nbytes)
    device.run([normals(seed=seed, step=step, stream=stream, out=at, n=out.size)], "fp32")
    device.download(out, at)
