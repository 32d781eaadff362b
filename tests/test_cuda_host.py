"""The CUDA engine on the CPU: that its scheduler finds faults, and that no order of threads or blocks changes a bit."""

from __future__ import annotations

import gc
import re
import signal
import weakref
from collections.abc import Sequence
from typing import Any

import cuda_host
import numpy as np
import pytest
import scipy.sparse
from cuda_host.device import HostDevice, HostGraph, SmallDevice

from fastvae.kernels import ESTIMATORS, Array
from fastvae.kernels.cuda import paths, phases, sample
from fastvae.kernels.cuda.launch import ADDRESS, INT, Launch, Work, struct
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
    device.run([Launch.of("faults", kernel, struct(out=ADDRESS), 1, threads, shared_bytes, out=at)], "fp32")
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
        ("neighbours_at_an_odd_place", 32, "neighbours that are not aligned"),
        ("copies_without_a_wait", 32, "a thread ends with asynchronous copies that it has not waited for"),
        ("no_wait_for_the_launch_before", 32, "a thread ends without having waited for the launch before"),
        ("missing_barrier", 32, "arguments of 8 bytes and 32 threads, not 8 and 64"),
    ],
)
def test_a_fault_is_reported(kernel: str, threads: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"{kernel}\(\) on 1 blocks of {threads} threads: block 0: {message}"):
        run_fault(kernel, threads)
    np.testing.assert_array_equal(run_fault("missing_barrier", 64).shape, (64,))  # the scheduler goes on


def test_a_write_between_arrays_is_reported() -> None:
    device = HostDevice()
    at = Memory(device)
    out = at.bytes(64)
    launch = Launch.of("faults", "write_behind_an_array", struct(out=ADDRESS), 1, 32, out=out + 256 - 128)
    with pytest.raises(RuntimeError, match="wrote beyond an array of 256 bytes"):
        device.run([launch], "fp32")


def test_a_copy_that_is_not_waited_for_has_not_happened() -> None:
    assert np.isnan(run_fault("read_before_a_copy", 32)[:32]).all()


def test_a_missing_barrier_shows() -> None:
    results = [run_fault("missing_barrier", 64, seed=seed) for seed in range(4)]
    assert all(np.isnan(result).any() for result in results)
    assert len({result.tobytes() for result in results}) > 1


def ahead(kernel: str, at: int) -> Launch:
    return Launch.of("faults", kernel, struct(out=ADDRESS), 1, 64, out=at)


def test_what_is_read_too_early_shows() -> None:
    """A launch that has begun ahead has not seen what the one before wrote, unless that had ended."""
    seen, out = set(), np.empty(64, np.float32)
    for seed in range(20):
        device = HostDevice(seed)
        memory = Memory(device)
        launches = [ahead("read_too_early", memory.floats(64))] * 2
        device.run(launches, "fp32")
        device.download(out, int(launches[0].arguments["out"]))
        assert set(out) == {2}
        device.graph(launches, "fp32").launch()
        device.download(out, int(launches[0].arguments["out"]))
        seen |= set(out)
    assert seen == {3, 4}


def test_threads_that_do_not_wait_together_are_reported() -> None:
    device = HostDevice()
    memory = Memory(device)
    launches = [ahead(kernel, memory.floats(64)) for kernel in ("read_too_early", "wait_of_half_the_threads")]
    graph = device.graph(launches * 10, "fp32")
    with pytest.raises(RuntimeError, match=r"divergent threads: thread 0 waits for the launch before.* 32 waits at a"):
        graph.launch()


# --- elementary functions -------------------------------------------------------------------------------------------


def functions_of(v: Array) -> dict[str, Array]:
    """Run the kernel of ``functions.cu``."""
    device = HostDevice()
    memory = Memory(device)
    names = ("inverse", "log1p", "sigmoid", "softplus")
    at = {name: memory.floats(v.size) for name in ("v", *names)}
    device.upload(at["v"], v)
    arguments = struct(**dict.fromkeys(at, ADDRESS), n=INT)
    device.run([Launch.of("functions", "functions", arguments, 16, 32, **at, n=v.size)], "fp32")
    results = {name: np.empty_like(v) for name in names}
    for name, result in results.items():
        device.download(result, at[name])
    return results


def units_off(actual: Array, expected: Array) -> float:
    """Return the largest error in units of the last place."""
    return float((np.abs(actual - expected) / np.spacing(np.abs(expected).astype(np.float32))).max())


