"""The fused loop of the CUDA engine whose products are cuBLAS's: it follows the same law as the other one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cuda_host
import numpy as np
import pytest
import reduced
import test_trajectory
from cuda_host.device import HostDevice
from test_trajectory import BASE, OPTIMIZER_RUNS, RUNS, Run, assert_follows, golden, train

from fastvae import backends
from fastvae.bench.cases import CASES
from fastvae.errors import BackendError
from fastvae.kernels.cuda import cublas_step, paths
from fastvae.kernels.cuda.plan import CudaPlan
from fastvae.network import ACTIVATIONS, Network

NO_DEVICE = backends.unavailable("cuda")


class OnHost:
    """The kernels on the CPU, with a product in the library's place."""

    NAME, PRECISIONS = cuda_host.NAME, cuda_host.PRECISIONS

    @staticmethod
    def plan(network: Network, **sizes: Any) -> CudaPlan:
        return CudaPlan(network, device=HostDevice(), name=OnHost.NAME, products="cublas", **sizes)


@pytest.fixture(
    params=[
        pytest.param("host", marks=pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler")),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(NO_DEVICE is not None, reason=str(NO_DEVICE))]),
    ]
)
def by_cublas(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine whose products are cuBLAS's."""
    if request.param == "host":
        return OnHost
    monkeypatch.setenv(paths.VARIABLE, "cublas")
    return backends.load("cuda")


@pytest.mark.parametrize("name", RUNS)
def test_golden_trajectory(by_cublas: Any, name: str) -> None:
    if by_cublas is OnHost and name.startswith(("paper", "frey")):
        pytest.skip("seconds a step on the CPU, and nothing that the others do not show")
    for precision in by_cublas.PRECISIONS:
        run, operands = RUNS[name], precision if precision in reduced.FORMATS else None
        assert_follows(run, train(by_cublas, run, precision=precision), golden(run, operands=operands), precision)


@pytest.mark.parametrize("name", ["draws-3-gaussian", "csr-float32"])
def test_chunks_and_a_larger_plan_leave_the_same_bits(by_cublas: Any, name: str) -> None:
    for precision in by_cublas.PRECISIONS:
        whole = train(by_cublas, RUNS[name], precision=precision)
        train(by_cublas, RUNS[name], precision=precision, chunks=(3, 7)).assert_same_bits(whole)
        train(by_cublas, RUNS[name], precision=precision, plan_rows=2 * RUNS[name].rows + 3).assert_same_bits(whole)


@pytest.mark.parametrize("precision", cuda_host.PRECISIONS)
@pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler for the CUDA kernels' twin")
def test_blocks_of_rows_change_no_bit(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where a product's rows do not depend on each other; cuBLAS may sum in another order."""
    run = RUNS["deep"]
    whole = train(OnHost, run, precision=precision)
    monkeypatch.setattr(cublas_step, "_FEWEST_ROWS", 5)
    monkeypatch.setattr(cublas_step, "_RESULT_BYTES", 4 * 64 * 10)
    assert [*cublas_step._blocks(33, 33)] == [(0, 10), (10, 10), (20, 10), (30, 3)]
    train(OnHost, run, precision=precision).assert_same_bits(whole)


def test_a_bad_row_leaves_no_trace(by_cublas: Any) -> None:
    """The step is not made; and on the same plan the next call trains as on a new one."""
    run = Run(BASE, OPTIMIZER_RUNS["adam"], rows=8, storage="dense-float32")
    good, bad = run.data(), run.data()
    bad[next(row for row in run.order[4] if row not in run.order[:4]), 3] = np.inf
    for precision in by_cublas.PRECISIONS:
        plan = by_cublas.plan(BASE, rows=8, draws=1, precision=precision, n_threads=1)
        shared: Any = SimpleNamespace(plan=lambda *_, plan=plan, **__: plan)
        stopped, expected = train(shared, run, data=bad), train(by_cublas, run, precision=precision)
        assert stopped.done == 4
        np.testing.assert_array_equal(stopped.params, train(shared, run, data=bad, chunks=(4,)).params)
        assert not np.isfinite(stopped.stats[4, 0])
        train(shared, run, data=good).assert_same_bits(expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("network", [BASE, test_trajectory.GAUSSIAN], ids=["bernoulli", "gaussian"])
def test_a_nan_parameter_stops_the_first_step(by_cublas: Any, network: Network, activation: str) -> None:
    """In any layer, weight or bias."""
    test_trajectory.test_a_nan_parameter_stops_the_first_step(by_cublas, network, activation)


@pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler for the CUDA kernels' twin")
def test_paths_follow_each_other_on_one_plan() -> None:
    """The path depends on the minibatch, and neither leaves anything behind for the other."""
    run = RUNS["deep"]
    flops = paths.step_flops(run.network, run.rows, run.draws)
    small = replace(run, rows=run.rows // 2)
    own, cublas = (train(engine, r) for engine, r in ((cuda_host, small), (OnHost, run)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(paths.CROSSOVER, "fp32", float(flops))
        plan = cuda_host.plan(run.network, rows=run.rows, draws=run.draws, precision="fp32", n_threads=1)
        assert plan.path == "cublas"
        assert cuda_host.plan(run.network, rows=15, draws=run.draws, precision="fp32", n_threads=1).path == "own"
        shared: Any = SimpleNamespace(plan=lambda *_, **__: plan)
        for _ in range(2):
            train(shared, run).assert_same_bits(cublas)
            train(shared, small).assert_same_bits(own)


def test_flops_of_a_step_are_those_of_the_bench() -> None:
    for case in CASES.values():
        if case.kind == "train":
            assert paths.step_flops(case.network, case.batch_size, 1) == case.flops


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.VARIABLE, "cublas")
    assert paths.asked() == "cublas"
    assert "FASTVAE_CUDA_PRODUCTS asks" in paths.described()
    monkeypatch.setenv(paths.VARIABLE, "tensor")
    with pytest.raises(BackendError, match="FASTVAE_CUDA_PRODUCTS is 'tensor': choose from auto, own, cublas"):
        paths.asked()
    monkeypatch.delenv(paths.VARIABLE)
    assert paths.asked() == "auto"
    assert "cublas from" in paths.described()
