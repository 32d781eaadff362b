"""Hamiltonian Monte Carlo: it leaves known densities invariant, and its step size finds the wanted acceptance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from linear_gaussian import VARIANCE, LinearGaussian, linear_gaussian

from fastvae.evaluation.hmc import HMC, TARGET_ACCEPTANCE, adapted_step_size, log_prior
from fastvae.kernels import Array, Plan

M = 300


def start(model: LinearGaussian, plan: Plan, x: Array, z: Array) -> dict[str, Any]:
    """Arguments of a transition from z."""
    log_density, grad = np.empty(len(z), np.float32), np.empty_like(z)
    plan.log_joint(params=model.params, x=x, z=z, log_pxz=log_density, dz=grad)
    return {"params": model.params, "x": x, "z": z, "log_density": log_density, "grad": grad}


def tempered_posterior(model: LinearGaussian, x: Array, beta: float) -> tuple[Array, Array]:
    """Mean (M, J) and covariance of ``p(z) p(x|z)^beta``."""
    covariance = np.linalg.inv(np.eye(len(model.weight)) + beta * model.weight @ model.weight.T / VARIANCE)
    return beta * (x - model.bias) @ model.weight.T @ covariance / VARIANCE, covariance


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
def test_the_tempered_posterior_is_left_invariant(make_plan: Callable[..., Plan], beta: float) -> None:
    model = linear_gaussian()
    draws, step_size = 10, {1.0: 0.4, 0.3: 0.7, 0.0: 1.7}[beta]
    plan, x = make_plan(model.network, rows=M, draws=draws, n_threads=1), model.rows(M)
    mean, covariance = tempered_posterior(model, x, beta)
    exact = np.random.default_rng(1).normal(size=(draws, M, 2)) @ np.linalg.cholesky(covariance).T
    chain = start(model, plan, x, (mean + exact).astype(np.float32).reshape(-1, 2))
    hmc, n_steps, n_accepted = HMC(plan, n_leapfrog=3, seed=2), 20, 0

    for step in range(n_steps):
        n_accepted += hmc.transition(**chain, step_size=step_size, step=step, beta=beta).sum()

    # Rows start in the density, so they are independent samples of it at every step. So many proposals are refused that
    # the samples would be wrong without it.
    n = draws * M
    assert 0.4 < n_accepted / (n * n_steps) < 0.9
    error = (chain["z"].reshape(draws, M, 2) - mean).reshape(n, 2)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(error.mean(0)), 4 * sd / np.sqrt(n))
    np.testing.assert_array_less(np.abs(error.T @ error / n - covariance), 4 * np.outer(sd, sd) * np.sqrt(2 / n))


def test_chains_from_afar_find_the_posterior_at_the_tuned_step_size(make_plan: Callable[..., Plan]) -> None:
    model = linear_gaussian()
    plan, x = make_plan(model.network, rows=M, n_threads=1), model.rows(M)
    chain = start(model, plan, x, np.full((M, 2), 3, np.float32))
    hmc, step_size = HMC(plan, n_leapfrog=4, seed=2), 1.0

    for step in range(60):
        hmc.transition(**chain, step_size=step_size, step=step)
        step_size = adapted_step_size(step_size, hmc.acceptance.mean())
    accepted = np.mean([hmc.transition(**chain, step_size=step_size, step=step) for step in range(60, 100)])

    assert accepted == pytest.approx(TARGET_ACCEPTANCE, abs=0.03)
    error = (chain["z"] - model.posterior_mean(x)) / np.sqrt(np.diag(model.posterior_covariance))
    assert (np.abs(error.mean(0)) < 4 / np.sqrt(M)).all()
    assert (np.abs(error.var(0) - 1) < 4 * np.sqrt(2 / M)).all()


def test_step_sizes_of_single_rows_are_tuned_apart(make_plan: Callable[..., Plan]) -> None:
    model = linear_gaussian()
    plan, x = make_plan(model.network, rows=M, n_threads=1), model.rows(M)
    chain = start(model, plan, x, model.posterior_mean(x).astype(np.float32))
    hmc, step_size = HMC(plan, n_leapfrog=4, seed=2), np.geomspace(0.01, 3, M)

    for step in range(100):
        hmc.transition(**chain, step_size=step_size, step=step)
        step_size = adapted_step_size(step_size, hmc.acceptance, rate=0.3)

    assert step_size.shape == (M,)
    assert np.median(step_size[:100]) == pytest.approx(np.median(step_size[-100:]), rel=0.2)


def test_what_is_left_is_the_joint_density_at_z(make_plan: Callable[..., Plan]) -> None:
    model = linear_gaussian()
    plan, x = make_plan(model.network, rows=M, n_threads=1), model.rows(M)
    chain = start(model, plan, x, np.zeros((M, 2), np.float32))
    before = chain["z"].copy()
    hmc = HMC(plan, n_leapfrog=2, seed=2)

    accept = hmc.transition(**chain, step_size=0.6, step=0, beta=0.5)

    ref = start(model, plan, x, chain["z"])
    np.testing.assert_allclose(chain["log_density"], ref["log_density"], rtol=1e-5)
    np.testing.assert_allclose(chain["grad"], ref["grad"], rtol=1e-4, atol=1e-5)
    assert 0 < accept.sum() < M
    np.testing.assert_array_equal((chain["z"] != before).any(1), accept)


def test_proposals_that_are_not_finite_are_refused(make_plan: Callable[..., Plan]) -> None:
    model = linear_gaussian()
    plan, x = make_plan(model.network, rows=M, n_threads=1), model.rows(M)
    chain = start(model, plan, x, model.posterior_mean(x).astype(np.float32))
    before = chain["z"].copy()
    step_size = np.where(np.arange(M) % 2, 0.1, 1e30)
    hmc = HMC(plan, n_leapfrog=4, seed=2)

    accept = hmc.transition(**chain, step_size=step_size, step=0)

    assert not accept[::2].any()
    assert accept[1::2].mean() > 0.8
    np.testing.assert_array_equal(hmc.acceptance[::2], 0)
    np.testing.assert_array_equal(chain["z"][::2], before[::2])
    assert all(np.isfinite(chain[name]).all() for name in ("z", "log_density", "grad"))


def test_keyed_noise_goes_with_the_datapoint(make_plan: Callable[..., Plan]) -> None:
    model = linear_gaussian()
    x, keys = model.rows(40), np.arange(40, dtype=np.uint64) << 32

    def chain_of(index: Array, draws: int) -> Array:
        plan = make_plan(model.network, rows=40, draws=3, n_threads=1)
        chain = start(model, plan, x[index], np.zeros((draws * len(index), 2), np.float32))
        hmc = HMC(plan, n_leapfrog=3, seed=2**40)
        for step in range(5):
            hmc.transition(**chain, step_size=0.3, step=keys[index] + np.uint64(step))
        return np.asarray(chain["z"].reshape(draws, len(index), 2))

    ref = chain_of(np.arange(40), 3)

    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(chain_of(order, 3), ref[:, order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(chain_of(np.array([17]), 2), ref[:2, 17:18], rtol=1e-4, atol=1e-5)
    assert len(np.unique(ref)) == ref.size


def test_the_prior_is_a_standard_normal() -> None:
    z = np.array([[0.0, 0.0], [1.0, -2.0]], np.float32)
    np.testing.assert_allclose(log_prior(z), -np.log(2 * np.pi) - np.array([0.0, 2.5]))


def test_there_is_a_leapfrog_step(make_plan: Callable[..., Plan]) -> None:
    with pytest.raises(ValueError, match="n_leapfrog must be an integer from 1"):
        HMC(make_plan(linear_gaussian().network, rows=2, n_threads=1), n_leapfrog=0, seed=0)
