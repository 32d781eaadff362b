"""Log-mean-exp in blocks, effective counts of chains, and fitted densities, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from fastvae.evaluation.density import DENSITIES, fit_density
from fastvae.evaluation.weights import WeightSums, effective_count
from fastvae.kernels import Array


def summed(log_weights: Array, blocks: list[int]) -> WeightSums:
    sums = WeightSums(len(log_weights))
    for block in np.split(log_weights, blocks, axis=1):
        for rows in (slice(0, 2), slice(2, len(log_weights))):
            sums.add(rows, np.ascontiguousarray(block[rows]))
    return sums


def test_sums_in_blocks_are_those_of_all() -> None:
    log_weights = np.random.default_rng(0).normal(scale=2, size=(5, 40))
    weights = np.exp(log_weights)

    for blocks in ([], [1], [7, 8, 30]):
        comp = summed(log_weights, blocks)

        np.testing.assert_allclose(comp.log_mean, np.log(weights.mean(1)), rtol=1e-12)
        error = weights.std(1, ddof=1) / np.sqrt(40) / weights.mean(1)
        np.testing.assert_allclose(comp.standard_error(), error, rtol=1e-10)
        np.testing.assert_allclose(comp.effective_sample_size, weights.sum(1) ** 2 / (weights**2).sum(1), rtol=1e-12)
    ten = np.full(5, 10.0)
    np.testing.assert_allclose(comp.standard_error(ten), error * np.sqrt(39 / 9), rtol=1e-10)


def test_weights_out_of_the_range_of_floats() -> None:
    shift = np.array([[2000.0], [-2000.0], [0.0]])
    log_weights = np.random.default_rng(0).normal(size=(3, 10))
    comp, ref = summed(log_weights + shift, [5]), summed(log_weights, [5])
    np.testing.assert_allclose(comp.log_mean, ref.log_mean + shift[:, 0], rtol=1e-12)
    np.testing.assert_allclose(comp.standard_error(), ref.standard_error(), rtol=1e-9)
    # from far below to far above and back
    jumps = np.array([[-1e6, 0.0, 1e6, 0.0]] * 3)
    np.testing.assert_allclose(summed(jumps, [1, 2, 3]).log_mean, 1e6 - np.log(4))
    none = np.full((3, 4), -np.inf)
    assert np.isneginf(summed(none, [2]).log_mean).all()
    half = np.where(np.arange(4) % 2, -np.inf, 0.0) * np.ones((3, 1))
    np.testing.assert_allclose(summed(half, [1, 2]).log_mean, -np.log(2))
    assert np.isnan(summed(np.zeros((3, 1)), []).standard_error()).all()


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_a_chain_is_worth_fewer_draws(correlation: float) -> None:
    draw = np.random.default_rng(1)
    chains = draw.normal(size=(100, 1000))
    for t in range(1, 1000):
        chains[:, t] = correlation * chains[:, t - 1] + np.sqrt(1 - correlation**2) * chains[:, t]

    comp = effective_count(chains)

    assert comp.mean() == pytest.approx(1000 * (1 - correlation) / (1 + correlation), rel=0.2)
    assert ((comp >= 1) & (comp <= 1000)).all()


def test_a_chain_that_stands_still_is_one_draw() -> None:
    still = np.array([[1.0], [0.1]]) * np.ones((2, 50))  # the mean of fifty 0.1 is not 0.1
    moving = np.random.default_rng(0).normal(size=(1, 50))

    comp = effective_count(np.concatenate([still, moving]))

    np.testing.assert_array_equal(comp[:2], 1)
    assert comp[2] > 10
    error = summed(np.concatenate([np.log(still), moving]), []).standard_error(comp)
    np.testing.assert_array_equal(np.isnan(error), [True, True, False])
    assert 0 < error[2] < 1


@pytest.fixture(scope="module")
def samples() -> Array:
    """600 draws each of three correlated Gaussians in two dimensions."""
    draw = np.random.default_rng(2)
    factors = np.array([[[1.0, 0.0], [0.5, 0.2]], [[3.0, 0.0], [0.0, 0.01]], [[0.1, 0.0], [-0.3, 0.1]]])
    return np.einsum("mij,nmj->nmi", factors, draw.normal(size=(600, 3, 2))) + np.array([[0.0, 1], [5, -5], [0, 0]])


def log_normal(z: Array, samples: Array, *, diagonal: bool) -> Array:
    """Log density at z (k, M, J) of the Gaussian with the moments of samples."""
    columns = []
    for m in range(samples.shape[1]):
        covariance = np.cov(samples[:, m].T) * (np.eye(2) if diagonal else 1)
        error = z[:, m] - samples[:, m].mean(0)
        squares = (error @ np.linalg.inv(covariance) * error).sum(1)
        columns.append(-0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1]))
    return np.array(columns).T


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_are_those_of_the_samples(samples: Array, name: str) -> None:
    fitted, z = samples[:500], samples[500:]

    comp = fit_density(name, fitted)(z)

    ref = log_normal(z, fitted, diagonal=name == "diagonal")
    if name == "kde":
        # smoother than the samples, and noisier than the Gaussian that they come from
        np.testing.assert_allclose(comp.mean(0), ref.mean(0), atol=0.15)
        grid = np.mgrid[-6:6:100j, -4:6:100j].reshape(2, -1).T  # around the first Gaussian
        density = np.exp(fit_density(name, fitted[:, :1])(grid[:, np.newaxis]))
        assert density.sum() * (12 / 99) * (10 / 99) == pytest.approx(1, abs=0.01)
    else:
        np.testing.assert_allclose(comp, ref, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", DENSITIES)
def test_datapoints_are_fitted_apart(samples: Array, name: str) -> None:
    comp = fit_density(name, samples[:100])(samples[100:120])
    for m in range(3):
        alone = fit_density(name, samples[:100, m : m + 1])(samples[100:120, m : m + 1])
        np.testing.assert_allclose(comp[:, m : m + 1], alone, rtol=1e-10)


def test_a_kernel_density_finds_two_modes() -> None:
    draw = np.random.default_rng(3)
    modes = np.where(draw.random((400, 1, 1)) < 0.5, -1.0, 1.0)
    samples = modes + 0.05 * draw.normal(size=(400, 1, 1))
    at = np.array([-1.0, 0.0, 1.0])[:, np.newaxis, np.newaxis]

    comp = np.exp(fit_density("kde", samples)(at))[:, 0]

    exact = 0.5 / (0.05 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(comp[[0, 2]], exact, rtol=0.3)
    assert comp[1] < exact / 100


@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("n_places", [1, 2])
def test_samples_at_few_places_have_no_density(samples: Array, name: str, n_places: int) -> None:
    still = samples[:50].copy()
    n_still = 38 if name == "kde" else 50  # then come those that are held out
    still[:n_still, 1] = samples[np.arange(n_still) * n_places // n_still, 1]
    comp = fit_density(name, still)(samples[50:60])
    assert np.isnan(comp[:, 1]).all()
    assert np.isfinite(comp[:, [0, 2]]).all()
