"""`CupyDevice` on a stand-in for CuPy: what it asks for, in which order, and what it says when it is refused."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from typing import Any

import cuda_host
import numpy as np
import pytest
from cuda_host import fake_cupy
from test_cuda_host import OnDevice, Training
from tolerances import relative_norm, tolerance

from fastvae import backends
from fastvae.cli.commands import run as fastvae
from fastvae.errors import BackendError
from fastvae.kernels import cuda
from fastvae.kernels.cuda import driver, paths, train_steps
from fastvae.network import Network

pytestmark = pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler for the CUDA kernels' twin")
NETWORK = Network(20, 2, (9,), (8,))
SIZES: dict[str, Any] = {"rows": 8, "draws": 1, "n_threads": 1}


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_cupy.Runtime]:
    """Replace CuPy."""
    with fake_cupy.installed(monkeypatch) as fake:
        yield fake


@pytest.mark.parametrize("precision", cuda.PRECISIONS)
def test_it_trains_to_the_bits_of_the_other_device(
    runtime: fake_cupy.Runtime, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Chunks of several graphs, kernels that ask for more shared memory, and steps behind the last."""
    monkeypatch.setattr(train_steps, "_MAX_GRAPH_STEPS", 3)
    network = Network(784, 20, (70,), (60,))
    expected, training = (Training(network, rows=8, steps=5) for _ in range(2))
    expected.run(expected.plan(precision=precision))
    training.run(cuda.plan(network, precision=precision, **SIZES))
    assert training.bits() == expected.bits()
    assert training.done[0] == 5


