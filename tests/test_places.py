"""Where a plan computes: what lies between operations stays there, to the bits of NumPy's arrays."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cuda_host
import numpy as np
import pytest
import scipy.sparse
from cuda_host import fake_cupy
from cuda_host.device import HostDevice, SmallDevice
from test_algorithms import COMPOSED, KINDS, SMALL, advance, assert_same_bits, copies_of, make, order_of

from fastvae import VAE, backends, evaluation
from fastvae.data import as_dataset
from fastvae.evaluation import importance
from fastvae.kernels import Array, Plan, cuda
from fastvae.kernels.cuda import places
from fastvae.kernels.cuda.plan import CudaPlan
from fastvae.kernels.places import place_of
from fastvae.model_plans import inference_plan, training_plan
from fastvae.network import Network, initialise

pytestmark = pytest.mark.skipif(not cuda_host.compiler(), reason="no C++ compiler for the CUDA kernels' twin")
D, J, N, ROWS = 24, 3, 21, 8
NETWORK = Network(D, J, (17,), (15,))
PARAMS = initialise(NETWORK, seed=1)
P = 4 * PARAMS.size  # bytes
X = np.random.default_rng(0).integers(0, 256, (N, D)).astype(np.uint8)
DATA = as_dataset(X)


def make_plan(*, rows: int = ROWS, draws: int = 2, device: HostDevice | None = None) -> Any:
    sizes: dict[str, Any] = {"rows": rows, "draws": draws, "precision": "fp32", "n_threads": 1}
    return CudaPlan(NETWORK, device=device or HostDevice(), name="cuda-host", **sizes)


# --- what an array of the device can do ------------------------------------------------------------------------------


def test_an_array_there_has_views() -> None:
    a, there = np.arange(24, dtype=np.float32).reshape(6, 4), make_plan().place
    b = there.placed(a)
    assert there.placed(b) is b
    for comp, ref in (
        (b, a),
        (b[2:5], a[2:5]),
        (b[:9][1:], a[1:]),
        (b[4:2], a[4:2]),
        (b[np.newaxis], a[np.newaxis]),
        (b.reshape(3, -1)[1:], a.reshape(3, -1)[1:]),
    ):
        assert (comp.shape, comp.dtype, len(comp)) == (ref.shape, ref.dtype, len(ref))
        np.testing.assert_array_equal(comp.get(), ref)


def test_it_is_set_to_zero_and_to_what_lies_on_the_host() -> None:
    b = make_plan().place.placed(np.ones((6, 4), np.float32))
    b[1:3], b[5:] = 0, np.full((1, 4), 7, np.float32)
    np.testing.assert_array_equal(b.get(), np.repeat([1, 0, 1, 7], [1, 2, 2, 1])[:, np.newaxis] * np.ones(4))


@pytest.mark.parametrize(
    ("value", "error"), [(1, TypeError), (np.ones((2, 4)), TypeError), (np.ones((2, 3), np.float32), ValueError)]
)
def test_it_is_set_to_nothing_else(value: Any, error: type[Exception]) -> None:
    b = make_plan().place.empty(6, 4)
    with pytest.raises(error, match=r"the value|is set to"):
        b[:2] = value


@pytest.mark.parametrize("read", [np.asarray, np.isfinite, lambda b: np.ones(4) + b, lambda b: b[0], lambda b: [*b]])
def test_numpy_does_not_read_it_unasked(read: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError):
        read(make_plan().place.placed(np.ones((2, 4), np.float32)))


def test_a_shape_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot reshape an array of shape \(2, 3\) into \(4, 2\)"):
        make_plan().place.empty(2, 3).reshape(4, 2)


def test_other_plans_wait_for_its_stream() -> None:
    """Its own do not: there is nothing to wait for."""
    plan, other = make_plan(), make_plan()
    heads, mean = plan.place.placed(np.zeros((2, D), np.float32)), np.empty((2, D), np.float32)
    plan.likelihood_mean(out=heads, mean=mean)
    assert not hasattr(plan._device, "followed")
    other.likelihood_mean(out=heads, mean=mean)
    assert other._device.followed == {plan._device.handle}
    np.testing.assert_array_equal(mean, 0.5)


def test_what_went_over_may_be_changed_at_once() -> None:
    """An operation whose outputs are all on the device waits for the copies of its inputs too."""
    plan = make_plan()
    b = plan.place.placed(np.ones((2, D), np.float32))
    assert plan._device.under_way == 0
    b[:] = np.zeros((2, D), np.float32)
    assert plan._device.under_way == 0
    index = np.arange(2)
    plan.gather(data=X, index=index, scale=1.0, binarize="none", seed=0, step=0, x=b)
    assert plan._device.under_way == 0
    np.testing.assert_array_equal(b.get(), X[:2])


def test_it_is_kept_while_a_view_is() -> None:
    device = HostDevice()
    view = make_plan(device=device).place.placed(np.ones((3, 4), np.float32)).reshape(12)[8:]
    np.testing.assert_array_equal(view.get(), 1)


def test_arrays_of_cupy_are_made_on_the_stream_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """And used on it, without an event. (The stand-in refuses memory of another stream.)"""
    with fake_cupy.installed(monkeypatch):
        plan = cuda.plan(NETWORK, rows=ROWS, draws=1, precision="fp32", n_threads=1)
        fake_cupy.Stream.seen.clear()
        bound = evaluation.evaluate_bound(plan, PARAMS, DATA, seed=1)
        cuda._device_of_noise.cache_clear()
        algorithm, state = make(cuda, "full-vb", SMALL)
        advance(algorithm, state, order_of(3, 5))
        assert fake_cupy.Stream.seen == []
        cuda._device_of_noise.cache_clear()
    expected = evaluation.evaluate_bound(without_place(make_plan(draws=1)), PARAMS, DATA, seed=1)
    np.testing.assert_array_equal(bound.values, expected.values)
    algorithm, expected_state = make(cuda_host, "full-vb", SMALL)  # type: ignore[arg-type]
    advance(algorithm, expected_state, order_of(3, 5))
    assert_same_bits(state, copies_of(expected_state))


def test_what_there_is_no_room_for_stays_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what would leave none for the rest; as what is no dense array."""
    device = SmallDevice()
    there = make_plan(device=device).place
    device.limit, a, sparse = 4000, np.ones((10, 101), np.float32), scipy.sparse.csr_array(np.eye(3))
    assert there.placed(a) is a
    assert there.placed(sparse) is sparse
    strided = a[:, :2]
    assert there.placed(strided) is strided
    device.limit = 5000
    assert there.placed(a) is not a
    monkeypatch.setattr(places, "_LARGE", a.nbytes)
    device.zeros = lambda size: HostDevice.zeros(device, size) if size == a.nbytes else refuse()  # type: ignore[method-assign]
    assert there.placed(a) is a


