"""The golden trajectory: ten steps of every engine's fused loop against the composition of operations in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import naive
import numpy as np
import pytest
import reduced
import scipy.sparse
from tolerances import relative_norm, tolerance

from fastvae import backends
from fastvae.kernels import BINARIZE, ESTIMATORS, STEP_ESTIMATORS, Array, Engine
from fastvae.network import ACTIVATIONS, Network, initialise
from fastvae.optimizer import Optimizer
from fastvae.training.aevb import Buffers
from fastvae.training.composed import kl_weight_at
from fastvae.training.step import compose_step

SEED = 2**40 + 17
ADAGRAD = Optimizer("adagrad", learning_rate=0.02)
DTYPES = {"fp32": np.float32, "fp64": np.float64, "tf32": np.float32, "bf16": np.float32}


@dataclass(frozen=True)
class Run:
    """Everything that decides a trajectory."""

    network: Network
    optimizer: Optimizer = ADAGRAD
    rows: int = 16
    draws: int = 1
    storage: str = "dense-uint8"
    binarize: str = "none"
    estimator: str = "sgvb-b"
    kl_weight: float = 1.0
    kl_warmup: int = 0
    decay: float = 0.0
    first_step: int = 0
    steps: int = 10
    n_data: int = 120
    fill: float = 0.55  # share of nonzero entries in the columns that are used most
    dark: float = 0.0  # taken from the biases of the decoder's last layer

    @property
    def scale(self) -> float:
        return 1 / 255 if self.storage.endswith("uint8") else 1.0

    @property
    def order(self) -> Array:
        return np.random.default_rng(5).integers(0, self.n_data, (self.steps, self.rows))

    def data(self) -> Any:
        """Rows like MNIST's: a fifth of the entries nonzero, grey, some columns never; a fill of 1 leaves no zero."""
        draw = np.random.default_rng(9)
        shape = self.n_data, self.network.data_dim
        likely = np.where(draw.random(shape[1]) < 0.3, 0, draw.random(shape[1])) if self.fill < 1 else 1.0
        grey = draw.integers(1, 256, shape) * (draw.random(shape) < self.fill * likely)
        layout, dtype = self.storage.split("-")
        values = grey.astype(np.uint8) if dtype == "uint8" else (grey / 255).astype(dtype)
        return values if layout == "dense" else scipy.sparse.csr_array(values)


@dataclass
class Outcome:
    """What a trajectory leaves behind."""

    params: Array
    state: Array
    stats: Array
    done: int

    def assert_same_bits(self, other: Outcome) -> None:
        assert self.done == other.done
        for name in ("params", "state", "stats"):
            np.testing.assert_array_equal(getattr(self, name), getattr(other, name), err_msg=name)


def fresh(run: Run, dtype: Any) -> Outcome:
    """Initial parameters, empty state, unwritten statistics."""
    params = initialise(run.network, seed=1).astype(dtype)
    last = run.network.layout.decoder[-1]
    params[last.bias_offset : last.end] -= run.dark
    state = np.zeros((run.optimizer.n_slots, params.size), dtype)
    return Outcome(params, state, np.full((run.steps, 2), np.nan), -1)


def train(
    engine: Engine,
    run: Run,
    *,
    precision: str = "fp32",
    chunks: tuple[int, ...] | None = None,
    n_threads: int = 2,
    plan_rows: int | None = None,
    data: Any = None,
    params: Array | None = None,
) -> Outcome:
    """Run the engine's own loop, in chunks of steps."""
    outcome = fresh(run, DTYPES[precision])
    if params is not None:
        outcome.params[:] = params
    plan = engine.plan(
        network=run.network, rows=plan_rows or run.rows, draws=run.draws, precision=precision, n_threads=n_threads
    )
    data, order, first = run.data() if data is None else data, run.order, 0
    for chunk in chunks or (run.steps,):
        done = np.full(1, -1, np.int64)
        plan.train_steps(
            params=outcome.params,
            state=outcome.state,
            optimizer=run.optimizer,
            data=data,
            order=order[first : first + chunk],
            scale=run.scale,
            binarize=run.binarize,
            seed=SEED,
            step=run.first_step + first,
            estimator=run.estimator,
            kl_weight=run.kl_weight,
            kl_warmup=run.kl_warmup,
            decay=run.decay,
            stats=outcome.stats[first : first + chunk],
            done=done,
        )
        first += chunk
        outcome.done = first - chunk + int(done[0])
    return outcome