def floats_between(first: float, last: float, count: int) -> Array:
    """Return evenly spaced patterns of bits, positive and of equal sign."""
    low, high = np.array([first, last], np.float32).view(np.int32)
    return np.linspace(low, high, count, dtype=np.float64).astype(np.int32).view(np.float32)


def test_functions_of_an_exponential() -> None:
    """Where e = exp(-abs(a)) may lie, and down to -1/2, which Box-Muller asks of log1p."""
    v = np.concatenate([floats_between(1e-37, 1, 400_000), np.linspace(0, 1, 200_001, dtype=np.float32)[1:]])
    v = np.concatenate([v, -v[v <= 0.5]])
    found, exact = functions_of(v), v.astype(np.float64)
    assert units_off(found["log1p"], np.log1p(exact)) <= 2
    assert units_off(found["inverse"][v > 0], 1 / (1 + exact[v > 0])) <= 1.5


def test_sigmoid_and_softplus() -> None:
    v = np.concatenate([floats_between(1e-30, 80, 100_000), np.linspace(0, 80, 100_000, dtype=np.float32)])
    v = np.concatenate([v, -v])
    found, exact = functions_of(v), v.astype(np.float64)
    assert units_off(found["sigmoid"], 1 / (1 + np.exp(-exact))) <= 3
    assert units_off(found["softplus"], np.logaddexp(0, exact)) <= 3


def test_logits_at_the_ends() -> None:
    found = functions_of(np.array([200, np.inf, -200, -np.inf, 0, np.nan], np.float32))
    np.testing.assert_array_equal(found["sigmoid"], np.array([1, 1, 0, 0, 0.5, np.nan], np.float32))
    np.testing.assert_array_equal(found["softplus"][:4], np.array([200, np.inf, 0, 0], np.float32))
    assert np.isnan(found["softplus"][5])


# --- the fused loop --------------------------------------------------------------------------------------------------


class Training:
    """Parameters, state and statistics of a few steps on synthetic rows."""

    def __init__(self, network: Network, *, rows: int, steps: int = 3) -> None:
        draw = np.random.default_rng(0)
        self.network = network
        self.data: Any = draw.integers(0, 256, (90, network.data_dim)).astype(np.uint8)
        self.order = draw.integers(0, 90, (steps, rows))
        self.params: Any = initialise(network, seed=2)
        self.state: Any = np.zeros((2, network.layout.size), np.float32)
        self.stats, self.done = np.zeros((steps, 2)), np.zeros(1, np.int64)

    def plan(
        self,
        device: HostDevice | None = None,
        *,
        precision: str = "fp32",
        draws: int = 1,
        products: str = "auto",
    ) -> CudaPlan:
        sizes: dict[str, Any] = {"rows": self.order.shape[1], "draws": draws, "precision": precision, "n_threads": 1}
        return CudaPlan(self.network, device=device or HostDevice(), name="cuda-host", products=products, **sizes)

    def run(
        self, plan: CudaPlan, *, binarize: str = "none", steps: int | None = None, estimator: str = "sgvb-b"
    ) -> Training:
        plan.train_steps(
            params=self.params,
            state=self.state,
            optimizer=Optimizer("adam"),
            data=self.data,
            order=self.order[:steps],
            scale=1 / 255,
            binarize=binarize,
            seed=3,
            step=0,
            estimator=estimator,
            kl_weight=1.0,
            kl_warmup=2 if estimator in ESTIMATORS else 0,
            decay=1e-3,
            stats=self.stats[:steps],
            done=self.done,
        )
        return self

    def bits(self) -> bytes:
        return bytes(self.params.tobytes() + self.state.tobytes() + self.stats.tobytes())


NETWORKS = {
    "bernoulli": (Network(131, 5, encoder_hidden=(67,), decoder_hidden=(33,)), 37, 1),
    "gaussian": (Network(40, 3, (67, 9), (33,), activation="softplus", likelihood="gaussian"), 19, 2),
}


