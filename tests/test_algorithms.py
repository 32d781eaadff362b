"""The algorithms that are composed of operations: their gradients, steps, trajectories, interruption and learning."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from functools import cache
from typing import Any

import naive
import naive_algorithms
import numpy as np
import pytest
from naive_algorithms import draws_of_eps
from tolerances import relative_norm, tolerance

from fastvae import VAE, backends
from fastvae.data import Dataset, as_dataset, load
from fastvae.errors import CheckpointError, DivergenceError
from fastvae.kernels import Array, Engine
from fastvae.model_file import from_checkpoint, to_checkpoint
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer
from fastvae.training.aevb import Fused
from fastvae.training.algorithm import algorithm_class
from fastvae.training.composed import Composed
from fastvae.training.state import State

SEED = 2**40 + 17
ADAGRAD = Optimizer("adagrad", learning_rate=0.02)
# name -> algorithm, estimator, draws
KINDS = {
    "wake-sleep": ("wake-sleep", "sgvb-b", 3),
    "iwae": ("aevb", "iwae", 3),
    "mcem": ("mcem", "sgvb-b", 1),
    "full-vb": ("full-vb", "sgvb-b", 2),
    "autoencoder": ("autoencoder", "sgvb-b", 1),
}
COMPOSED = [name for name, kind in KINDS.items() if not issubclass(algorithm_class(*kind[:2]), Fused)]
TINY = Network(6, 2, encoder_hidden=(4,), decoder_hidden=(3,), activation="softplus")
TINY_GAUSSIAN = Network(6, 2, encoder_hidden=(4,), decoder_hidden=(3,), likelihood="gaussian")
SMALL = Network(33, 5, encoder_hidden=(31,), decoder_hidden=(17,))
N_ROWS = 40


def rows_for(network: Network) -> Dataset:
    draw = np.random.default_rng(9)
    shape = N_ROWS, network.data_dim
    return as_dataset(draw.integers(1, 256, shape).astype(np.uint8) * (draw.random(shape) < 0.5))


def make(
    engine: Engine,
    name: str,
    network: Network,
    *,
    rows: int = 5,
    precision: str = "fp32",
    n_threads: int = 2,
    optimizer: Optimizer = ADAGRAD,
) -> tuple[Composed[Any], State]:
    """An algorithm on `N_ROWS` rows with weight prior, and its state at step 0 with every weight off zero."""
    algorithm, estimator, draws = KINDS[name]
    kind = algorithm_class(algorithm, estimator)
    plan = engine.plan(network=network, rows=rows, draws=draws, precision=precision, n_threads=n_threads)
    dtype = np.float64 if precision == "fp64" else np.float32
    params = initialise(network, seed=1) + 0.1 * np.sin(np.arange(network.layout.size))
    shapes = kind.extra_shapes(network, n_slots=optimizer.n_slots, n_rows=N_ROWS)
    extra = {key: np.zeros(shape, dtype) for key, shape in shapes.items()}
    kind.initialise_extra(extra, seed=SEED)
    state = State(
        params.astype(np.float32).astype(dtype),
        np.zeros((optimizer.n_slots, params.size), dtype),
        sums=np.zeros(len(kind.statistics)),
        extra=extra,
    )
    chosen = kind(
        engine,
        plan,
        optimizer,
        rows_for(network),
        binarize="none",
        seed=SEED,
        kl_weight=0.7 if kind.weighs_kl else 1.0,
        kl_warmup=0,
        decay=1 / N_ROWS,
    )
    return chosen, state


def order_of(steps: int, rows: int) -> Array:
    draw = np.random.default_rng(5)
    return np.stack([draw.permutation(N_ROWS)[:rows] for _ in range(steps)])


def advance(algorithm: Composed[Any], state: State, order: Array, *, chunks: tuple[int, ...] | None = None) -> Array:
    """Make the steps of `order` in chunks, as the loop does, and return the statistics of those done."""
    rows = []
    for part in np.split(order, np.cumsum(chunks or (len(order),))[:-1]):
        stats, done = np.full((len(part), len(algorithm.statistics)), np.nan), np.zeros(1, np.int64)
        try:
            algorithm.advance(state, order=part, stats=stats, done=done)
        finally:
            state.count(stats[: done[0]], batch_size=order.shape[1], seconds=0.0)
            rows.append(stats[: done[0]])
    return np.vstack(rows)


def arrays_of(state: State) -> dict[str, Array]:
    return {"params": state.params, "slots": state.slots, **state.extra}


def copies_of(state: State) -> dict[str, Array]:
    return {name: array.copy() for name, array in arrays_of(state).items()}


def assert_same_bits(state: State, expected: dict[str, Array]) -> None:
    for name, array in arrays_of(state).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


# --- one step -------------------------------------------------------------------------------------------------------


def derivative(objective: Callable[[Array], float], at: Array) -> Array:
    """Central differences in every parameter."""
    steps = 1e-5 * np.eye(at.size)
    return np.array([(objective(at + h) - objective(at - h)) / 2e-5 for h in steps])


@pytest.mark.parametrize("network", [TINY, TINY_GAUSSIAN], ids=["bernoulli", "gaussian"])
@pytest.mark.parametrize("name", ["wake-sleep", "iwae", "full-vb", "autoencoder"])
def test_the_gradient_is_that_of_the_objective_in_loops(name: str, network: Network) -> None:
    algorithm, state = make(backends.load("reference"), name, network, rows=3, precision="fp64")
    index, step, key = order_of(1, 3)[0], 4, {"seed": SEED, "step": 4}
    x = naive.gather(algorithm.dataset.rows, index, scale=1 / 255, binarize="none", **key)
    eps = draws_of_eps(algorithm.plan.draws, 3, network.latent_dim, **key)
    before, b = copies_of(state), algorithm.allocate(3, np.float64)
    objective: Callable[[Any], float]
    if name == "wake-sleep":
        statistics = naive_algorithms.bound(network, state.params, x, eps)
        objective = naive_algorithms.wake_sleep(network, state.params, x, eps, **key)
    elif name == "iwae":
        objective = lambda values: naive_algorithms.importance_weighted(network, values, x, eps)  # noqa: E731
    elif name == "autoencoder":
        objective = lambda values: naive_algorithms.autoencoder(network, values, x)  # noqa: E731
    else:

        def weighted(values: Any, logvar: Any) -> float:
            parts = naive_algorithms.full_vb(network, values, logvar, x, eps, n_rows=N_ROWS, **key)
            return parts[0] - 0.7 * parts[1] - parts[2]

        logvar = state.extra["theta_logvar"]
        logvar += np.linspace(0, 8, logvar.size)
        before = copies_of(state)
        statistics = naive_algorithms.full_vb(network, state.params, logvar, x, eps, n_rows=N_ROWS, **key)
        objective = lambda values: weighted(values, logvar)  # noqa: E731

    found = algorithm.measure(state, b, index=index, step=step)

    np.testing.assert_allclose(b.grad, derivative(objective, state.params), rtol=1e-6, atol=1e-8)
    if name == "full-vb":
        expected = derivative(lambda values: weighted(state.params, values), logvar)
        np.testing.assert_allclose(b.grad_logvar, expected, rtol=1e-6, atol=1e-8)
    if name in ("iwae", "autoencoder"):
        np.testing.assert_allclose(found[0] - sum(found[1:]), objective(state.params), rtol=1e-12)
    else:
        np.testing.assert_allclose(found, statistics, rtol=1e-12)
    assert_same_bits(state, before)


@pytest.mark.parametrize("name", ["wake-sleep", "iwae", "full-vb", "autoencoder"])
def test_a_step_is_one_update_by_that_gradient(name: str) -> None:
    algorithm, state = make(backends.load("reference"), name, TINY, rows=3, precision="fp64")
    order, b = order_of(1, 3), algorithm.allocate(3, np.float64)
    statistics = algorithm.measure(state, b, index=order[0], step=0)
    decay = 0.0 if name == "full-vb" else 1 / N_ROWS  # its gradient has the prior already
    grad = b.grad - decay * state.params
    if name == "autoencoder":  # whose log variances have no gradient
        for parameter in ("encoder.logvar.W", "encoder.logvar.b"):
            TINY.layout.views(grad)[parameter][:] = 0
    params, slots = naive.update(ADAGRAD, state.params, grad, state.slots, step=0, decay=0.0)
    before = copies_of(state)

    stats = advance(algorithm, state, order)

    np.testing.assert_array_equal(stats[0], statistics)
    np.testing.assert_allclose(state.params, params, rtol=1e-12)
    np.testing.assert_allclose(state.slots, slots, rtol=1e-12)
    if name == "full-vb":
        logvar, slots = naive.update(
            ADAGRAD, before["theta_logvar"], b.grad_logvar, before["theta_slots"], step=0, decay=0.0
        )
        np.testing.assert_allclose(state.extra["theta_logvar"], logvar, rtol=1e-12)
        np.testing.assert_allclose(state.extra["theta_slots"], slots, rtol=1e-12)


@pytest.mark.parametrize(("name", "untrained"), [("mcem", "encoder"), ("autoencoder", "encoder.logvar")])
@pytest.mark.parametrize("optimizer", ["adagrad", "adam", "sgd"])
def test_the_weight_prior_leaves_alone_what_has_no_gradient(
    engine: Engine, name: str, untrained: str, optimizer: str
) -> None:
    """Adagrad and Adam would move it by the prior's gradient as far as the rest moves by all of theirs."""
    algorithm, state = make(engine, name, SMALL, optimizer=Optimizer(optimizer, learning_rate=0.02))
    before = SMALL.layout.views(state.params.copy())
    advance(algorithm, state, order_of(3, 5))
    for parameter, values in SMALL.layout.views(state.params).items():
        kept = parameter.startswith(f"{untrained}.")
        assert (values == before[parameter]).all() == kept, parameter