@cache
def golden(run: Run, *, operands: str | None = None) -> Outcome:
    """The composition of operations on the float64 reference, or on the truth of a mode of reduced precision."""
    outcome = fresh(run, np.float64)
    engine: Any = reduced.ReducedEngine(operands) if operands else backends.load("reference")
    plan = engine.plan(network=run.network, rows=run.rows, draws=run.draws, precision="fp64", n_threads=1)
    buffers, data = Buffers.allocate(run.network, run.rows, run.draws, np.float64), run.data()
    for i, index in enumerate(run.order):
        step = run.first_step + i
        outcome.stats[i] = compose_step(
            plan,
            buffers,
            params=outcome.params,
            state=outcome.state,
            optimizer=run.optimizer,
            data=data,
            index=index,
            scale=run.scale,
            binarize=run.binarize,
            seed=SEED,
            step=step,
            estimator=run.estimator,
            kl_weight=kl_weight_at(step, kl_weight=run.kl_weight, kl_warmup=run.kl_warmup),
            decay=run.decay,
        )
    outcome.done = run.steps
    return outcome


def assert_follows(run: Run, actual: Outcome, expected: Outcome, precision: str) -> None:
    """Compare every named parameter, every slot of the state, and the statistics."""
    limit = tolerance("trajectory", precision)
    assert actual.done == run.steps
    pairs = {"params": (actual.params, expected.params)}
    pairs |= {f"state[{i}]": (actual.state[i], expected.state[i]) for i in range(run.optimizer.n_slots)}
    for kind, (found, wanted) in pairs.items():
        wanted_views = run.network.layout.views(wanted)
        for name, view in run.network.layout.views(found).items():
            error = relative_norm(view, wanted_views[name])
            assert error <= limit, f"{kind} {name} ({precision}): {error:.1e}"
    np.testing.assert_allclose(actual.stats, expected.stats, rtol=tolerance("stats", precision), atol=1e-6)


# --- the golden trajectory ------------------------------------------------------------------------------------------

BASE = Network(33, 5, encoder_hidden=(31,), decoder_hidden=(17,))
GAUSSIAN = Network(33, 5, encoder_hidden=(31,), decoder_hidden=(17,), likelihood="gaussian")
DARK = Network(131, 5, encoder_hidden=(67,), decoder_hidden=(33,))
PAPER = Network(784, 20)
FREY = Network(560, 10, encoder_hidden=(200,), decoder_hidden=(200,), likelihood="gaussian")

