"""Estimates of log p(x): against loops, the same beside any other rows, with what a result must carry."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import naive
import numpy as np
import pytest
from linear_gaussian import linear_gaussian

from fastvae import VAE
from fastvae.data import as_dataset, load
from fastvae.evaluation import ESTIMATORS, LogLikelihood, compare, evaluate_bound, evaluate_importance, sandwich
from fastvae.evaluation.ais import inverse_temperatures
from fastvae.evaluation.density import DENSITIES
from fastvae.evaluation.elbo import POOL_DRAWS
from fastvae.evaluation.hmc import HMC
from fastvae.evaluation.importance import BLOCK_DRAWS
from fastvae.evaluation.simulation import simulate
from fastvae.kernels import Array, Plan
from fastvae.network import Network
from fastvae.rng import Stream, normal

NETWORK = Network(data_dim=13, latent_dim=3, encoder_hidden=(9,), decoder_hidden=(8, 7))
QUICK: dict[str, dict[str, Any]] = {
    "importance": {"n_draws": BLOCK_DRAWS + 6},
    "marginal-likelihood": {"n_draws": 8, "n_burn_in": 8, "density": "gaussian"},
    "ais": {"n_draws": 3, "n_temperatures": 8, "n_leapfrog": 2},
}


@pytest.fixture(scope="module")
def plan_of(make_plan: Callable[..., Plan]) -> Callable[..., Plan]:
    """Plan on one thread: most calls are too short for two."""
    return lambda network=NETWORK, **sizes: make_plan(network, **({"n_threads": 1} | sizes))


def make_rows(n_rows: int = 11) -> Array:
    return np.random.default_rng(1).integers(0, 256, (n_rows, NETWORK.data_dim), dtype=np.uint8)


def test_importance_sampling_is_that_of_the_loops(
    plan_of: Callable[..., Plan], draw_params: Callable[..., Array]
) -> None:
    params, rows, n_draws = draw_params(NETWORK), make_rows(4), BLOCK_DRAWS + 6
    ref = []
    for row in rows:
        x, first = [(row / 255).tolist()], zlib.crc32(np.float32(row / 255).tobytes())
        _, mu, logvar = naive.encoder_forward(NETWORK, params, x)
        log_weights = []
        for draw in range(n_draws):
            block, i = divmod(draw, BLOCK_DRAWS)
            shape = (POOL_DRAWS, NETWORK.latent_dim)
            pool = normal(seed=9, step=block, stream=Stream.IMPORTANCE, shape=shape, dtype=float)
            eps = pool[(first + i) % POOL_DRAWS]
            z, _ = naive.latent_forward(mu, logvar, [[eps.tolist()]])
            log_pxz, _ = naive.log_joint(NETWORK, params, x, z[0])
            log_q = -0.5 * sum(np.log(2 * np.pi) + v + e * e for v, e in zip(logvar[0], eps, strict=True))
            log_weights.append(log_pxz[0] - log_q)
        ref.append(log_weights)
    weights = np.exp(np.array(ref))

    for plan in (plan_of(rows=4), plan_of(rows=3, draws=5)):
        comp = evaluate_importance(plan, params, as_dataset(rows, scale=1 / 255), n_draws=n_draws, seed=9)

        np.testing.assert_allclose(comp.log_likelihood, np.log(weights.mean(1)), rtol=1e-5)
        error = weights.std(1, ddof=1) / np.sqrt(n_draws) / weights.mean(1)
        np.testing.assert_allclose(comp.standard_error, error, rtol=1e-3)
        np.testing.assert_allclose(comp.effective_sample_size, weights.sum(1) ** 2 / (weights**2).sum(1), rtol=1e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("binarize", ["none", "fixed"])
def test_a_rows_value_does_not_depend_on_place_or_neighbours(
    plan_of: Callable[..., Plan], draw_params: Callable[..., Array], estimator: str, binarize: str
) -> None:
    params, rows = draw_params(NETWORK), make_rows()

    def evaluate(data: Array, **sizes: int) -> LogLikelihood:
        plan = plan_of(**({"rows": 8} | sizes))
        dataset = as_dataset(data, scale=1 / 255)
        return ESTIMATORS[estimator](plan, params, dataset, seed=4, binarize=binarize, **QUICK[estimator])

    ref = evaluate(rows)
    # float64 sums over the last axis and, for the reference, BLAS, choose their order by shape. In a chain such a
    # difference can turn an acceptance, hence not of values but in all but a few of them.
    close = 1e-9 if type(plan_of(rows=8)).__module__ != "fastvae.kernels.reference" else 1e-4

    def assert_same(comp: LogLikelihood, values: Array) -> None:
        same = np.isclose(comp.values, values, rtol=close)
        assert same.all() if close < 1e-6 else same.mean() >= 0.8

    order = np.random.default_rng(2).permutation(len(rows))
    assert_same(evaluate(rows[order]), ref.values[order])
    assert_same(evaluate(rows[9:10]), ref.values[9:10])
    assert_same(evaluate(rows, rows=5, draws=3, n_threads=2), ref.values)
    np.testing.assert_array_equal(evaluate(rows).values, ref.values)
    plan = plan_of(rows=8)
    other = ESTIMATORS[estimator](plan, params, as_dataset(rows, scale=1 / 255), seed=6, **QUICK[estimator])
    assert (other.values != ref.values).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_summary_says_how_it_was_measured(
    plan_of: Callable[..., Plan], draw_params: Callable[..., Array], estimator: str
) -> None:
    plan, params, rows = plan_of(rows=8), draw_params(NETWORK), make_rows()

    result = ESTIMATORS[estimator](plan, params, as_dataset(rows), seed=4, split="test", **QUICK[estimator])

    summary = result.summary()
    expected = {"estimator": estimator, "treatment": "as they are", "split": "test", "n_rows": 11, "evaluation_seed": 4}
    assert summary.items() >= expected.items()
    assert summary.items() >= QUICK[estimator].items()
    assert summary["log_likelihood"] == result.log_likelihood.mean()
    assert 0 < summary["monte_carlo_error"] < 1
    assert 1 <= summary["effective_sample_size"] <= summary["n_draws"]
    assert ("acceptance" in summary) == (estimator != "importance")
    assert json.loads(json.dumps(summary)) == summary


def test_treatment_is_that_of_the_measurement(plan_of: Callable[..., Plan], draw_params: Callable[..., Array]) -> None:
    plan, params, rows = plan_of(rows=8), draw_params(NETWORK), make_rows()
    bits = rows // 128

    def treatment(data: Any, binarize: str = "none") -> str:
        return evaluate_bound(plan, params, as_dataset(data), seed=0, binarize=binarize).treatment

    assert treatment(rows) == treatment(rows / 255) == "as they are"
    assert treatment(bits) == treatment(bits.astype(float)) == treatment(255 * bits) == "binary as stored"
    assert treatment(rows, "dynamic") == treatment(rows, "fixed") == treatment(bits, "fixed") == "binarised"


def test_memory_does_not_grow_with_the_draws(plan_of: Callable[..., Plan], draw_params: Callable[..., Array]) -> None:
    plan, params, dataset = plan_of(rows=64), draw_params(NETWORK), as_dataset(make_rows(256))

    def peak(n_draws: int) -> int:
        tracemalloc.start()
        try:
            evaluate_importance(plan, params, dataset, n_draws=n_draws, seed=0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    evaluate_importance(plan, params, dataset, n_draws=1, seed=0)  # Numba compiles
    few = peak(2 * BLOCK_DRAWS)  # from one pool to the next both are there
    assert peak(8 * BLOCK_DRAWS) < 1.2 * few  # all weights would double it


def test_more_importance_samples_tighten_the_bound(
    plan_of: Callable[..., Plan], draw_params: Callable[..., Array]
) -> None:
    plan, params, dataset = plan_of(rows=64), draw_params(NETWORK), as_dataset(make_rows(100))
    means = [
        evaluate_importance(plan, params, dataset, n_draws=n_draws, seed=0).values.mean() for n_draws in (1, 10, 500)
    ]
    elbo = evaluate_bound(plan, params, dataset, n_draws=100, seed=0).elbo.mean()
    assert elbo + 0.05 < means[1] < means[2]
    assert means[0] == pytest.approx(elbo, abs=0.4)  # the same bound with the noise of one draw


def test_comparison_refuses_what_is_not_alike(plan_of: Callable[..., Plan], draw_params: Callable[..., Array]) -> None:
    plan, params, rows = plan_of(rows=64), draw_params(NETWORK), make_rows(60)

    def importance(data: Array, **options: Any) -> LogLikelihood:
        return evaluate_importance(plan, params, as_dataset(data), n_draws=5, **({"seed": 0} | options))

    a, b = importance(rows), evaluate_bound(plan, params, as_dataset(rows), seed=1, split="test")

    same_rows = compare(a, b)
    assert same_rows.paired
    assert same_rows.difference == pytest.approx(a.values.mean() - b.values.mean())
    difference = a.values - b.values
    assert same_rows.standard_error == pytest.approx(difference.std(ddof=1) / np.sqrt(60))
    assert same_rows.summary() == {
        "difference": same_rows.difference,
        "standard_error": same_rows.standard_error,
        "paired": True,
    }

    half = importance(rows[:30])
    apart = compare(a, half)
    assert not apart.paired
    errors = a.values.std(ddof=1) / np.sqrt(60), half.values.std(ddof=1) / np.sqrt(30)
    assert apart.standard_error == pytest.approx(np.hypot(*errors))

    binarised = importance(rows, binarize="dynamic")
    with pytest.raises(ValueError, match=r"treatment.*'as they are' against 'binarised'; evaluate both.*force=True"):
        compare(a, binarised)
    assert not compare(a, binarised, force=True).paired
    with pytest.raises(ValueError, match=r"split.*'train' against 'test'"):
        compare(importance(rows, split="train"), b)
    assert compare(importance(rows, split="train"), b, force=True).paired
    # other thresholds make other rows
    assert not compare(binarised, importance(rows, binarize="dynamic", seed=1)).paired
    assert compare(binarised, importance(rows, binarize="fixed")).paired
    assert compare(importance(rows[:1]), importance(rows[:1])).standard_error is None


def test_temperatures_run_from_prior_to_posterior() -> None:
    betas = inverse_temperatures(100)
    assert (betas[0], betas[-1], len(betas)) == (0, 1, 101)
    steps = np.diff(betas)
    assert (steps > 0).all()
    np.testing.assert_allclose(steps, steps[::-1])
    assert steps[0] < steps[50] / 10


@pytest.mark.parametrize(
    ("estimator", "options", "message"),
    [
        ("importance", {"n_draws": 0}, "n_draws must be an integer from 1"),
        ("marginal-likelihood", {"n_draws": 1}, "n_draws must be an integer from 2"),
        ("marginal-likelihood", {"n_draws": 7, "density": "gaussian"}, "7 samples of 3 dimensions.* to at least 8"),
        (
            "marginal-likelihood",
            {"n_draws": 9, "density": "kde"},
            "9 samples of 3 dimensions; raise n_draws.* least 10",
        ),
        ("marginal-likelihood", {"density": "spline"}, "density must be one of kde, gaussian, diagonal"),
        ("marginal-likelihood", {"start": "here"}, "start must be one of encoder, prior"),
        ("marginal-likelihood", {"n_burn_in": 0}, "n_burn_in must be an integer from 1"),
        ("ais", {"n_draws": 9}, "n_draws must be at most 8, the chains that the plan holds at once, got 9"),
        ("ais", {"n_temperatures": 0}, "n_temperatures must be an integer from 1"),
        ("ais", {"n_draws": 1, "n_leapfrog": 0}, "n_leapfrog must be an integer from 1"),
    ],
)
def test_wrong_arguments_are_named(
    plan_of: Callable[..., Plan],
    draw_params: Callable[..., Array],
    estimator: str,
    options: dict[str, Any],
    message: str,
) -> None:
    plan, params, dataset = plan_of(rows=8), draw_params(NETWORK), as_dataset(make_rows())
    with pytest.raises(ValueError, match=message):
        ESTIMATORS[estimator](plan, params, dataset, seed=0, **options)


def test_many_latents_call_for_another_estimator(plan_of: Callable[..., Plan]) -> None:
    model = linear_gaussian(latent_dim=6)
    plan, dataset = plan_of(model.network, rows=4), as_dataset(model.rows(4))
    with pytest.warns(UserWarning, match="unreliable for 6 latent dimensions"):
        ESTIMATORS["marginal-likelihood"](plan, model.params, dataset, seed=0, n_draws=20, n_burn_in=8)


def test_a_chain_that_never_moved_has_no_estimate(plan_of: Callable[..., Plan]) -> None:
    model = linear_gaussian()
    views = model.network.layout.views(model.params)
    views["decoder.mean.W"][:] *= 1e15  # no step size found in a few transitions is small enough
    plan, dataset = plan_of(model.network, rows=4), as_dataset(model.rows(4))

    options = QUICK["marginal-likelihood"] | {"n_burn_in": 2}
    with pytest.warns(UserWarning, match="4 of 4 rows have no usable estimate of log p.x. and are NaN"):
        comp = ESTIMATORS["marginal-likelihood"](plan, model.params, dataset, seed=0, **options)

    assert np.isnan(comp.log_likelihood).all()
    assert comp.summary()["rows_of_unknown_error"] == 4
    assert (comp.acceptance == 0).all()


def result_of(standard_error: list[float], *, shared: float = 0.0) -> LogLikelihood:
    errors = np.array(standard_error)
    return LogLikelihood(
        log_likelihood=np.arange(len(errors), dtype=float),
        standard_error=errors,
        effective_sample_size=np.where(np.isnan(errors), 1.0, 20.0),
        shared=shared,
        estimator="marginal-likelihood",
        n_draws=50,
        seed=0,
        treatment="as they are",
        rows_key=0,
    )


def test_the_mean_has_an_error_where_that_of_some_rows_is_unknown() -> None:
    known = [0.3, 0.1, 0.2]
    ref = np.sqrt(np.mean(np.square(known)) / 5 + 0.1 * 0.2**2)

    comp = result_of([np.nan, *known, np.nan], shared=0.1)

    assert comp.monte_carlo_error == pytest.approx(ref)
    assert comp.summary()["monte_carlo_error"] == comp.monte_carlo_error
    assert comp.summary()["rows_of_unknown_error"] == 2
    assert comp.summary()["log_likelihood"] == 2
    whole = result_of(known)
    assert whole.monte_carlo_error == pytest.approx(np.sqrt(np.sum(np.square(known))) / 3)
    assert whole.summary()["rows_of_unknown_error"] == 0
    none = result_of([np.nan] * 3)
    assert np.isnan(none.monte_carlo_error)
    assert none.summary()["monte_carlo_error"] is None
    assert none.summary()["rows_of_unknown_error"] == 3


def test_a_chain_that_stopped_halfway_has_no_known_error(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, n_burn_in, n_draws = linear_gaussian(), 40, 20
    transition, n_done = HMC.transition, 0

    def stop_first(self: HMC, *, step_size: Array, **others: Any) -> Array:
        nonlocal n_done
        n_done += 1
        stopped = (np.arange(4) == 0) & (n_done > n_burn_in + n_draws)
        return transition(self, step_size=np.where(stopped, np.inf, step_size), **others)

    monkeypatch.setattr(HMC, "transition", stop_first)
    plan, dataset = plan_of(model.network, rows=4), as_dataset(model.rows(4))
    comp = ESTIMATORS["marginal-likelihood"](
        plan, model.params, dataset, n_draws=n_draws, n_burn_in=n_burn_in, density="gaussian", seed=0
    )

    np.testing.assert_array_equal(np.isnan(comp.standard_error), [True, False, False, False])
    assert comp.effective_sample_size[0] == 1
    assert np.isfinite(comp.log_likelihood).all()
    assert comp.summary()["rows_of_unknown_error"] == 1
    assert 0 < comp.monte_carlo_error < 1


def test_a_chain_that_missed_the_density_has_no_estimate(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, n_burn_in, n_draws = linear_gaussian(), 40, 20
    transition, n_done = HMC.transition, 0

    def hold_first(self: HMC, *, step_size: Array, **others: Any) -> Array:
        nonlocal n_done
        n_done += 1
        held = (np.arange(4) == 0) & (n_burn_in < n_done <= n_burn_in + n_draws)
        return transition(self, step_size=np.where(held, 1e-3 * step_size, step_size), **others)

    plan, dataset = plan_of(model.network, rows=4), as_dataset(model.rows(4))
    for density in DENSITIES:
        options = {"n_draws": n_draws, "n_burn_in": n_burn_in, "density": density}
        ref = ESTIMATORS["marginal-likelihood"](plan, model.params, dataset, seed=0, **options)
        n_done = 0
        with monkeypatch.context() as patch:
            patch.setattr(HMC, "transition", hold_first)
            with pytest.warns(UserWarning, match="1 of 4 rows have no usable estimate"):
                comp = ESTIMATORS["marginal-likelihood"](plan, model.params, dataset, seed=0, **options)

        for values in (comp.log_likelihood, comp.standard_error, comp.effective_sample_size):
            np.testing.assert_array_equal(np.isnan(values), [True, False, False, False])
        np.testing.assert_array_equal(comp.log_likelihood[1:], ref.log_likelihood[1:])
        assert np.isfinite(ref.log_likelihood).all()
        assert 0 < comp.monte_carlo_error < 1


@pytest.mark.parametrize(("density", "n_draws"), [("kde", 7), ("gaussian", 6), ("diagonal", 6)])
@pytest.mark.filterwarnings("ignore:.* rows have no usable estimate")
def test_the_fewest_draws_give_no_absurd_estimates(plan_of: Callable[..., Plan], density: str, n_draws: int) -> None:
    model = linear_gaussian()
    plan, x = plan_of(model.network, rows=300), model.rows(300)

    comp = ESTIMATORS["marginal-likelihood"](
        plan, model.params, as_dataset(x), n_draws=n_draws, n_burn_in=20, density=density, seed=0
    )

    error = comp.values - model.log_px(x)
    assert np.isfinite(error).mean() > 0.8
    assert np.nanmax(np.abs(error)) < 12
    assert np.nanmedian(error) == pytest.approx(0, abs=0.5)


def test_rows_of_the_model_do_not_depend_on_the_plan(plan_of: Callable[..., Plan], draw_params: Any) -> None:
    params = draw_params(NETWORK)
    comp = [sandwich(plan_of(rows=rows), params, n_rows=9, n_draws=2, n_temperatures=5, seed=1) for rows in (4, 9)]
    np.testing.assert_allclose(comp[0].lower.values, comp[1].lower.values, rtol=1e-4)
    assert comp[0].lower.treatment == "drawn from the model"


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_every_row_of_the_model_is_a_draw_of_its_own(
    plan_of: Callable[..., Plan], draw_params: Any, likelihood: str
) -> None:
    network = Network(13, 3, encoder_hidden=(9,), decoder_hidden=(8, 7), likelihood=likelihood)
    params = draw_params(network)
    x, z = simulate(plan_of(network, rows=4), params, n_rows=9, seed=1)
    ref = []
    for row, z_row in enumerate(z.tolist()):
        _, out = naive.decoder_forward(network, params, [z_row])
        ref += naive.likelihood_sample(network, out, 1, row)
    np.testing.assert_allclose(x, ref, rtol=1e-5, atol=1e-5)


def test_a_model_estimates_its_log_likelihood(compiled: str) -> None:
    rows = load("digits").test.rows[:60]
    model = VAE(2, hidden_dims=(16,), batch_size=20, n_epochs=2, backend=compiled, random_state=0, n_threads=1).fit(
        rows
    )

    comp = model.log_likelihood(rows, n_draws=50, split="train")

    assert isinstance(comp, LogLikelihood)
    assert (comp.estimator, comp.split, comp.seed, comp.n_draws) == ("importance", "train", model.seed_, 50)
    assert compare(comp, model.evaluate(rows)).difference > 0
    chains = model.log_likelihood(rows, estimator="ais", n_draws=4, n_temperatures=20, n_leapfrog=3, random_state=3)
    assert compare(comp, chains).difference == pytest.approx(0, abs=1)
    assert chains.seed == 3
    bounds = model.sandwich(20, n_draws=4, n_temperatures=20, n_leapfrog=3)
    assert (bounds.lower.n_rows, bounds.lower.seed) == (20, model.seed_)
    assert bounds.gap > 0
    with pytest.raises(ValueError, match="estimator must be one of importance, marginal-likelihood, ais"):
        model.log_likelihood(rows, estimator="exact")
    with pytest.raises(TypeError, match="density"):
        model.log_likelihood(rows, density="kde")


@pytest.mark.realdata
def test_importance_sampling_is_above_the_bound_on_mnist(data_root: Path) -> None:
    data = load("mnist", data_dir=data_root)
    train = data.train.select(slice(10_000))
    model = VAE(5, hidden_dims=(64,), n_epochs=1, random_state=0, n_threads=1).fit(train)
    test = data.test.select(slice(200))

    bound, comp = model.evaluate(test, n_draws=20), model.log_likelihood(test, n_draws=200)

    gain = compare(comp, bound)
    assert gain.paired
    assert gain.difference > 3 * gain.standard_error
    assert gain.difference < 10
    assert (comp.values > bound.elbo - 1).all()