def test_a_step_of_mcem_is_a_transition_and_five_updates_of_theta() -> None:
    algorithm, state = make(backends.load("reference"), "mcem", TINY, rows=3, precision="fp64")
    advance(algorithm, state, order_of(2, 3))
    index, step = order_of(3, 3)[2], 2
    x = naive.gather(algorithm.dataset.rows, index, scale=1 / 255, binarize="none", seed=SEED, step=step)
    before = copies_of(state)
    z, probabilities = naive_algorithms.hmc_transition(
        TINY,
        state.params,
        x,
        before["z"][index].tolist(),
        n_leapfrog=10,
        step_size=before["step_size"].item(),
        seed=SEED,
        step=step,
    )
    params, slots = before["params"].tolist(), before["slots"].tolist()
    log_px = naive_algorithms.mean_log_px(TINY, params, x, z)
    log_pxz = sum(naive.log_joint(TINY, params, x, z)[0]) / 3
    n_phi = TINY.layout.encoder[-1].end
    for i in range(5):
        grad = np.array(naive_algorithms.theta_gradient(TINY, params, x, z))
        grad[n_phi:] -= np.array(params)[n_phi:] / N_ROWS
        params, slots = naive.update(ADAGRAD, params, grad, slots, step=5 * step + i, decay=0.0)

    stats = advance(algorithm, state, index[np.newaxis])

    acceptance = np.mean(probabilities)
    np.testing.assert_allclose(stats[0], (log_px, log_pxz, acceptance), rtol=1e-10)
    expected_z = before["z"].copy()
    expected_z[index] = z
    np.testing.assert_allclose(state.extra["z"], expected_z, rtol=1e-10)
    np.testing.assert_allclose(state.params, params, rtol=1e-10)
    np.testing.assert_array_equal(state.params[:n_phi], before["params"][:n_phi])
    assert (state.extra["step_size"] > before["step_size"]) == (acceptance > 0.9)