OPTIMIZER_RUNS = {
    "adagrad": ADAGRAD,
    "adagrad-hold": Optimizer("adagrad", learning_rate=0.1, hold_steps=3),
    "adam": Optimizer("adam", learning_rate=1e-3),
    "sgd": Optimizer("sgd", learning_rate=1e-3),
}
RUNS = {name: Run(BASE, optimizer) for name, optimizer in OPTIMIZER_RUNS.items()}
RUNS |= {f"{name}-prior": Run(BASE, optimizer, decay=1 / 120) for name, optimizer in OPTIMIZER_RUNS.items()}
RUNS |= {f"{name}-gaussian": Run(GAUSSIAN, optimizer, decay=0.01) for name, optimizer in OPTIMIZER_RUNS.items()}
RUNS |= {f"binarize-{mode}": Run(BASE, binarize=mode) for mode in BINARIZE[1:]}
RUNS |= {
    storage: Run(BASE, storage=storage)
    for storage in ("dense-float32", "dense-float64", "csr-uint8", "csr-float32", "csr-float64")
}
RUNS |= {f"csr-binarize-{mode}": Run(BASE, storage="csr-uint8", binarize=mode) for mode in BINARIZE[1:]}
RUNS |= {activation: Run(replace(BASE, activation=activation)) for activation in ACTIVATIONS[1:]}
RUNS |= {
    "kl-warmup": Run(BASE, kl_weight=1.5, kl_warmup=6),
    "kl-weight": Run(BASE, kl_weight=0.25),
    "kl-off": Run(BASE, kl_weight=0.0),
    "late": Run(BASE, OPTIMIZER_RUNS["adam"], first_step=2**33, kl_warmup=2**34),
    "draws-3": Run(BASE, draws=3),
    "draws-3-gaussian": Run(GAUSSIAN, OPTIMIZER_RUNS["adam"], draws=3, decay=0.01),
    "sgvb-a": Run(BASE, estimator="sgvb-a", kl_weight=1.5, kl_warmup=6),
    "sgvb-a-draws-3": Run(GAUSSIAN, OPTIMIZER_RUNS["adam"], draws=3, estimator="sgvb-a"),
    "sgvb-a-affine": Run(Network(9, 2, encoder_hidden=(), decoder_hidden=()), rows=7, draws=2, estimator="sgvb-a"),
    "iwae": Run(BASE, draws=5, estimator="iwae", decay=0.01),
    "iwae-gaussian": Run(GAUSSIAN, OPTIMIZER_RUNS["adam"], draws=3, estimator="iwae"),
    "iwae-one-draw": Run(BASE, estimator="iwae", storage="csr-uint8", binarize="dynamic"),
    "iwae-affine": Run(Network(9, 2, encoder_hidden=(), decoder_hidden=()), rows=7, draws=2, estimator="iwae"),
    "iwae-deep": Run(
        Network(65, 7, encoder_hidden=(63, 33, 16), decoder_hidden=(15, 32, 64)), rows=33, draws=2, estimator="iwae"
    ),
    # a dream's pixel is a draw, which engines may make otherwise where u lies within the sigmoid's rounding: few pixels
    "wake-sleep": Run(BASE, estimator="wake-sleep", decay=0.01),
    "wake-sleep-csr": Run(
        BASE, OPTIMIZER_RUNS["adam"], estimator="wake-sleep", storage="csr-uint8", binarize="dynamic", draws=2
    ),
    "wake-sleep-draws-3": Run(GAUSSIAN, OPTIMIZER_RUNS["adam"], draws=3, estimator="wake-sleep", first_step=2**33),
    "wake-sleep-affine": Run(
        Network(9, 2, encoder_hidden=(), decoder_hidden=(), likelihood="gaussian", mean="identity"),
        rows=7,
        draws=2,
        estimator="wake-sleep",
    ),
    "wake-sleep-deep": Run(
        Network(65, 7, encoder_hidden=(63, 33, 16), decoder_hidden=(15, 32, 64), likelihood="gaussian"),
        rows=33,
        draws=2,
        estimator="wake-sleep",
    ),
    # dreams with few ones, which are listed, and with very few, as the data's are
    "wake-sleep-sparse": Run(DARK, rows=37, estimator="wake-sleep", dark=1.5),
    "wake-sleep-very-sparse": Run(DARK, rows=37, estimator="wake-sleep", dark=4.5, fill=0.06),
    "wake-sleep-one": Run(Network(1, 1, encoder_hidden=(1,), decoder_hidden=(1,)), rows=1, estimator="wake-sleep"),
    "identity-mean": Run(replace(GAUSSIAN, mean="identity", activation="softplus")),
    "no-zeros": Run(BASE, fill=1.0),
    "no-zeros-csr": Run(BASE, fill=1.0, storage="csr-float32"),
    "all-zeros": Run(BASE, OPTIMIZER_RUNS["adam"], fill=0.0),
    "all-zeros-csr": Run(BASE, OPTIMIZER_RUNS["adam"], fill=0.0, storage="csr-uint8"),
    "one-percent": Run(replace(BASE, data_dim=300), fill=0.03),
    "one": Run(Network(1, 1, encoder_hidden=(1,), decoder_hidden=(1,)), rows=1),
    "one-row": Run(BASE, rows=1),
    "affine": Run(Network(9, 2, encoder_hidden=(), decoder_hidden=()), rows=7),
    "affine-gaussian": Run(Network(8, 3, encoder_hidden=(), decoder_hidden=(), likelihood="gaussian"), rows=9),
    "deep": Run(Network(65, 7, encoder_hidden=(63, 33, 16), decoder_hidden=(15, 32, 64)), rows=33, draws=2),
    "deep-relu": Run(Network(64, 8, encoder_hidden=(32, 7), decoder_hidden=(7, 32), activation="relu"), rows=32),
    "uneven": Run(Network(130, 17, encoder_hidden=(), decoder_hidden=(129,)), rows=31),
    "wide-latent": Run(Network(20, 70, encoder_hidden=(40,), decoder_hidden=(41,)), rows=15),
    # 0.02 throws the untrained network off (KL 110 nats at its second step), and the way back amplifies rounding
    "paper": Run(PAPER, Optimizer("adagrad", learning_rate=0.01), rows=100, decay=1 / 60000, n_data=1000),
    "paper-adam-csr": Run(PAPER, OPTIMIZER_RUNS["adam"], rows=100, n_data=1000, storage="csr-uint8"),
    "paper-dynamic": Run(PAPER, Optimizer("adagrad", learning_rate=0.01), rows=100, n_data=1000, binarize="dynamic"),
    "frey": Run(
        FREY, Optimizer("adagrad", learning_rate=0.01), rows=100, decay=1 / 1965, n_data=500, storage="dense-float32"
    ),
    "frey-wake-sleep": Run(
        FREY,
        Optimizer("adagrad", learning_rate=0.005),
        rows=100,
        n_data=500,
        storage="dense-float32",
        estimator="wake-sleep",
    ),
}


