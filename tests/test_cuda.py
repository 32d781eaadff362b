"""The CUDA engine on a device: what the engines' shared tests do not ask. ``pytest -m gpu`` runs it with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from test_algorithms import SMALL, advance, assert_same_bits, copies_of, make, order_of
from tolerances import relative_norm, tolerance

from fastvae import backends
from fastvae.errors import BackendError
from fastvae.evaluation import evaluate_bound
from fastvae.kernels import Engine, Plan
from fastvae.kernels.cuda import driver, paths
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer

REASON = backends.unavailable("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=str(REASON))]
PAPER, DEEP = Network(784, 20), Network(131, 3, (67, 9), (33,), activation="softplus", likelihood="gaussian")


@pytest.fixture(scope="module")
def cuda() -> Engine:
    return backends.load("cuda")


def make_plan(engine: Engine, network: Network, precision: str = "fp32") -> Plan:
    return engine.plan(network, rows=100, draws=1, precision=precision, n_threads=1)


class Training:
    """Parameters, state and statistics of synthetic rows on the host."""

    def __init__(self, network: Network, *, rows: int = 100, steps: int = 300) -> None:
        draw = np.random.default_rng(0)
        self.data: Any = draw.integers(0, 256, (1000, network.data_dim)).astype(np.uint8)
        self.data *= draw.random(self.data.shape) < 0.2
        self.order = draw.integers(0, 1000, (steps, rows))
        self.params: Any = initialise(network, seed=2)
        self.state: Any = np.zeros((1, self.params.size), np.float32)
        self.stats, self.done = np.zeros((steps, 2)), np.zeros(1, np.int64)

    def run(self, plan: Plan) -> Training:
        plan.train_steps(
            params=self.params,
            state=self.state,
            optimizer=Optimizer("adagrad", learning_rate=0.01),
            data=self.data,
            order=self.order,
            scale=1 / 255,
            binarize="none",
            seed=3,
            step=0,
            estimator="sgvb-b",
            kl_weight=1.0,
            kl_warmup=0,
            decay=1e-4,
            stats=self.stats,
            done=self.done,
        )
        assert self.done[0] == len(self.order)
        return self

    def bits(self) -> bytes:
        return bytes(self.params.tobytes() + self.state.tobytes() + self.stats.tobytes())


@pytest.mark.parametrize("products", paths.PATHS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("network", [PAPER, DEEP], ids=["paper", "deep"])
def test_runs_leave_the_same_bits(
    cuda: Engine, monkeypatch: pytest.MonkeyPatch, network: Network, precision: str, products: str
) -> None:
    """On one plan again, and on others."""
    monkeypatch.setenv(paths.VARIABLE, products)
    plan = make_plan(cuda, network, precision)
    expected = Training(network).run(plan).bits()
    for _ in range(5):
        assert Training(network).run(plan).bits() == expected
        assert Training(network).run(make_plan(cuda, network, precision)).bits() == expected


@pytest.mark.parametrize("products", paths.PATHS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("network", [PAPER, DEEP], ids=["paper", "deep"])
def test_launches_that_overlap_leave_the_same_bits(
    cuda: Engine, monkeypatch: pytest.MonkeyPatch, network: Network, precision: str, products: str
) -> None:
    """Many steps, several times: a launch that reads too early need not show at once."""
    monkeypatch.setenv(paths.VARIABLE, products)
    expected = Training(network, steps=2000).run(make_plan(cuda, network, precision)).bits()
    monkeypatch.setenv(driver.VARIABLE, "on")
    try:
        plan = make_plan(cuda, network, precision)
    except BackendError as error:
        pytest.skip(str(error))
    for _ in range(3):
        assert Training(network, steps=2000).run(plan).bits() == expected


@pytest.mark.parametrize("hidden", [500, 2000])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_both_paths_agree_on_a_large_minibatch(
    cuda: Engine, monkeypatch: pytest.MonkeyPatch, precision: str, hidden: int
) -> None:
    """Where there are many tiles, and blocks of rows."""
    network, left = Network(784, 20, (hidden,), (hidden,)), list[Training]()
    for products in paths.PATHS:
        monkeypatch.setenv(paths.VARIABLE, products)
        plan = cuda.plan(network, rows=4096, draws=1, precision=precision, n_threads=1)
        left.append(Training(network, rows=4096, steps=6).run(plan))
    assert relative_norm(left[1].params, left[0].params) < tolerance("trajectory", precision)
    np.testing.assert_allclose(left[1].stats, left[0].stats, rtol=tolerance("stats", precision))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_training_lowers_the_loss(cuda: Engine, precision: str) -> None:
    stats = Training(PAPER).run(make_plan(cuda, PAPER, precision)).stats
    bound = stats[:, 0] - stats[:, 1]
    assert bound[-50:].mean() > bound[:50].mean() + 10


def of_torch(array: Any) -> Any:
    torch = pytest.importorskip("torch")
    return torch.from_numpy(array).cuda()


def of_cupy(array: Any) -> Any:
    return pytest.importorskip("cupy").asarray(array)


def to_host(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array.cpu().numpy()


@pytest.mark.parametrize("placed", [of_cupy, of_torch])
def test_arrays_on_the_device_stay_there(cuda: Engine, placed: Any) -> None:
    """Parameters, state and data are trained in place, to the bits that arrays on the host come to."""
    plan, training = make_plan(cuda, PAPER), Training(PAPER)
    expected = Training(PAPER).run(plan)
    training.params, training.state, training.data = map(placed, (training.params, training.state, training.data))
    training.run(plan)
    np.testing.assert_array_equal(to_host(training.params), expected.params)
    np.testing.assert_array_equal(to_host(training.state), expected.state)
    np.testing.assert_array_equal(training.stats, expected.stats)


@pytest.mark.parametrize("placed", [of_cupy, of_torch])
def test_dlpack_there_and_back(cuda: Engine, placed: Any) -> None:
    class Dlpack:
        def __init__(self, array: Any) -> None:
            self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__

    heads = np.random.default_rng(0).normal(size=(100, 784)).astype(np.float32)
    expected = np.empty_like(heads)
    plan = make_plan(cuda, PAPER)
    plan.likelihood_mean(out=heads, mean=expected)
    mean: Any = placed(np.zeros_like(heads))
    given: Any = Dlpack(placed(heads))
    plan.likelihood_mean(out=given, mean=mean)
    np.testing.assert_array_equal(to_host(mean), expected)


def test_the_callers_stream_is_followed_and_led(cuda: Engine) -> None:
    """What a stream has still to write is waited for, and what it does next sees the result."""
    cupy = pytest.importorskip("cupy")
    plan, stream = make_plan(cuda, PAPER), cupy.cuda.Stream(non_blocking=True)
    heads = np.random.default_rng(0).normal(size=(100, 784)).astype(np.float32)
    expected = np.empty_like(heads)
    plan.likelihood_mean(out=heads, mean=expected)
    with stream:
        source, late, mean = cupy.asarray(heads), cupy.zeros((100, 784), np.float32), cupy.zeros((100, 784), np.float32)
        wide = cupy.ones((4096, 4096), np.float32)
        for _ in range(20):
            wide = wide @ wide * 1e-4  # the stream is busy for a while
        late[:] = source
        plan.likelihood_mean(out=late, mean=mean)
        doubled = mean + mean
    stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(doubled), 2 * expected)


@pytest.mark.parametrize("name", ["wake-sleep", "mcem", "iwae", "full-vb", "autoencoder"])
def test_what_lies_between_operations_changes_no_bit(cuda: Engine, name: str) -> None:
    """On the device or on the host; and where the first batch's memory is used again."""
    left = []
    for placed in (True, False):
        algorithm, state = make(cuda, name, SMALL)
        if not placed:
            algorithm.plan.place = None  # type: ignore[attr-defined]
        advance(algorithm, state, order_of(20, 5), chunks=(1, 19))
        bound = evaluate_bound(algorithm.plan, state.params, algorithm.dataset, n_draws=3, seed=1)
        left.append((copies_of(state), bound))
    assert_same_bits(state, left[0][0])
    np.testing.assert_array_equal(left[0][1].elbo, left[1][1].elbo)


