"""The CUDA engine on the CPU: that its scheduler finds faults, and that no order of threads or blocks changes a bit."""

from __future__ import annotations

from typing import Any

import cuda_host
import numpy as np
import pytest
from cuda_host.device import HostDevice

from fastvae.kernels import Array
from fastvae.kernels.cuda.launch import ADDRESS, Launch, struct
from fastvae.kernels.cuda.plan import CudaPlan
from fastvae.kernels.cuda.workspace import Memory
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer

pytestmark = pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler for the CUDA kernels' twin")


def run_fault(kernel: str, threads: int, *, seed: int = 0) -> Array:
    """Run a kernel of ``faults.cu`` on one block; return the 64 floats it is given, at first 0 to 63."""
    device = HostDevice(seed)
    memory, out = Memory(device), np.arange(64, dtype=np.float32)
    at = memory.floats(64)
    device.upload(at, out)
    shared_bytes = 4 * max(32, threads)
    device.run([Launch.of("faults", kernel, struct(out=ADDRESS), (1,), threads, shared_bytes, out=at)], "fp32")
    device.download(out, at)
    return out


@pytest.mark.parametrize(
    ("kernel", "threads", "message"),
    [
        ("barrier_of_half_the_threads", 64, "divergent threads: thread 0 waits at a barrier.* thread 32 has finished"),
        ("two_barriers", 64, "divergent threads: thread 0 waits at a barrier.* thread 32 waits at a barrier"),
        ("shuffle_of_half_a_warp", 32, "divergent threads: thread 0 waits in an operation of its warp"),
        ("shuffle_of_a_short_warp", 48, "divergent threads: thread 0 has finished.* thread 32 waits in an operation"),
        ("write_behind_shared_memory", 32, "shared memory is written out of bounds"),
        ("copies_without_a_wait", 32, "a thread ends with asynchronous copies that it has not waited for"),
        ("missing_barrier", 32, "arguments of 8 bytes and 32 threads, not 8 and 64"),
    ],
)
def test_a_fault_is_reported(kernel: str, threads: int, message: str) -> None:
    with pytest.raises(
        RuntimeError, match=rf"{kernel}\(\) on 1 blocks of {threads} threads: block \(0, 0\): {message}"
    ):
        run_fault(kernel, threads)
    np.testing.assert_array_equal(run_fault("missing_barrier", 64).shape, (64,))  # the scheduler goes on


def test_a_write_between_arrays_is_reported() -> None:
    device = HostDevice()
    at = Memory(device)
    out = at.bytes(64)
    launch = Launch.of("faults", "write_behind_an_array", struct(out=ADDRESS), (1,), 32, out=out + 256 - 128)
    with pytest.raises(RuntimeError, match="wrote beyond an array of 256 bytes"):
        device.run([launch], "fp32")


def test_a_copy_that_is_not_waited_for_has_not_happened() -> None:
    assert np.isnan(run_fault("read_before_a_copy", 32)[:32]).all()


def test_a_missing_barrier_shows() -> None:
    results = [run_fault("missing_barrier", 64, seed=seed) for seed in range(4)]
    assert all(np.isnan(result).any() for result in results)
    assert len({result.tobytes() for result in results}) > 1


NETWORKS = {
    "bernoulli": (Network(131, 5, encoder_hidden=(67,), decoder_hidden=(33,)), 37, 1),
    "gaussian": (Network(40, 3, (67, 9), (33,), activation="softplus", likelihood="gaussian"), 19, 2),
}


@pytest.mark.parametrize("precision", cuda_host.PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_order_of_threads_changes_a_bit(name: str, precision: str) -> None:
    """Threads and blocks in orders of their own, launch by launch."""
    network, rows, draws = NETWORKS[name]
    draw = np.random.default_rng(0)
    data, order = draw.integers(0, 256, (90, network.data_dim)).astype(np.uint8), draw.integers(0, 90, (3, rows))
    results = set()
    for seed in (0, 1000, 2000):
        sizes: dict[str, Any] = {"rows": rows, "draws": draws, "precision": precision, "n_threads": 1}
        plan = CudaPlan(network, device=HostDevice(seed), name="cuda-host", **sizes)
        params, state = initialise(network, seed=2), np.zeros((2, network.layout.size), np.float32)
        stats, done = np.zeros((3, 2)), np.zeros(1, np.int64)
        plan.train_steps(
            params=params,
            state=state,
            optimizer=Optimizer("adam"),
            data=data,
            order=order,
            scale=1 / 255,
            binarize="none",
            seed=3,
            step=0,
            kl_weight=1.0,
            kl_warmup=2,
            decay=1e-3,
            stats=stats,
            done=done,
        )
        assert done[0] == 3
        results.add(params.tobytes() + state.tobytes() + stats.tobytes())
    assert len(results) == 1