def precisions_of(engine: Engine, *, paper_once_more: bool) -> tuple[str, ...]:
    """Every precision; fp32 alone for the paper's network once more on the CPU's twin of a GPU, at a second a step."""
    return ("fp32",) if paper_once_more and engine.NAME == "cuda-host" else engine.PRECISIONS


@pytest.mark.parametrize("name", RUNS)
def test_golden_trajectory(engine: Engine, name: str) -> None:
    run = RUNS[name]
    for precision in precisions_of(engine, paper_once_more=name.startswith("paper-")):
        operands = precision if precision in reduced.FORMATS else None
        assert_follows(run, train(engine, run, precision=precision), golden(run, operands=operands), precision)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("optimizer", OPTIMIZER_RUNS)
def test_the_composition_follows_the_loops_of_the_paper(optimizer: str, likelihood: str, estimator: str) -> None:
    """Four steps of Algorithm 1 in plain loops, with everything switched on."""
    run = Run(
        Network(6, 2, encoder_hidden=(4,), decoder_hidden=(3, 5), activation="softplus", likelihood=likelihood),
        OPTIMIZER_RUNS[optimizer],
        rows=3,
        draws=2,
        storage="csr-uint8",
        binarize="dynamic" if likelihood == "bernoulli" else "none",
        estimator=estimator,
        kl_weight=0.9,
        kl_warmup=3,
        decay=0.02,
        first_step=1,
        steps=4,
    )
    start, expected = fresh(run, np.float64), golden(run)
    params, state = start.params, start.state
    for i, index in enumerate(run.order):
        params, state, log_px, kl = naive.train_step(
            run.network,
            params,
            state,
            run.optimizer,
            run.data(),
            index,
            scale=run.scale,
            binarize=run.binarize,
            seed=SEED,
            step=run.first_step + i,
            draws=run.draws,
            estimator=run.estimator,
            kl_weight=run.kl_weight,
            kl_warmup=run.kl_warmup,
            decay=run.decay,
        )
        np.testing.assert_allclose(expected.stats[i], (log_px, kl), rtol=1e-12)
    np.testing.assert_allclose(expected.params, params, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(expected.state, state, rtol=1e-10, atol=1e-12)


# --- the same bits --------------------------------------------------------------------------------------------------

INVARIANCE = ["adam-prior", "draws-3-gaussian", "kl-warmup", "binarize-dynamic", "csr-float32", "deep", "one", "paper"]
INVARIANCE += ["sgvb-a-draws-3", "iwae", "wake-sleep", "wake-sleep-draws-3"]


@pytest.mark.parametrize("name", INVARIANCE)
def test_chunks_leave_the_same_bits(engine: Engine, name: str) -> None:
    """Ten steps at once, 3 + 7, and one by one."""
    run = RUNS[name]
    for precision in precisions_of(engine, paper_once_more=name == "paper"):
        whole = train(engine, run, precision=precision)
        for chunks in ((3, 7), (1,) * 10):
            train(engine, run, precision=precision, chunks=chunks).assert_same_bits(whole)


@pytest.mark.parametrize("name", INVARIANCE)
def test_a_larger_plan_leaves_the_same_bits(engine: Engine, name: str) -> None:
    """The order of sums depends on the minibatch, not on the workspace that it lies in."""
    run = RUNS[name]
    train(engine, run, plan_rows=2 * run.rows + 3).assert_same_bits(train(engine, run))


def test_a_plan_remembers_nothing(engine: Engine) -> None:
    """Minibatches of other sizes and other operations between two equal runs change no bit."""
    run = RUNS["deep"]
    plan = engine.plan(network=run.network, rows=run.rows, draws=run.draws, precision="fp32", n_threads=2)

    class Shared:
        @staticmethod
        def plan(*_: Any, **__: Any) -> Any:
            return plan

    shared: Any = Shared
    first = train(shared, run)
    train(shared, replace(run, rows=5, optimizer=OPTIMIZER_RUNS["adam"], binarize="dynamic"))
    plan.likelihood_mean(out=np.ones((3, 65), np.float32), mean=np.empty((3, 65), np.float32))
    train(shared, run).assert_same_bits(first)


def test_storages_of_equal_greys_agree(engine: Engine) -> None:
    """CSR and dense rows of the same values train to the same weights, up to rounding."""
    for dtype in ("uint8", "float32", "float64"):
        dense, sparse = (train(engine, Run(BASE, storage=f"{layout}-{dtype}")) for layout in ("dense", "csr"))
        assert relative_norm(sparse.params, dense.params) <= tolerance("trajectory", "fp32")


# --- bounds that are not finite -------------------------------------------------------------------------------------


def assert_stops_at_once(engine: Engine, network: Network, params: Array, **changes: Any) -> None:
    """Nothing is updated; the statistics say what was found."""
    outcome = train(engine, Run(network, rows=8, **changes), params=params)
    assert outcome.done == 0
    assert outcome.params.tobytes() == params.tobytes()
    assert not outcome.state.any()
    assert not np.isfinite(outcome.stats[0, 0] - outcome.stats[0, 1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("network", [BASE, GAUSSIAN], ids=["bernoulli", "gaussian"])
def test_a_nan_parameter_stops_the_first_step(engine: Engine, network: Network, activation: str) -> None:
    """In any layer, weight or bias: no activation, clamp or maximum hides it."""
    network = replace(network, activation=activation)
    for layer in network.layout.layers:
        for part in (layer.weight, layer.bias):
            params = initialise(network, seed=1)
            part(params)[..., -1] = np.nan
            assert_stops_at_once(engine, network, params)


@pytest.mark.parametrize(
    ("network", "name", "value"),
    [
        (BASE, "encoder.logvar.b", np.inf),
        (BASE, "encoder.logvar.b", -np.inf),
        (BASE, "encoder.mu.b", np.inf),
        (BASE, "decoder.logits.b", np.inf),
        (BASE, "decoder.logits.b", -np.inf),
        (GAUSSIAN, "decoder.logvar.b", np.inf),
        (replace(GAUSSIAN, mean="identity"), "decoder.mean.b", -np.inf),
    ],
)
def test_an_infinite_head_stops_the_first_step(engine: Engine, network: Network, name: str, value: float) -> None:
    params = initialise(network, seed=1)
    network.layout.views(params)[name][-1] = value
    assert_stops_at_once(engine, network, params)


@pytest.mark.parametrize("bad_step", [0, 4, 9])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("storage", ["dense-float32", "dense-float64", "csr-float32"])
def test_a_bad_row_stops_at_its_step(engine: Engine, storage: str, value: float, bad_step: int) -> None:
    """Parameters and state are those of the last complete step, and `done` counts it."""
    run = Run(BASE, OPTIMIZER_RUNS["adam"], storage=storage, rows=8)
    data = run.data()
    bad_row = next(row for row in run.order[bad_step] if row not in run.order[:bad_step])
    if scipy.sparse.issparse(data):
        assert data.indptr[bad_row] < data.indptr[bad_row + 1], "this row stores nothing: choose another seed"
        data.data[data.indptr[bad_row]] = value
    else:
        data[bad_row, 3] = value
    outcome = train(engine, run, data=data)
    assert outcome.done == bad_step
    assert not np.isfinite(outcome.stats[bad_step, 0] - outcome.stats[bad_step, 1])
    clean = train(engine, replace(run, steps=10), data=data, chunks=(bad_step,)) if bad_step else fresh(run, np.float32)
    np.testing.assert_array_equal(outcome.params, clean.params)
    np.testing.assert_array_equal(outcome.state, clean.state)
    np.testing.assert_array_equal(outcome.stats[:bad_step], clean.stats[:bad_step])


@pytest.mark.parametrize("estimator", STEP_ESTIMATORS[1:])
def test_a_nan_parameter_stops_every_estimator(engine: Engine, estimator: str) -> None:
    """The heads of the encoder reach the bound through the KL term of the draws too, and where it is not ascended."""
    for layer in BASE.layout.encoder:
        params = initialise(BASE, seed=1)
        layer.weight(params)[..., -1] = np.nan
        assert_stops_at_once(engine, BASE, params, estimator=estimator, draws=2)


def test_an_unknown_estimator_is_refused_by_the_composition() -> None:
    with pytest.raises(ValueError, match="estimator must be one of sgvb-b, sgvb-a, got 'sgvb'"):
        golden(Run(BASE, estimator="sgvb"))


def test_an_overflowing_loss_stops(engine: Engine) -> None:
    """A step size that throws the weights away ends in a stop, not in a crash, and in finite parameters."""
    run = Run(replace(GAUSSIAN, mean="identity"), Optimizer("sgd", learning_rate=1e3), rows=8)
    outcome = train(engine, run)
    assert outcome.done < run.steps
    assert not np.isfinite(outcome.stats[outcome.done, 0] - outcome.stats[outcome.done, 1])
    assert np.isfinite(outcome.stats[: outcome.done]).all()