@pytest.mark.parametrize("products", paths.PATHS)
@pytest.mark.parametrize("precision", cuda_host.PRECISIONS)
@pytest.mark.parametrize(
    ("name", "estimator"),
    [
        *((name, estimator) for name in NETWORKS for estimator in ("sgvb-b", "wake-sleep")),
        *(("gaussian", estimator) for estimator in ("sgvb-a", "iwae")),
    ],
)
def test_no_order_of_threads_changes_a_bit(name: str, estimator: str, precision: str, products: str) -> None:
    """Threads and blocks in orders of their own, launch by launch."""
    network, rows, draws = NETWORKS[name]
    results = set()
    for seed in (0, 1000, 2000):
        training = Training(network, rows=rows)
        plan = training.plan(HostDevice(seed), precision=precision, draws=draws, products=products)
        results.add(training.run(plan, estimator=estimator).bits())
        assert training.done[0] == 3
    assert len(results) == 1


class RecordingDevice(HostDevice):
    """Keeps the last graph's launches."""

    recorded: Sequence[Work] = ()

    def graph(self, launches: Sequence[Work], precision: str) -> HostGraph:
        self.recorded = launches
        return super().graph(launches, precision)


def kernel_of(launch: Launch) -> str:
    """Its name without its tile's."""
    return re.sub("_(small|split)$", "", launch.kernel)


def kernels_of_a_step(network: Network, *, sparse: bool = False, estimator: str = "sgvb-b") -> list[str]:
    device, training = RecordingDevice(), Training(network, rows=4, steps=1)
    training.data = scipy.sparse.csr_array(training.data) if sparse else training.data
    training.run(training.plan(device), estimator=estimator)
    return [kernel_of(launch) for launch in device.recorded if isinstance(launch, Launch)]


def test_a_step_of_one_hidden_layer_is_six_launches() -> None:
    middle = ["sample_rows", "bernoulli_layer", "output_backward", "sample_backward", "weight_gradients"]
    assert kernels_of_a_step(Network(20, 2, (9,), (8,))) == ["first_layer", *middle]
    assert kernels_of_a_step(Network(20, 2, (9,), (8,)), estimator="sgvb-a") == ["first_layer", *middle]
    assert kernels_of_a_step(Network(20, 2, (9,), (8,)), sparse=True) == ["gather", "forward", *middle]


def test_a_step_of_the_importance_weighted_bound_is_eleven_launches() -> None:
    forward = ["first_layer", "forward", "latent_forward_sampled", "forward", "bernoulli_layer", "weigh"]
    backward = ["output_backward", "input_gradient", "latent_backward_sampled", "input_gradient", "weight_gradients"]
    assert kernels_of_a_step(Network(20, 2, (9,), (8,)), estimator="iwae") == forward + backward


def test_a_step_of_wake_sleep_is_thirteen_launches() -> None:
    dream = ["dream_forward", "forward", "forward", "likelihood_sample"]
    wake = ["first_layer", "sample_rows", "bernoulli_layer", "output_backward"]
    sleep = ["forward", "forward", "dream_backward", "input_gradient", "weight_gradients"]
    assert kernels_of_a_step(Network(20, 2, (9,), (8,)), estimator="wake-sleep") == dream + wake + sleep


def test_a_step_without_hidden_layers_takes_the_plain_launches() -> None:
    kernels = ["gather", "forward", "latent_forward", "forward", "likelihood", "output_backward", "latent_backward"]
    network = Network(19, 2, (), (), likelihood="gaussian")
    assert kernels_of_a_step(network) == [*kernels, "weight_gradients"]
    sampled = [f"{name}_sampled" if name.startswith("latent") else name for name in kernels]
    assert kernels_of_a_step(network, estimator="sgvb-a") == [*sampled, "weight_gradients"]


