"""Shared fixtures: every engine in turn, plans, parameters, and the folder of real data."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cuda_host
import numpy as np
import pytest
from command_line import COMMAND, QUICK, Result

from fastvae import backends
from fastvae.kernels import Array, Engine, Plan
from fastvae.network import Network

REQUIRED = frozenset(filter(None, os.environ.get("FASTVAE_REQUIRE", "").split(",")))


def pytest_configure() -> None:
    """Refuse a FASTVAE_REQUIRE that names no backend: it would require nothing."""
    if unknown := REQUIRED - set(backends.NAMES):
        raise pytest.UsageError(
            f"FASTVAE_REQUIRE names unknown backends {', '.join(sorted(unknown))}; known: {', '.join(backends.NAMES)}"
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave a process that a failed kernel has cost its CUDA context: whatever follows in it would fail as well."""
    if item.get_closest_marker("gpu") is None or backends.unavailable("cuda") is not None:
        return
    import cupy

    try:
        cupy.cuda.runtime.deviceSynchronize()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            pytest.exit(f"the CUDA context is lost ({error}): the tests that are left need another process", 3)
        os._exit(3)  # pytest-xdist says that it crashed in this test, and starts another for those that are left


# Modules whose tests run on the CUDA engine's kernels compiled for the CPU too. The others look at time, or at
# processes and threads, which a GPU does not share.
_CUDA_HOST_MODULES = {
    "test_algorithms",
    "test_contract",
    "test_operations",
    "test_optimizer",
    "test_rng",
    "test_trajectory",
}


def _engine_parameters(*, cuda_host_too: bool) -> Iterator[Any]:
    """Every backend's name; an absent one is skipped with its reason unless FASTVAE_REQUIRE names it."""
    for name in backends.NAMES:
        reason = backends.unavailable(name)
        marks = [] if reason is None or name in REQUIRED else [pytest.mark.skip(reason=reason)]
        marks += [pytest.mark.gpu] if name == "cuda" else []
        yield pytest.param(name, marks=marks, id=name)
    if cuda_host_too:
        marks = [] if cuda_host.compiler() else [pytest.mark.skip(reason="no C++ compiler for the CUDA kernels' twin")]
        yield pytest.param(cuda_host.NAME, marks=marks, id=cuda_host.NAME)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `engine` on each of them."""
    if "engine" in metafunc.fixturenames:
        too = metafunc.module.__name__.rpartition(".")[2] in _CUDA_HOST_MODULES
        metafunc.parametrize("engine", [*_engine_parameters(cuda_host_too=too)], indirect=True, scope="session")


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each engine in turn."""
    return cuda_host if request.param == cuda_host.NAME else backends.load(request.param)


@pytest.fixture(scope="session", params=["cpp", "numba"])
def compiled(request: pytest.FixtureRequest) -> str:
    """Name of each backend that computes outside the interpreter in turn."""
    if reason := backends.unavailable(request.param):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture(scope="session")
def make_plan(engine: Engine) -> Callable[..., Plan]:
    """Plan of the engine under test: float32 on two threads unless asked otherwise."""

    def make(network: Network, *, rows: int, draws: int = 1, precision: str = "fp32", n_threads: int = 2) -> Plan:
        return engine.plan(network=network, rows=rows, draws=draws, precision=precision, n_threads=n_threads)

    return make


@pytest.fixture(scope="session")
def reference_plan() -> Callable[..., Plan]:
    """Plan of the reference in float64: the law."""

    def make(network: Network, *, rows: int, draws: int = 1) -> Plan:
        return backends.load("reference").plan(network=network, rows=rows, draws=draws, precision="fp64", n_threads=1)

    return make


@pytest.fixture(scope="session")
def draw_params() -> Callable[..., Array]:
    """Random parameters without zeros, of a size that keeps every layer out of saturation."""

    def draw(network: Network, *, seed: int = 0, dtype: Any = np.float32) -> Array:
        rng = np.random.default_rng(seed)
        flat = np.empty(network.layout.size)
        for layer in network.layout.layers:
            layer.weight(flat)[:] = rng.normal(size=(layer.fan_in, layer.fan_out)) / np.sqrt(layer.fan_in)
            layer.bias(flat)[:] = 0.2 * rng.normal(size=layer.fan_out)
        return flat.astype(np.float32).astype(dtype)

    return draw


@pytest.fixture(scope="session")
def data_root(pytestconfig: pytest.Config) -> Path:
    """Folder of the real data: FASTVAE_DATA, else ../shared/data beside the repository, else a skip."""
    if named := os.environ.get("FASTVAE_DATA"):
        if not Path(named).is_dir():
            pytest.fail(f"FASTVAE_DATA names {named!r}, which is not a folder")
        return Path(named)
    beside = pytestconfig.rootpath.parent / "shared" / "data"
    if not beside.is_dir():
        pytest.skip("no real data: set FASTVAE_DATA to a folder with mnist/ and freyface/")
    return beside


@pytest.fixture
def fastvae(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line in this process."""
    from fastvae.cli import main

    def run(*args: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as info:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return Result(int(info.value.code or 0), out, err)

    return run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    subprocess.run([*COMMAND, "train", *QUICK, "--out", str(folder)], check=True, capture_output=True, timeout=120)
    return folder