def test_launches_of_a_graph_overlap_when_asked_for(
    runtime: fake_cupy.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, and no other: outside the fused loop a launch may write what the next one reads ahead."""
    expected, training = (Training(NETWORK, rows=8, steps=2) for _ in range(2))
    expected.run(expected.plan())
    monkeypatch.setenv(driver.VARIABLE, "on")
    training.run(cuda.plan(NETWORK, precision="fp32", **SIZES))
    assert training.bits() == expected.bits()
    kernels = [re.sub("_(small|split)$", "", name) for name in runtime.libcuda.overlapping]
    middle = ["sample_rows", "bernoulli_layer", "output_backward", "sample_backward", "weight_gradients"]
    assert kernels == ["first_layer", *middle] * 2


@pytest.mark.parametrize("turned", [{"capability": (8, 9)}, {"driver_version": 12020}])
def test_overlap_where_there_is_none_is_refused(
    runtime: fake_cupy.Runtime, monkeypatch: pytest.MonkeyPatch, turned: dict[str, Any]
) -> None:
    monkeypatch.setenv(driver.VARIABLE, "on")
    for name, value in turned.items():
        setattr(runtime, name, value)
    with pytest.raises(BackendError, match=r"=on needs compute capability 9.0 and a driver for CUDA 12.3"):
        cuda.plan(NETWORK, precision="fp32", **SIZES)
    monkeypatch.setenv(driver.VARIABLE, "perhaps")
    with pytest.raises(BackendError, match="FASTVAE_CUDA_OVERLAP is 'perhaps': choose from on, off"):
        cuda.plan(NETWORK, precision="fp32", **SIZES)


def test_what_the_driver_reads_lies_where_it_looks() -> None:
    """cuda.h's CUlaunchConfig and CUlaunchAttribute on 64 bits."""
    configuration, attribute = driver._Configuration, driver._Attribute
    names = ("block", "shared_bytes", "stream", "attributes", "n_attributes")
    assert [getattr(configuration, name).offset for name in names] == [12, 24, 32, 40, 48]
    assert (ctypes.sizeof(configuration), ctypes.sizeof(attribute), attribute.value.offset) == (56, 72, 8)


@pytest.mark.parametrize("precision", cuda.PRECISIONS)
def test_products_of_cublas_are_captured_too(
    runtime: fake_cupy.Runtime, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """On its stream and workspace, by columns, to what the other device's products by rows come to."""
    network = Network(33, 5, (31, 9), (17,))
    expected, training = (Training(network, rows=8, steps=5) for _ in range(2))
    expected.run(expected.plan(precision=precision, products="cublas"))
    monkeypatch.setenv(paths.VARIABLE, "cublas")
    plan = cuda.plan(network, precision=precision, **SIZES)
    assert plan.path == "cublas"
    for steps in (2, 5):  # the second graph is another
        training = Training(network, rows=8, steps=5)
        training.run(plan, steps=steps)
        assert training.done[0] == steps
    limit = tolerance("trajectory", precision) / 10
    assert relative_norm(training.params, expected.params) < limit
    np.testing.assert_allclose(training.stats, expected.stats, rtol=limit)


def test_what_cublas_reports_is_said(runtime: fake_cupy.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.VARIABLE, "cublas")
    runtime.cublas.status = 15
    training = Training(NETWORK, rows=8)
    with pytest.raises(RuntimeError, match="cuBLAS reports status 15 in cublasCreate_v2"):
        training.run(cuda.plan(NETWORK, precision="fp32", **SIZES))
    plan, runtime.cublas.status = cuda.plan(NETWORK, precision="fp32", **SIZES), 0
    training.run(plan)
    runtime.cublas.status = 15
    with pytest.raises(RuntimeError, match="in cublasGemmEx of a product of 7 x 32 and 32 x 16"):
        Training(NETWORK, rows=7).run(plan)


def test_a_missing_cublas_is_told_with_its_mend(runtime: fake_cupy.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.VARIABLE, "cublas")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: os.stat(f"/nowhere/{name}"))
    expected = (
        r"finds no cuBLAS \(.*libcublas.so.13.*\): pip install 'cupy-cuda13x\[ctk\]', or set .*=own to do without"
    )
    with pytest.raises(BackendError, match=expected):
        Training(NETWORK, rows=8).run(cuda.plan(NETWORK, precision="fp32", **SIZES))


def test_rows_without_room_on_the_device_are_copied_beside_the_steps(runtime: fake_cupy.Runtime) -> None:
    expected, training = (Training(NETWORK, rows=8, steps=7) for _ in range(2))
    for each in (expected, training):
        each.data = np.tile(each.data, (100, 1))
    runtime.free = training.data.nbytes - 1
    training.run(cuda.plan(NETWORK, precision="fp32", **SIZES))
    assert training.bits() == expected.run(expected.plan()).bits()


def test_the_streams_of_the_caller_are_followed_and_led(runtime: fake_cupy.Runtime) -> None:
    plan = cuda.plan(NETWORK, precision="fp32", **SIZES)
    heads, mean = np.zeros((8, 20), np.float32), np.empty((8, 20), np.float32)
    plan.likelihood_mean(out=heads, mean=mean)
    assert fake_cupy.Stream.seen == []
    with fake_cupy.Stream(non_blocking=True) as stream:
        plan.likelihood_mean(out=OnDevice(heads, 7), mean=OnDevice(mean))  # type: ignore[arg-type]
    streams = {0, 7, stream.ptr}
    half = len(streams)
    assert set(fake_cupy.Stream.seen[:half]) == {("record", handle) for handle in streams}
    assert set(fake_cupy.Stream.seen[half:]) == {("wait", handle) for handle in streams}
    np.testing.assert_array_equal(mean, np.float32(0.5))


def test_noise_comes_from_a_device_too(runtime: fake_cupy.Runtime) -> None:
    cuda._device_of_noise.cache_clear()
    out, expected = np.empty((2, 9), np.float32)
    cuda.normal(seed=1, step=2, stream=0, out=out)
    cuda_host.normal(seed=1, step=2, stream=0, out=expected)
    np.testing.assert_array_equal(out, expected)
    cuda._device_of_noise.cache_clear()


def test_what_is_there_is_named(runtime: fake_cupy.Runtime) -> None:
    assert backends.unavailable("cuda") is None
    assert backends.resolve("cuda") == "cuda"
    assert backends.resolve("auto") != "cuda"  # until its tests have passed on a device
    assert cuda.isa_level() == "Stand-in (sm_90)"


def test_info_tells_who_makes_the_products(
    runtime: fake_cupy.Runtime, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fastvae(["info"]) == 0
    told = "products: own kernels; cublas from 2 (fp32), 5 (tf32), 5 (bf16) GFLOP a step"
    assert f"available on Stand-in (sm_90) (fp32, tf32, bf16); {told}\n" in capsys.readouterr().out
    monkeypatch.setenv(driver.VARIABLE, "on")
    assert fastvae(["info"]) == 0
    assert f"{told}; launches overlap\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("turned", "message"),
    [
        ({"driver_version": 0}, "finds no NVIDIA driver: install one"),
        ({"devices": 0}, r"cudaErrorNoDevice.*install a driver for CUDA 13, or .* pip install 'fastvae\[cuda12\]'"),
        ({"capability": (7, 5)}, r"needs compute capability 8.0 or newer, and Stand-in has \(7, 5\)"),
    ],
)
def test_what_is_missing_is_said_in_one_line(runtime: fake_cupy.Runtime, turned: dict[str, Any], message: str) -> None:
    for name, value in turned.items():
        setattr(runtime, name, value)
    with pytest.raises(BackendError, match=rf"^backend 'cuda' .*{message}") as caught:
        cuda.plan(NETWORK, precision="fp32", **SIZES)
    assert "\n" not in str(caught.value)
    assert backends.unavailable("cuda") == str(caught.value)


def test_too_little_memory_says_how_much(runtime: fake_cupy.Runtime) -> None:
    runtime.free = 2**20
    expected = r"1 of 1024 MB free, too few for an array of \d+ MB, beside \d+ MB that this plan holds"
    with pytest.raises(MemoryError, match=expected):
        cuda.plan(Network(784, 20), precision="fp32", rows=1000, draws=1, n_threads=1)


def test_a_failing_kernel_is_named_with_its_sizes(runtime: fake_cupy.Runtime) -> None:
    plan = cuda.plan(NETWORK, precision="fp32", **SIZES)
    runtime.libcuda.status = 700
    with pytest.raises(RuntimeError, match=r"status 700, in or after: likelihood_mean\(.*data_dim=20\) on 8 bl"):
        plan.likelihood_mean(out=np.zeros((8, 20), np.float32), mean=np.empty((8, 20), np.float32))


@pytest.mark.parametrize("error", [fake_cupy.CompileException, RuntimeError])
def test_what_cannot_be_compiled_is_named(
    runtime: fake_cupy.Runtime, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: Any) -> None:
        raise error("latent.cu(7): error: no such type\n1 error")

    monkeypatch.setattr(fake_cupy.RawModule, "get_function", fail)
    plan = cuda.plan(NETWORK, precision="fp32", **SIZES)
    expected = r"cannot compile likelihood.cu for device 0: latent.cu\(7\): error: no such type 1 error$"
    with pytest.raises(BackendError, match=expected):
        plan.likelihood_mean(out=np.zeros((8, 20), np.float32), mean=np.empty((8, 20), np.float32))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_is_refused(runtime: fake_cupy.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, parent = cuda.plan(NETWORK, precision="fp32", **SIZES), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(BackendError, match="forked child"):
        plan.likelihood_mean(out=np.zeros((8, 20), np.float32), mean=np.empty((8, 20), np.float32))