# --- every engine ---------------------------------------------------------------------------------------------------


@cache
def golden(name: str, network: Network) -> tuple[State, Array]:
    algorithm, state = make(backends.load("reference"), name, network, rows=16, precision="fp64")
    return state, advance(algorithm, state, order_of(10, 16))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("name", KINDS)
def test_ten_steps_follow_the_reference(engine: Engine, name: str, likelihood: str) -> None:
    network = Network(33, 5, encoder_hidden=(31,), decoder_hidden=(17,), likelihood=likelihood)
    expected, expected_stats = golden(name, network)
    algorithm, state = make(engine, name, network, rows=16)

    stats = advance(algorithm, state, order_of(10, 16))

    limit = tolerance("trajectory", "fp32")
    assert relative_norm(state.params, expected.params) <= limit
    for key, wanted in arrays_of(expected).items():
        assert relative_norm(arrays_of(state)[key], wanted) <= limit, key
    np.testing.assert_allclose(stats, expected_stats, rtol=tolerance("stats", "fp32"), atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_threads_and_chunks_leave_the_same_bits(engine: Engine, name: str) -> None:
    n_threads = (1,) if engine.NAME == "reference" else (1, 2, 3)
    outcomes = []
    for threads, chunks in [(n_threads[-1], (6,)), *((n, (1, 2, 3)) for n in n_threads)]:
        algorithm, state = make(engine, name, SMALL, rows=7, n_threads=threads)
        stats = advance(algorithm, state, order_of(6, 7), chunks=chunks)
        outcomes.append((copies_of(state), stats, state))
    for _, stats, state in outcomes[1:]:
        assert_same_bits(state, outcomes[0][0])
        np.testing.assert_array_equal(stats, outcomes[0][1])


@pytest.mark.parametrize("during", ["measure", "apply"])
@pytest.mark.parametrize("name", COMPOSED)
def test_ctrl_c_within_a_step_leaves_whole_steps(
    engine: Engine, name: str, during: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the step changes anything it is given up, after that it is made, and counted, to its end."""
    algorithm, expected = make(engine, name, SMALL)
    order = order_of(5, 5)
    advance(algorithm, expected, order)
    algorithm, state = make(engine, name, SMALL)
    original, seen = getattr(type(algorithm), during), []

    def interrupted(self: Any, *args: Any, step: int, **arguments: Any) -> Any:
        if step == 2 and not seen:
            seen.append(step)
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, step=step, **arguments)

    monkeypatch.setattr(type(algorithm), during, interrupted)
    with pytest.raises(KeyboardInterrupt):
        advance(algorithm, state, order)
    assert state.step == (2 if during == "measure" else 3)
    advance(algorithm, state, order[state.step :])

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_bits(state, copies_of(expected))


@pytest.mark.parametrize("name", KINDS)
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(engine: Engine, name: str) -> None:
    algorithm, state = make(engine, name, SMALL)
    SMALL.layout.views(state.params)["decoder.logits.b"][3] = np.inf
    before, stats, done = copies_of(state), np.full((2, len(algorithm.statistics)), 7.0), np.ones(1, np.int64)

    with np.errstate(all="ignore"):
        algorithm.advance(state, order=order_of(2, 5), stats=stats, done=done)
        named = algorithm.diagnose(state, order_of(1, 5)[0])

    assert done[0] == 0
    assert not np.isfinite(stats[0]).all()
    assert (stats[1] == 7).all()
    assert_same_bits(state, before)
    assert named == "parameter decoder.logits.b"


# --- through the estimator ------------------------------------------------------------------------------------------


def fit_digits(name: str, **changes: Any) -> VAE:
    algorithm, estimator, _ = KINDS.get(name, ("aevb", "sgvb-b", 1))
    settings: dict[str, Any] = {
        "latent_dim": 5,
        "hidden_dims": (64,),
        "n_epochs": 12,
        "learning_rate": 3e-3,
        "random_state": 3,
        "backend": "reference" if backends.unavailable("cpp") else "cpp",
        "algorithm": algorithm,
        "estimator": estimator,
    }
    return VAE(**settings | changes).fit(load("digits").train)


@pytest.mark.parametrize(
    ("name", "column", "margin"),
    [
        ("wake-sleep", "elbo", 3.0),
        ("iwae", "elbo", 5.0),
        ("mcem", "log_pxz", 5.0),
        ("full-vb", "elbo", 3.0),
        ("autoencoder", "log_px", 8.0),
    ],
)
def test_training_on_digits_raises_the_objective(name: str, column: str, margin: float) -> None:
    history = fit_digits(name).history_
    assert history[column][-1] > history[column][0] + margin
    assert ("elbo" in history) == (name not in ("mcem", "autoencoder"))
    assert history.keys() >= {"epoch", "step", "seconds", *algorithm_class(*KINDS[name][:2]).statistics}


def test_the_bound_of_wake_sleep_stays_below_that_of_aevb() -> None:
    """As in figure 2."""
    bounds = {name: fit_digits(name).score(load("digits").test) for name in ("aevb", "wake-sleep")}
    assert bounds["wake-sleep"] < bounds["aevb"] - 0.5


def test_mcem_tunes_its_step_size_to_an_acceptance_of_90_percent() -> None:
    history = fit_digits("mcem").history_
    assert abs(np.mean(history["acceptance"][-4:]) - 0.9) < 0.03


def test_the_optimizer_counts_every_update_of_mcem() -> None:
    """Held for 7 updates, theta moves in the second step of five."""
    algorithm, state = make(
        backends.load("reference"), "mcem", SMALL, optimizer=Optimizer("adagrad", learning_rate=0.1, hold_steps=7)
    )
    before = copies_of(state)
    advance(algorithm, state, order_of(1, 5))
    np.testing.assert_array_equal(state.params, before["params"])
    advance(algorithm, state, order_of(2, 5)[1:])
    assert (state.params != before["params"]).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "em"}, "algorithm must be one of aevb, wake-sleep, mcem, full-vb, autoencoder, got 'em'"),
        ({"estimator": "sgvb"}, "estimator must be one of sgvb-b, sgvb-a, iwae, got 'sgvb'"),
        ({"algorithm": "wake-sleep", "estimator": "iwae"}, "estimator='iwae' needs algorithm='aevb'"),
        ({"algorithm": "mcem", "n_draws": 2}, "draws nothing from q"),
        ({"algorithm": "autoencoder", "n_draws": 2}, "draws nothing from q"),
        ({"algorithm": "wake-sleep", "kl_weight": 0.5}, "no KL divergence to weigh; set kl_weight=1"),
        ({"estimator": "iwae", "kl_warmup": 5}, "no KL divergence to weigh; set kl_weight=1 and kl_warmup=0"),
        ({"algorithm": "full-vb", "prior": True}, "in its bound; set prior=False"),
        ({"algorithm": "mcem", "binarize": "dynamic"}, "would change at every visit; set binarize='fixed'"),
    ],
)
def test_settings_that_contradict_an_algorithm_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        VAE(**settings).fit(np.zeros((100, 4), np.uint8))


def small_vae(**settings: Any) -> VAE:
    sizes = {"latent_dim": 2, "hidden_dims": (4,), "batch_size": 5, "n_epochs": 1, "random_state": 0}
    return VAE(**sizes | {"backend": "reference"} | settings)


def small_rows() -> Array:
    return np.random.default_rng(0).integers(0, 256, (20, 6), dtype=np.uint8)


NEEDS_ENCODER: dict[str, Callable[[VAE, Array], Any]] = {
    "transform": lambda model, x: model.transform(x),
    "reconstruct": lambda model, x: model.reconstruct(x),
    "evaluate": lambda model, x: model.evaluate(x),
    "score": lambda model, x: model.score(x),
    "log_likelihood": lambda model, x: model.log_likelihood(x),
    "start": lambda model, x: model.log_likelihood(x, estimator="marginal-likelihood", start="encoder"),
    "denoise": lambda model, x: model.denoise(x),
    "interpolate": lambda model, x: model.interpolate(x[0], x[1]),
    "impute": lambda model, x: model.impute(x, np.eye(*x.shape, dtype=bool)),
}


@pytest.mark.parametrize("use", NEEDS_ENCODER)
def test_a_model_of_mcem_says_that_it_has_no_recognition_model(use: str) -> None:
    model = small_vae(algorithm="mcem").fit(small_rows())
    with pytest.raises(ValueError, match=r"no recognition model q\(z\|x\).*log_likelihood"):
        NEEDS_ENCODER[use](model, small_rows())


def test_what_a_model_of_mcem_is_good_for() -> None:
    model = small_vae(algorithm="mcem").fit(small_rows())
    assert model.sample(3).shape == (3, 6)
    options: dict[str, Any] = {"estimator": "marginal-likelihood", "n_draws": 20, "random_state": 1}
    comp, ref = (model.log_likelihood(small_rows(), **options, **start) for start in ({}, {"start": "prior"}))
    np.testing.assert_array_equal(comp.values, ref.values)


def test_an_autoencoder_reconstructs_but_has_no_bound() -> None:
    model = small_vae(algorithm="autoencoder").fit(small_rows())
    assert model.reconstruct(small_rows()).shape == (20, 6)
    for use in ("evaluate", "log_likelihood", "impute"):
        with pytest.raises(ValueError, match="no bound; compare its reconstructions"):
            NEEDS_ENCODER[use](model, small_rows())


@pytest.mark.parametrize("algorithm", ["mcem", "autoencoder"])
def test_a_bound_of_held_out_rows_is_refused_before_training(algorithm: str) -> None:
    model = small_vae(algorithm=algorithm)
    with pytest.raises(ValueError, match=f"trained by algorithm='{algorithm}'"):
        model.fit(small_rows(), eval_set=small_rows())
    assert not hasattr(model, "state_")


def test_mcem_refuses_partial_fit() -> None:
    with pytest.raises(ValueError, match="needs fit, not partial_fit"):
        small_vae(algorithm="mcem").partial_fit(small_rows())


@pytest.mark.parametrize("name", ["wake-sleep", "iwae", "full-vb", "autoencoder"])
def test_partial_fit_takes_rows_as_they_come(name: str) -> None:
    algorithm, estimator, n_draws = KINDS[name]
    model = small_vae(algorithm=algorithm, estimator=estimator, n_draws=n_draws)
    model.partial_fit(small_rows()[:12]).partial_fit(small_rows()[12:])
    assert model.n_steps_ == 5
    assert model.history_["epoch"] == [1, 2]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"algorithm": "wake-sleep"}, "training began with algorithm aevb, not wake-sleep"),
        ({"estimator": "sgvb-a"}, {"estimator": "iwae"}, "training began with estimator sgvb-a, not iwae"),
        ({"algorithm": "mcem"}, {"algorithm": "aevb"}, "training began with algorithm mcem, not aevb"),
    ],
)
def test_resume_refuses_another_algorithm(before: dict[str, Any], after: dict[str, Any], message: str) -> None:
    model = small_vae(**before).fit(small_rows()).set_params(n_epochs=2, **after)
    with pytest.raises(ValueError, match=message):
        model.resume(small_rows())


def test_a_checkpoint_holds_and_checks_what_an_algorithm_carries() -> None:
    model = small_vae(algorithm="full-vb").fit(small_rows())
    checkpoint = to_checkpoint(model)
    comp = from_checkpoint(checkpoint, VAE)
    assert (comp.algorithm_, comp.estimator_) == ("full-vb", "sgvb-b")
    assert_same_bits(comp.state_, copies_of(model.state_))
    assert comp.state_.extra.keys() == {"theta_logvar", "theta_slots"}

    checkpoint.tensors["extra.theta_logvar"] = checkpoint.tensors["extra.theta_logvar"][1:]
    with pytest.raises(CheckpointError, match=r"its tensor 'extra.theta_logvar' is float32 of shape"):
        from_checkpoint(checkpoint, VAE)
    del checkpoint.tensors["extra.theta_logvar"]
    with pytest.raises(CheckpointError, match=r"its tensor 'extra.theta_logvar' is missing"):
        from_checkpoint(checkpoint, VAE)


def test_a_chain_that_is_not_finite_is_named() -> None:
    model = small_vae(algorithm="mcem").fit(small_rows())
    model.state_.extra["z"][3, 1] = np.nan
    with pytest.raises(DivergenceError, match="the state 'z' is not finite"):
        model.set_params(n_epochs=2).resume(small_rows())
