"""Every estimator against log p(x) in closed form, on 100 datapoints of a linear-Gaussian model.

``pytest tests/test_evaluation_closed_form.py -s`` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from linear_gaussian import linear_gaussian

from fastvae.data import as_dataset
from fastvae.evaluation import ESTIMATORS, encode, evaluate_bound, evaluate_importance, sandwich
from fastvae.evaluation.simulation import simulate
from fastvae.kernels import Array, Engine, Plan

N = 100
# An encoder that is off gives importance sampling something to do; the others do not look at it, or only to begin.
POSTERIOR_ERROR = 0.3
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "importance": ("importance", {"n_draws": 1000}),
    "appendix D, gaussian": ("marginal-likelihood", {"n_draws": 400, "density": "gaussian"}),
    "appendix D, diagonal": ("marginal-likelihood", {"n_draws": 400, "density": "diagonal", "start": "prior"}),
    "appendix D, kde": ("marginal-likelihood", {"n_draws": 250, "density": "kde"}),
    "ais": ("ais", {"n_draws": 10, "n_temperatures": 100, "n_leapfrog": 5}),
}


@pytest.fixture(scope="module", params=[2, 3])
def latent_dim(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("case", CASES)
def test_estimates_agree_within_their_errors(
    engine: Engine, make_plan: Callable[..., Plan], latent_dim: int, case: str
) -> None:
    estimator, options = CASES[case]
    model = linear_gaussian(latent_dim=latent_dim, posterior_error=POSTERIOR_ERROR)
    plan, x = make_plan(model.network, rows=N, draws=10, n_threads=1), model.rows(N)
    ref = model.log_px(x)

    comp = ESTIMATORS[estimator](plan, model.params, as_dataset(x), seed=1, **options)

    error = comp.values - ref
    z, of_mean = error / comp.standard_error, error.mean() / comp.monte_carlo_error
    acceptance = "" if comp.acceptance is None else f", acceptance {comp.acceptance.mean():.3f}"
    print(
        f"\n{engine.NAME} J={latent_dim} {case}: exact {ref.mean():.4f}, estimate {comp.values.mean():.4f} "
        f"+- {comp.monte_carlo_error:.4f} (z {of_mean:+.2f}); rows: rms error {np.sqrt(np.mean(error**2)):.4f}, "
        f"z sd {z.std():.2f}, largest {np.abs(z).max():.2f}, within 3: {(np.abs(z) < 3).sum()} of {N}; "
        f"effective sample size {comp.effective_sample_size.mean():.1f} of {comp.n_draws}{acceptance}"
    )
    assert abs(of_mean) < 3
    # Single rows have weights with heavy tails, those of a kernel density, which is wider than the posterior, heaviest.
    assert (np.abs(z) < 3).mean() >= (0.9 if "kde" in case else 0.97)
    assert 0.5 < z.std() < (2 if "kde" in case else 1.4)


def test_bound_of_the_exact_posterior_is_the_log_likelihood(make_plan: Callable[..., Plan], latent_dim: int) -> None:
    model = linear_gaussian(latent_dim=latent_dim)
    plan, x = make_plan(model.network, rows=N, n_threads=1), model.rows(N)
    dataset, ref = as_dataset(x), model.log_px(x)

    # SGVB-A of one draw, log p(x, z) - log q(z|x), is the same for every z.
    np.testing.assert_allclose(
        evaluate_importance(plan, model.params, dataset, n_draws=1, seed=0).values, ref, rtol=2e-6
    )

    # SGVB-B is that in expectation: KL in closed form, log p(x|z) with the error of its draws.
    bounds = [evaluate_bound(plan, model.params, dataset, n_draws=400, seed=seed) for seed in range(8)]
    mu, logvar = (part.astype(float) for part in encode(plan, model.params, dataset))
    kl = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar)
    np.testing.assert_allclose(bounds[0].kl, kl.sum(1), rtol=1e-6)
    np.testing.assert_allclose(bounds[0].kl_per_dimension, kl.mean(0), rtol=1e-6)
    means = [bound.elbo.mean() - ref.mean() for bound in bounds]
    assert abs(np.mean(means)) < 4 * np.std(means, ddof=1) / np.sqrt(len(means))
    assert np.std(means) < 0.05


def test_the_bound_of_a_worse_posterior_is_lower(make_plan: Callable[..., Plan]) -> None:
    model = linear_gaussian(posterior_error=POSTERIOR_ERROR)
    plan, x = make_plan(model.network, rows=N, n_threads=1), model.rows(N)
    bound = evaluate_bound(plan, model.params, as_dataset(x), n_draws=100, seed=0)
    few = evaluate_importance(plan, model.params, as_dataset(x), n_draws=5, seed=0)
    assert bound.elbo.mean() + 0.3 < few.values.mean() < model.log_px(x).mean()


def exact_log_px(model: Any, plan: Plan, n_rows: int, seed: int) -> Array:
    x, z = simulate(plan, model.params, n_rows=n_rows, seed=seed)
    residual = x - z @ model.weight - model.bias
    assert residual.var() == pytest.approx(0.3, rel=4 * (2 / residual.size) ** 0.5)
    return np.asarray(model.log_px(x))


def test_the_sandwich_holds_the_log_likelihood(engine: Engine, make_plan: Callable[..., Plan], latent_dim: int) -> None:
    model = linear_gaussian(latent_dim=latent_dim)
    plan = make_plan(model.network, rows=N, draws=10, n_threads=1)
    ref = exact_log_px(model, plan, N, seed=3)

    wide, narrow = (
        sandwich(plan, model.params, n_rows=N, n_draws=n_draws, n_temperatures=n, n_leapfrog=5, seed=3)
        for n_draws, n in ((2, 5), (10, 100))
    )

    for comp in (wide, narrow):
        means = comp.lower.values.mean(), comp.upper.values.mean()
        errors = comp.lower.monte_carlo_error, (comp.upper.values - ref).std(ddof=1) / N**0.5
        print(
            f"\n{engine.NAME} J={latent_dim} sandwich, {comp.lower.n_draws} chains, "
            f"{comp.lower.options['n_temperatures']} temperatures: {means[0]:.4f} +- {errors[0]:.4f} <= exact "
            f"{ref.mean():.4f} <= {means[1]:.4f} +- {errors[1]:.4f}"
        )
        assert means[0] < ref.mean() + 3 * errors[0]
        assert means[1] > ref.mean() - 3 * errors[1]
        assert comp.gap == pytest.approx(means[1] - means[0])
    # Few chains and temperatures leave both far off, each to its side.
    assert wide.lower.values.mean() < ref.mean() - 3 * wide.lower.monte_carlo_error
    above = wide.upper.values - ref
    assert above.mean() > 3 * above.std(ddof=1) / N**0.5
    assert abs(narrow.gap) < wide.gap / 4
    assert {"lower", "upper", "gap", "acceptance_lower", "effective_sample_size_lower"} <= narrow.summary().keys()


def test_weights_of_both_passes_are_unbiased(make_plan: Callable[..., Plan]) -> None:
    # Few temperatures, so that the order of weight and transition counts; a wide posterior, so that no weight is large.
    model, n_rows = linear_gaussian(latent_dim=1, scale=0.25), 2000
    plan = make_plan(model.network, rows=500, draws=2, n_threads=1)
    ref = exact_log_px(model, plan, n_rows, seed=1)

    comp = sandwich(plan, model.params, n_rows=n_rows, n_draws=2, n_temperatures=4, n_leapfrog=3, seed=1)

    # of each row's mean weight over p(x), and of the reverse chains' times p(x)
    for side, relative in (("forward", np.exp(comp.lower.values - ref)), ("reverse", np.exp(ref - comp.upper.values))):
        error = relative.std(ddof=1) / n_rows**0.5
        print(f"\n{side} pass: mean relative weight {relative.mean():.4f} +- {error:.4f}, largest {relative.max():.1f}")
        assert abs(relative.mean() - 1) < 4 * error  # of skewed weights
        assert error < 0.02


def test_the_upper_bound_claims_only_the_error_that_is_known(make_plan: Callable[..., Plan]) -> None:
    model, n_rows = linear_gaussian(), 30
    plan = make_plan(model.network, rows=N, draws=10, n_threads=1)
    errors, stated = [], []
    for seed in range(20):
        comp = sandwich(plan, model.params, n_rows=n_rows, n_draws=30, n_temperatures=4, n_leapfrog=1, seed=seed)
        errors.append(comp.upper.values.mean() - exact_log_px(model, plan, n_rows, seed=seed).mean())
        stated.append(comp.summary()["gap_standard_error"])
    measured = np.std(errors, ddof=1)
    print(f"\nupper bound's mean: spread over seeds {measured:.3f}, error stated over rows {np.mean(stated):.3f}")

    # The gap's error holds the lower side's too. That of chains that all start from one draw would be too small.
    assert 0.6 < measured / np.mean(stated) < 1.3
    assert np.isnan(comp.upper.standard_error).all()
    assert np.isnan(comp.upper.effective_sample_size).all()
    assert comp.upper.summary()["monte_carlo_error"] is None
    assert not {"monte_carlo_error_upper", "effective_sample_size_upper"} & comp.summary().keys()