def test_numpy_does_not_read_the_device(cuda: Engine) -> None:
    plan: Any = make_plan(cuda, PAPER)
    there = plan.place.placed(np.arange(6, dtype=np.float32))
    with pytest.raises(TypeError, match="take get"):
        np.asarray(there)
    there[2:4] = 0
    np.testing.assert_array_equal(there[1:].get(), [1, 0, 0, 4, 5])
    np.testing.assert_array_equal(to_host(of_cupy(there)), there.get())


def test_too_large_a_plan_says_how_much_it_lacks(cuda: Engine) -> None:
    with pytest.raises(MemoryError, match=r"the CUDA device has \d+ of \d+ MB free, too few for an array of \d+ MB"):
        cuda.plan(Network(2**17, 2), rows=2**20, draws=4, precision="fp32", n_threads=1)


FORKED = """
import os, sys
import numpy as np
from fastvae import Network, backends
plan = backends.load("cuda").plan(Network(3, 1), rows=1, draws=1, precision="fp32", n_threads=1)
if os.fork() == 0:
    try:
        plan.likelihood_mean(out=np.ones((1, 3), np.float32), mean=np.empty((1, 3), np.float32))
    except Exception as error:
        print(type(error).__name__, error, flush=True)  # for _exit does not
    os._exit(0)
os.wait()
"""


def test_a_forked_child_is_told() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", FORKED], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith(f"{BackendError.__name__} CUDA does not work in a forked child"), done.stdout


SHORT_RUN = """
import cupy
import test_cuda
from fastvae import backends
cupy.cuda.set_allocator(None)  # every array by itself, so that an access beyond it is seen
for network in (test_cuda.PAPER, test_cuda.DEEP):
    for precision in ("fp32", "tf32", "bf16"):
        test_cuda.Training(network, steps=2).run(test_cuda.make_plan(backends.load("cuda"), network, precision))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "products"),
    [("memcheck", "own"), ("racecheck", "own"), ("memcheck", "cublas"), ("synccheck", "own"), ("initcheck", "own")],
)
def test_compute_sanitizer_finds_nothing(tool: str, products: str, request: pytest.FixtureRequest) -> None:
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not here")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", SHORT_RUN]
    tests = request.config.rootpath / "tests"
    environment = {**os.environ, paths.VARIABLE: products}
    done = subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if "Device not supported" in done.stdout:
        pytest.skip("compute-sanitizer cannot watch this device")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