def refuse() -> Any:
    raise MemoryError


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", np.float32), ("fp64", np.float64)])
def test_a_plan_without_a_place_has_numpys(precision: str, dtype: Any) -> None:
    plan = backends.load("reference").plan(NETWORK, rows=2, draws=1, precision=precision, n_threads=1)
    there = place_of(plan)
    assert there.empty(2, 3).dtype == dtype
    assert there.placed(X) is X


# --- what crosses over -----------------------------------------------------------------------------------------------


def without_place(plan: Any) -> Any:
    """Return a plan to which all arrays come from the host."""
    plan.place = None
    return plan


# Bytes to the device of a row: one that is gathered, with its number twice; [mu | logvar]; a draw of eps or of z.
GATHERED, HEADS, DRAW = D + 16, 8 * J, 4 * J
HMC = {"n_draws": 3, "n_leapfrog": 2}


def bound(plan: Plan) -> list[Array]:
    result = evaluation.evaluate_bound(plan, PARAMS, DATA, n_draws=5, seed=1)
    return [result.log_px, result.kl]


def importance_sampling(plan: Plan) -> list[Array]:
    return [evaluation.evaluate_importance(plan, PARAMS, DATA, n_draws=2 * importance.BLOCK_DRAWS, seed=1).values]


def annealing(plan: Plan) -> list[Array]:
    return [evaluation.evaluate_ais(plan, PARAMS, DATA, n_temperatures=4, seed=1, **HMC).values]


def marginal_likelihood(plan: Plan) -> list[Array]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rows without an estimate
        options = {"n_leapfrog": 2, "n_draws": 11, "n_burn_in": 2}
        starts = (
            evaluation.evaluate_marginal_likelihood(plan, PARAMS, DATA, seed=1, start=start, **options)
            for start in ("encoder", "prior")
        )
        return [result.effective_sample_size for result in starts]