def test_either_estimator_samples_together_as_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sample_rows` and `sample_backward` against the plain launches, whose products have another order of sums."""
    for estimator in ESTIMATORS:
        results = []
        for fits in (True, False):
            monkeypatch.setattr(sample, "sample_fits", lambda *_, fits=fits: fits)
            training = Training(NETWORKS["gaussian"][0], rows=7, steps=1)
            results.append(training.run(training.plan(draws=2), estimator=estimator))
        np.testing.assert_allclose(results[0].stats, results[1].stats, rtol=1e-6)
        gradients = [result.state[0] for result in results]
        np.testing.assert_allclose(*gradients, rtol=0, atol=2e-6 * np.abs(gradients[0]).max())


@pytest.mark.parametrize("binarize", ["none", "dynamic", "fixed", "shared"])
@pytest.mark.parametrize("data_dim", [48, 52, 131])
def test_the_first_layer_gathers_as_the_operation_does(
    monkeypatch: pytest.MonkeyPatch, data_dim: int, binarize: str
) -> None:
    """The same bits from bytes in shared memory, copied by sixteens, by fours and one by one, as from gathered rows."""
    network = Network(data_dim, 3, (40,), (20,))
    fused = Training(network, rows=37)
    fused.run(fused.plan(), binarize=binarize)
    monkeypatch.setattr(phases, "first_layer_fits", lambda *_: False)
    plain = Training(network, rows=37)
    plain.run(plain.plan(), binarize=binarize)
    assert fused.bits() == plain.bits()


def test_a_device_of_less_shared_memory_takes_the_plain_launches() -> None:
    """99 KB, as compute capability 8.6, 8.9 and 12.0 have; the first layer's sums are the same there."""
    network, results = Network(4800, 3, (40,), (20,)), list[bytes]()
    for shared_bytes, kernels in ((99, ["gather", "forward"]), (163, ["first_layer"])):
        device = RecordingDevice(shared_bytes=shared_bytes * 1024)
        training = Training(network, rows=4, steps=1)
        results.append(training.run(training.plan(device)).bits())
        found = [kernel_of(launch) for launch in device.recorded if isinstance(launch, Launch)]
        assert found[: len(kernels)] == kernels
    assert len(set(results)) == 1
    network, device = Network(20, 250, (3000,), (8,)), RecordingDevice(shared_bytes=99 * 1024)
    training = Training(network, rows=4, steps=1)
    training.run(training.plan(device, draws=20))
    assert "latent_forward" in [launch.kernel for launch in device.recorded if isinstance(launch, Launch)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("storage", ["dense", "csr", "csr-wide"])
@pytest.mark.parametrize(("rate", "binarize"), [(1e3, "none"), (9e6, "none"), (9e6, "fixed")])
def test_rows_that_the_device_has_no_room_for_are_brought_graph_by_graph(
    storage: str, dtype: Any, rate: float, binarize: str
) -> None:
    """To the same bits, the number of a row in the dataset keying its noise as ever."""
    network = Network(48, 3, (10,), (10,))
    expected, training = (Training(network, rows=8, steps=7) for _ in range(2))
    for each in (expected, training):
        each.data = np.tile(each.data, (200, 1)).astype(dtype)
        each.order += 90 * np.arange(7)[:, np.newaxis]
        if storage != "dense":
            each.data[:, ::3] = 0
            each.data[each.order[2]] = 0  # a step without any value
            each.data = scipy.sparse.csr_array(each.data)
        if storage == "csr-wide":
            each.data.indices, each.data.indptr = (a.astype(np.int64) for a in (each.data.indices, each.data.indptr))
    device = SmallDevice()
    size = training.data.nbytes if storage == "dense" else training.data.data.nbytes
    device.limit, device.rate = size - 1, rate  # graphs of one step, and of four
    plan = training.plan(device)
    for _ in range(2):  # the second call finds what the first has left
        training.run(plan, binarize=binarize)
        expected.run(expected.plan(), binarize=binarize)
        assert training.bits() == expected.bits()
    device.limit, training.data = 100, training.data[:-1]
    with pytest.raises(MemoryError, match="too small"):
        training.run(plan)


def test_calls_of_a_few_lengths_find_their_graphs_again() -> None:
    """And a graph has no more steps than its share of the call."""
    device, recorded = RecordingDevice(), list[int]()
    device.rate = 2.9e6  # at most seven steps to a graph
    training = Training(Network(20, 2, (9,), (8,)), rows=4, steps=30)
    plan = training.plan(device)
    for steps in (30, 3, 30, 3, 8):
        device.recorded = ()
        training.run(plan, steps=steps)
        recorded.append(len(device.recorded) // 6)
        assert training.done[0] == steps
    assert recorded == [6, 3, 0, 0, 4]


def test_long_calls_of_any_length_have_one_graph() -> None:
    device, recorded = RecordingDevice(), list[int]()
    device.rate = 2.9e6
    training = Training(Network(20, 2, (9,), (8,)), rows=4, steps=300)
    plan = training.plan(device)
    for steps in (300, 225, 250, 210):
        device.recorded = ()
        training.run(plan, steps=steps)
        recorded.append(len(device.recorded) // 6)
        assert training.done[0] == steps
    assert recorded == [7, 0, 0, 0]


@pytest.mark.parametrize("products", paths.PATHS)
def test_an_interrupt_leaves_a_whole_number_of_steps(products: str) -> None:
    """Wherever it falls: `done` says how many, and parameters and state are those after as many."""

    def expire(*_: Any) -> None:
        raise TimeoutError

    network = Network(30, 2, (16,), (16,))
    previous = signal.signal(signal.SIGALRM, expire)
    try:
        for attempt in range(4):
            training = Training(network, rows=8, steps=4000)
            plan = training.plan(products=products)
            signal.setitimer(signal.ITIMER_REAL, 0.02 + 0.026 * attempt)
            with pytest.raises(TimeoutError):
                training.run(plan)
            n_done = int(training.done[0])
            clean = Training(network, rows=8, steps=4000)
            if n_done:
                clean.run(clean.plan(products=products), steps=n_done)
            assert clean.bits() == training.bits()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# --- arrays on the device --------------------------------------------------------------------------------------------


class OnDevice:
    """A NumPy array that says it lies on the device, as CuPy's and torch's do."""

    def __init__(self, array: Array, stream: int | None = None) -> None:
        self.array = array
        described = array.__array_interface__
        keys = ("shape", "typestr", "data", "strides")
        self.__cuda_array_interface__ = {**{key: described[key] for key in keys}, "version": 3, "stream": stream}


class ByDlpack:
    """An array that offers DLPack alone, on the device or not."""

    def __init__(self, array: Array, kind: int) -> None:
        self.shared, self.kind = OnDevice(array), kind

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0


def test_arrays_on_the_device_train_in_place() -> None:
    network = Network(20, 2, (9,), (8,))
    expected = Training(network, rows=8)
    expected.run(expected.plan())
    training = Training(network, rows=8)
    params, state, data = training.params, training.state, training.data
    training.params, training.state, training.data = OnDevice(params), ByDlpack(state, 2), OnDevice(data)
    training.run(training.plan())
    np.testing.assert_array_equal(params, expected.params)
    np.testing.assert_array_equal(state, expected.state)
    np.testing.assert_array_equal(training.stats, expected.stats)


def test_operations_take_arrays_on_the_device() -> None:
    """Some on the device and some not, in one call."""
    network, draw = Network(20, 2, (9,), (8,)), np.random.default_rng(0)
    params, x = initialise(network, seed=1), draw.random((5, 20), np.float32)
    z, index = draw.normal(size=(5, 2)).astype(np.float32), np.arange(5)
    device = HostDevice()
    plan = Training(network, rows=5).plan(device)
    expected = [np.empty(5, np.float32), np.empty((5, 2), np.float32), np.empty((5, 20), np.float32)]
    plan.log_joint(params=params, x=x, z=z, log_pxz=expected[0], dz=expected[1])
    plan.gather(data=x, index=index, scale=0.5, binarize="fixed", seed=1, step=0, x=expected[2])
    actual = [np.empty_like(array) for array in expected]
    plan.log_joint(params=OnDevice(params, 7), x=ByDlpack(x, 2), z=z, log_pxz=actual[0], dz=OnDevice(actual[1], 1))
    assert device.followed == {1, 7}
    plan.gather(data=OnDevice(x), index=index, scale=0.5, binarize="fixed", seed=1, step=0, x=OnDevice(actual[2]))
    for found, wanted in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("products", paths.PATHS)
def test_a_plan_that_is_dropped_is_freed_at_once(products: str) -> None:
    """And not by a later collection: until then its memory, and the caller's, would be held."""
    gc.collect()
    gc.disable()
    try:
        training, device = Training(Network(20, 2, (9,), (8,)), rows=8), HostDevice()
        training.params = OnDevice(training.params)
        plan = training.plan(device, products=products)
        training.run(plan)
        left = [weakref.ref(each) for each in (device, plan, training.params)]
        del training, device, plan
        assert [each() for each in left] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("params", "error"),
    [
        (lambda p: OnDevice(p.astype(np.float64)), TypeError),
        (lambda p: OnDevice(p[:-1]), ValueError),
        (lambda p: OnDevice(np.repeat(p, 2)[::2]), ValueError),
        (lambda p: ByDlpack(p, 1), TypeError),
        (lambda p: OnDevice(np.frombuffer(p.tobytes(), np.float32)), ValueError),
    ],
    ids=["float64", "too short", "strided", "on the host", "read-only"],
)
def test_a_defective_array_on_the_device_is_refused(params: Any, error: type[Exception]) -> None:
    training = Training(Network(20, 2, (9,), (8,)), rows=8)
    training.params = params(training.params)
    with pytest.raises(error, match=r"\bparams\b"):
        training.run(training.plan())
