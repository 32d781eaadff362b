"""The estimators of the bound's gradient in phi: unbiased for the same one, and of very different variance."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from fastvae import backends
from fastvae.kernels import Array, Plan
from fastvae.network import Network, initialise
from fastvae.training.gradients import GRADIENT_ESTIMATORS, phi_gradient

NETWORK = Network(5, 1, encoder_hidden=(3,), decoder_hidden=(4,))
N_PHI = NETWORK.layout.encoder[-1].end
N_KEYS, SEED = 2000, 12


def plan_of(draws: int) -> Plan:
    return backends.load("reference").plan(NETWORK, rows=3, draws=draws, precision="fp64", n_threads=1)


@cache
def point() -> tuple[Array, Array]:
    params = initialise(NETWORK, seed=2).astype(np.float64)
    return params + 0.3 * np.sin(np.arange(params.size)), np.random.default_rng(0).random((3, 5))


@cache
def draws_of(estimator: str) -> Array:
    params, x = point()
    plan = plan_of(1)
    keys = range(N_KEYS)
    return np.array([phi_gradient(plan, params, x, estimator=estimator, seed=SEED, step=step) for step in keys])


def total_variance(estimator: str) -> float:
    return float(draws_of(estimator).var(axis=0).sum())


@cache
def exact() -> Array:
    """Central differences of the bound, its expectation over the one latent dimension by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    params, x = point()
    plan, eps = plan_of(40), np.ascontiguousarray(np.broadcast_to(nodes[:, np.newaxis, np.newaxis], (40, 3, 1)))
    hidden = np.empty((3, 3)), np.empty((120, 4))
    mu, logvar, z, kl, out, log_px = (np.empty(s) for s in ((3, 1), (3, 1), (40, 3, 1), 3, (120, 5), 120))

    def bound(at: Array) -> float:
        plan.encoder_forward(params=at, x=x, hidden=hidden[:1], mu=mu, logvar=logvar)
        plan.latent_forward(mu=mu, logvar=logvar, eps=eps, z=z, kl=kl)
        plan.decoder_forward(params=at, z=z.reshape(-1, 1), hidden=hidden[1:], out=out)
        plan.likelihood(x=x, out=out, scale=1.0, log_px=log_px, dout=None)
        expected = weights @ log_px.reshape(40, 3) / weights.sum()
        return float((expected - kl).mean())

    steps = 1e-5 * np.eye(params.size)[:N_PHI]
    return np.array([(bound(params + h) - bound(params - h)) / 2e-5 for h in steps])


@pytest.mark.parametrize("estimator", GRADIENT_ESTIMATORS)
def test_every_estimator_is_unbiased(estimator: str) -> None:
    draws = draws_of(estimator)
    standard_error = draws.std(axis=0) / N_KEYS**0.5
    assert draws.shape == (N_KEYS, N_PHI)
    assert (np.abs(draws.mean(axis=0) - exact()) <= 4 * standard_error + 1e-9).all()


def test_the_score_function_has_far_more_variance() -> None:
    """Section 2.2 calls it impractical; SGVB-B knows the KL divergence that SGVB-A samples."""
    assert total_variance("score-function") > 15 * total_variance("sgvb-b")
    assert total_variance("sgvb-a") > 2 * total_variance("sgvb-b")


@pytest.mark.parametrize("estimator", GRADIENT_ESTIMATORS)
def test_engines_agree(make_plan: Callable[..., Plan], estimator: str) -> None:
    params, x = (array.astype(np.float32) for array in point())
    comp = phi_gradient(make_plan(NETWORK, rows=3, draws=2), params, x, estimator=estimator, seed=SEED, step=7)
    ref = phi_gradient(plan_of(2), *(a.astype(np.float64) for a in (params, x)), estimator=estimator, seed=SEED, step=7)
    np.testing.assert_allclose(comp, ref, atol=2e-6 * np.abs(ref).max())


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="estimator must be one of sgvb-b, sgvb-a, score-function, got 'iwae'"):
        phi_gradient(plan_of(1), *point(), estimator="iwae", seed=0, step=0)