def sandwich(plan: Plan) -> list[Array]:
    result = evaluation.sandwich(plan, PARAMS, n_rows=N, n_temperatures=3, seed=1, **HMC)
    return [result.lower.values, result.upper.values]


def encoding(plan: Plan) -> list[Array]:
    return [*evaluation.encode(plan, PARAMS, DATA)]


def decoding(plan: Plan) -> list[Array]:
    return [evaluation.decode(plan, PARAMS, np.linspace(-1, 1, N * J, dtype=np.float32).reshape(N, J))]


K = 2 * importance.BLOCK_DRAWS
# Log densities and gradients of z of AIS: at the begin of the pilot run and of the pass, and at every leapfrog step.
ANNEALED = 3 * (2 + 2 * 4 * 2)
# Of appendix D, both starts: at the begin, at every leapfrog step, and at 64 draws of the prior without a gradient.
SAMPLED = 2 * (1 + 2 * (2 + 2 * 11))
# Of the sandwich: as of AIS, and of the pass back.
BOTH_WAYS = 3 * (3 + 3 * 3 * 2)
EVALUATIONS: dict[str, tuple[Callable[[Plan], list[Array]], float, float]] = {  # and bytes per row up and down
    "bound": (bound, GATHERED + HEADS + 5 * DRAW, HEADS + 5 * 8),
    "importance": (importance_sampling, 2 * (GATHERED + HEADS) + K * DRAW, 2 * HEADS + K * 4),
    "ais": (annealing, GATHERED + ANNEALED * DRAW, ANNEALED * (DRAW + 4)),
    "marginal-likelihood": (
        marginal_likelihood,
        2 * P / N + 2 * GATHERED + HEADS + (SAMPLED + 64 + 1) * DRAW,
        2 * HEADS + SAMPLED * (DRAW + 4) + 64 * 4 + DRAW + 4,
    ),
    # simulated rows come down as floats, their z go up, and they are then gathered
    "sandwich": (sandwich, P / N + DRAW + 4 * D + 16 + BOTH_WAYS * DRAW, 4 * D + BOTH_WAYS * (DRAW + 4)),
    "encode": (encoding, GATHERED, HEADS),
    "decode": (decoding, DRAW, 4 * D),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_no_more_crosses_over_than_numpy_reads(name: str) -> None:
    """Parameters once, the rows, and of each row what is drawn and measured on the host; to the same bits."""
    run, up, down = EVALUATIONS[name]
    plan, other = make_plan(), without_place(make_plan())
    for found, wanted in zip(run(plan), run(other), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert sum(plan._device.uploaded) <= P + N * up < sum(other._device.uploaded)
    assert sum(plan._device.downloaded) <= N * down < sum(other._device.downloaded)


@pytest.fixture
def on_cuda_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the backend cuda be the one on the CPU."""
    monkeypatch.setitem(backends._MODULES, "cuda", "cuda_host")
    return


def model(**changes: Any) -> VAE:
    options = {"hidden_dims": (17,), "batch_size": 4, "n_epochs": 1, "backend": "cuda", "random_state": 1}
    return VAE(J, **options | changes)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_imputation_brings_rows_and_outputs_over_once_an_iteration(
    on_cuda_host: None, monkeypatch: pytest.MonkeyPatch, likelihood: str
) -> None:
    vae, mask, n = model(likelihood=likelihood).fit(X), np.arange(D) % 3 == 0, 7
    found, device = vae.impute(X, mask, n_iterations=n, n_burn_in=2, n_chains=2), inference_plan(vae)._device
    heads = vae.network_.decoder_dims[-1]
    # x, the decoder's output, and mu, logvar, eps and z of each of 2 N chains; to start with, rows and their numbers
    up = 4 * (D + heads + 4 * J)
    assert sum(device.uploaded) <= 4 * vae.params_.size + 2 * N * (GATHERED + DRAW + 4 * heads + n * up)
    without_place(inference_plan(vae))
    expected = vae.impute(X, mask, n_iterations=n, n_burn_in=2, n_chains=2)
    np.testing.assert_array_equal(found.rows, expected.rows)


@pytest.mark.parametrize("algorithm", ["aevb", "wake-sleep", "mcem"])
def test_a_training_set_goes_over_once(on_cuda_host: None, monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
    """In all chunks of all epochs, and again where training is taken up again."""
    vae, rows = model(algorithm=algorithm, n_epochs=2), np.tile(X, (3, 1))
    vae.fit(rows)
    device = training_plan(vae)._device
    assert device.uploaded.count(rows.nbytes) == 1
    vae.set_params(n_epochs=3).resume(rows)
    assert device.uploaded.count(rows.nbytes) == 2
    make = cuda_host.plan
    monkeypatch.setattr(cuda_host, "plan", lambda *network, **sizes: without_place(make(*network, **sizes)))
    expected = model(algorithm=algorithm, n_epochs=3).fit(rows)
    np.testing.assert_array_equal(vae.params_, expected.params_)


# --- algorithms composed of operations -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Crossing:
    """Bytes up and down: of each row of a step, and of a step and of a chunk as shares of the parameters."""

    row_up: int
    row_down: int
    step_up: float = 0
    step_down: float = 0
    chunk: int = 2  # parameters and Adagrad's state


def crossings() -> dict[str, Crossing]:
    d, latent = SMALL.data_dim, 4 * SMALL.latent_dim
    gathered, heads = d + 16, 2 * latent
    theta = 1 - SMALL.layout.encoder[-1].end / SMALL.layout.size
    draws = KINDS["full-vb"][2]
    return {
        # mu as z twice; the weight prior, which leaves out a part
        "autoencoder": Crossing(gathered + 2 * latent + heads, heads + latent + 4, 1, 2),
        # z and its gradient at every leapfrog step; z and the weight prior at every update
        "mcem": Crossing(gathered + (11 + 5 * 2) * latent, 11 * (latent + 4) + 5 * 4, 5 * theta, 5 * theta),
        # up: the draw of theta and both gradients. down: means, log variances and the means' gradient
        "full-vb": Crossing(
            gathered + 3 * heads + 2 * draws * latent,
            2 * heads + 4 + 4 * draws,
            3 * theta,
            3 * theta,
            chunk=4,
        ),
    }


@pytest.mark.parametrize("name", COMPOSED)
def test_a_chunk_brings_over_what_numpy_computes_on(name: str) -> None:
    """To the same bits; parameters and the optimizer's state once, however many steps it has."""
    (algorithm, state), (other, expected) = make(cuda_host, name, SMALL), make(cuda_host, name, SMALL)  # type: ignore[arg-type]
    without_place(other.plan)
    here, there = algorithm.plan._device, other.plan._device  # type: ignore[attr-defined]
    (steps, rows), bytes_of, size = (4, 5), crossings()[name], state.params.nbytes
    np.testing.assert_array_equal(
        advance(algorithm, state, order_of(steps, rows)), advance(other, expected, order_of(steps, rows))
    )
    assert_same_bits(state, copies_of(expected))
    up = size * (bytes_of.chunk + steps * bytes_of.step_up) + steps * rows * bytes_of.row_up
    down = size * (bytes_of.chunk + steps * bytes_of.step_down) + steps * rows * bytes_of.row_down
    assert sum(here.uploaded) <= up < sum(there.uploaded)
    assert sum(here.downloaded) <= down < sum(there.downloaded)


@pytest.mark.parametrize("name", ["autoencoder", "mcem"])
@pytest.mark.parametrize("fails", [True, False])
def test_a_state_is_brought_back_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, name: str, fails: bool) -> None:
    """Ctrl-C on the way is answered behind it. A device that fails leaves the state, and no step counts as done."""
    algorithm, state = make(cuda_host, name, SMALL)  # type: ignore[arg-type]
    order, device = order_of(3, 5), algorithm.plan._device  # type: ignore[attr-defined]
    download, cut = device.download, []

    def cutting(array: Array, address: int) -> None:
        if array.shape == state.slots.shape and not cut:  # the parameters have come down already
            cut.append(True)
            if fails:
                raise RuntimeError("the device fails")
            os.kill(os.getpid(), signal.SIGINT)
        download(array, address)

    monkeypatch.setattr(device, "download", cutting)
    with pytest.raises(RuntimeError if fails else KeyboardInterrupt):
        advance(algorithm, state, order)
    assert state.step == (0 if fails else 3)
    expected_algorithm, expected = make(cuda_host, name, SMALL)  # type: ignore[arg-type]
    if not fails:
        advance(expected_algorithm, expected, order)
    assert_same_bits(state, copies_of(expected))
