"""Missing values: against conditional means in closed form and by quadrature, and what a result may depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from fastvae import VAE
from fastvae.data import as_dataset
from fastvae.errors import DataError
from fastvae.kernels import Array, Engine
from fastvae.uses.chains import Chains

D = 6
MASK = np.array([False, True, False, True, True, False])


def fitted(engine: Engine | None = None, **changes: Any) -> VAE:
    """A model of the right shape; its parameters are of no account."""
    options: dict[str, Any] = {"latent_dim": 2, "hidden_dims": (), "n_epochs": 1, "batch_size": 20, "random_state": 3}
    if engine is not None:
        options["backend"] = engine.NAME
    return VAE(**options | changes).fit(np.random.default_rng(0).random((20, D)))


class LinearGaussian:
    """x ~ N(b, W^T W + diag(psi)), with a diagonal posterior of z that an affine encoder can be."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        directions = np.linalg.qr(rng.normal(size=(D, 2)))[0].T
        self.psi, self.b = rng.uniform(0.2, 0.6, D), rng.normal(size=D)
        strength = np.array([[1.6], [0.9]])
        self.W = strength * directions * np.sqrt(self.psi)  # so that W diag(1 / psi) W^T is diagonal
        self.posterior_variance = 1 / (1 + strength[:, 0] ** 2)
        self.covariance = self.W.T @ self.W + np.diag(self.psi)

    def conditional(self, rows: Array, mask: Array) -> tuple[Array, Array]:
        """Mean and covariance of x_missing given x_observed."""
        of_missing, observed = self.covariance[mask], self.covariance[~mask][:, ~mask]
        gain = of_missing[:, ~mask] @ np.linalg.inv(observed)
        mean = self.b[mask] + (rows[:, ~mask] - self.b[~mask]) @ gain.T
        return mean, of_missing[:, mask] - gain @ of_missing[:, ~mask].T

    def model(self, engine: Engine) -> VAE:
        model = fitted(engine, likelihood="gaussian", mean="identity")
        views, floor = model.parameters_, model.logvar_floor
        to_mu = (self.posterior_variance[:, np.newaxis] * self.W / self.psi).T
        values = {
            "encoder.mu.W": to_mu,
            "encoder.mu.b": -self.b @ to_mu,
            "encoder.logvar.W": 0,
            "encoder.logvar.b": np.log(self.posterior_variance),
            "decoder.mean.W": self.W,
            "decoder.mean.b": self.b,
            "decoder.logvar.W": 0,
            "decoder.logvar.b": floor + np.log(np.expm1(np.log(self.psi) - floor)),
        }
        assert views.keys() == values.keys()
        for name, value in values.items():
            views[name][:] = value
        return model


def linear_rows(n_rows: int = 3) -> Array:
    return np.random.default_rng(2).normal(size=(n_rows, D)) * 1.5


@pytest.mark.parametrize("fill", ["sample", "mean"])
def test_chains_of_a_linear_gaussian_model_converge_to_the_conditional_mean(engine: Engine, fill: str) -> None:
    truth, rows = LinearGaussian(), linear_rows()
    ref, _ = truth.conditional(rows, MASK)

    comp = truth.model(engine).impute(rows, MASK, n_iterations=120, n_burn_in=20, n_chains=150, fill=fill)

    assert comp.standard_error is not None
    error = comp.standard_error[:, MASK]
    assert error.max() < 0.02
    assert (np.abs(comp.rows[:, MASK] - ref) < 4.5 * error).all()
    if fill == "sample":
        assert comp.acceptance > 0.999  # the encoder is the posterior, so that every proposal passes


def test_draws_have_the_conditional_covariance(engine: Engine) -> None:
    truth, rows = LinearGaussian(), linear_rows(1)
    mean, covariance = truth.conditional(rows, MASK)
    n = 3000

    comp = truth.model(engine).impute(rows, MASK, n_iterations=20, n_chains=n, return_draws=True)

    assert comp.draws is not None
    draws = comp.draws[:, 0, MASK].astype(float)
    variance = np.diag(covariance)
    assert (np.abs(draws.mean(0) - mean[0]) < 4.5 * np.sqrt(variance / n)).all()
    spread = np.sqrt((covariance**2 + np.outer(variance, variance)) / n)
    assert (np.abs(np.cov(draws.T) - covariance) < 4.5 * spread).all()


def bernoulli_model(engine: Engine) -> VAE:
    """One whose encoder is far from the posterior of its decoder."""
    model = fitted(engine, latent_dim=1, hidden_dims=(5,))
    rng = np.random.default_rng(5)
    model.params_[:] = rng.normal(size=model.params_.shape)
    return model


def by_quadrature(model: VAE, row: Array, mask: Array) -> Array:
    """E[x_missing | x_observed] with the integral over z as a sum."""
    z = np.linspace(-8, 8, 4001)
    p = model.inverse_transform(z[:, np.newaxis]).astype(float)
    log_px = (row * np.log(p) + (1 - row) * np.log1p(-p))[:, ~mask].sum(1)
    weight = np.exp(log_px - log_px.max() - z**2 / 2)
    expected: Array = weight @ p[:, mask] / weight.sum()
    return expected


def test_chains_converge_whatever_the_encoder_by_their_test(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    model, row = bernoulli_model(engine), np.array([[1.0, 0, 0, 1, 1, 1]])
    ref = by_quadrature(model, row[0], MASK)
    options: dict[str, Any] = {"n_iterations": 400, "n_burn_in": 50, "n_chains": 200}

    comp = model.impute(row, MASK, **options)
    monkeypatch.setattr(Chains, "_test", lambda self, _: np.ones(len(self.x), bool))
    untested = model.impute(row, MASK, **options)

    assert comp.standard_error is not None
    error = comp.standard_error[0, MASK]
    assert error.max() < 0.01
    assert (np.abs(comp.rows[0, MASK] - ref) < 4.5 * error).all()
    assert 0.05 < comp.acceptance < 0.95
    assert (np.abs(untested.rows[0, MASK] - ref) > 10 * error).any()


def test_the_standard_error_is_that_of_the_chains(engine: Engine) -> None:
    model, rows = LinearGaussian().model(engine), linear_rows(2)

    few = [model.impute(rows, MASK, n_iterations=15, n_chains=8, random_state=seed) for seed in range(40)]

    spread = np.std([each.rows[:, MASK] for each in few], axis=0)
    stated = np.sqrt(np.mean([np.square(each.standard_error)[:, MASK] for each in few], axis=0))
    np.testing.assert_allclose(stated, spread, rtol=0.45)  # a deviation of 40 values is off by 11 %; four times that
    assert (few[0].standard_error[:, ~MASK] == 0).all()  # type: ignore[index]
    assert model.impute(rows, MASK, n_iterations=15).standard_error is None


def assert_equal(comp: Array, ref: Array, engine: Engine) -> None:
    """Bit for bit; the sums of the reference depend on the shape."""
    if engine.NAME == "reference":
        np.testing.assert_allclose(comp, ref, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_array_equal(comp, ref)


def test_a_row_depends_neither_on_its_place_nor_on_the_rows_beside_it(engine: Engine) -> None:
    model, rows = LinearGaussian().model(engine), linear_rows(700)  # with two chains each more than one batch
    order = np.random.default_rng(3).permutation(700)
    masks = np.random.default_rng(4).random((700, D)) < 0.5

    def run(rows: Array, masks: Array, n_chains: int = 2) -> Any:
        return model.impute(rows, masks, n_iterations=6, n_burn_in=2, n_chains=n_chains, return_draws=True)

    ref = run(rows, masks)

    again = run(np.ascontiguousarray(rows[order]), masks[order])
    assert_equal(again.rows, ref.rows[order], engine)
    assert_equal(again.draws, ref.draws[:, order], engine)
    alone = run(rows[699:], masks[699:])
    assert_equal(alone.rows, ref.rows[699:], engine)
    assert_equal(alone.standard_error, ref.standard_error[699:], engine)
    # More chains than a batch has rows: the first are the same.
    assert_equal(run(rows[:2], masks[:2], 1500).draws[:2], ref.draws[:, :2], engine)


def test_the_seed_decides(engine: Engine) -> None:
    model, rows = LinearGaussian().model(engine), linear_rows()

    def run(seed: int | None) -> Array:
        return model.impute(rows, MASK, n_iterations=11, random_state=seed).rows[:, MASK]

    np.testing.assert_array_equal(run(None), run(model.seed_))
    assert (run(1) != run(2)).all()


@pytest.mark.parametrize("fill", ["sample", "mean"])
def test_observed_values_stay_and_missing_ones_are_not_looked_at(engine: Engine, fill: str) -> None:
    model = bernoulli_model(engine)
    rows = np.random.default_rng(6).random((9, D)).astype(np.float32)
    masks = np.random.default_rng(7).random((9, D)) < 0.5
    masks[0], masks[1] = True, False  # nothing and everything observed
    unknown = np.where(masks, np.nan, rows)

    comp = model.impute(unknown, masks, n_iterations=12, fill=fill, return_draws=True)
    from_rows = model.impute(rows, masks, n_iterations=12, fill=fill)

    np.testing.assert_array_equal(comp.rows[~masks], rows[~masks])
    assert comp.draws is not None
    np.testing.assert_array_equal(comp.draws[0][~masks], rows[~masks])
    np.testing.assert_array_equal(comp.rows, from_rows.rows)
    assert ((comp.rows > 0) & (comp.rows < 1))[masks].all()
    assert np.isin(comp.draws[0][masks], (0, 1)).all() == (fill == "sample")
    one_mask = model.impute(rows, masks[2], n_iterations=12)
    assert_equal(one_mask.rows, model.impute(rows, np.tile(masks[2], (9, 1)), n_iterations=12).rows, engine)


@pytest.mark.parametrize("convert", [np.asarray, scipy.sparse.csr_array, as_dataset], ids=["dense", "csr", "dataset"])
def test_grey_levels_are_seen_with_their_factor(convert: Callable[[Array], Any]) -> None:
    levels = np.random.default_rng(8).integers(0, 256, (20, D), dtype=np.uint8)
    model = VAE(2, hidden_dims=(4,), batch_size=20, n_epochs=1, random_state=0).fit(levels)

    comp = model.impute(convert(levels), MASK, n_iterations=12)

    np.testing.assert_array_equal(comp.rows[:, ~MASK], (levels * np.float32(1 / 255))[:, ~MASK])
    assert comp.rows.dtype == np.float32
    np.testing.assert_array_equal(comp.rows, model.impute(levels, MASK, n_iterations=12).rows)


@pytest.mark.parametrize(
    ("rows", "mask", "changes", "match"),
    [
        ((4, D), np.zeros(D + 1, bool), {}, rf"mask must be boolean and of shape \(4, {D}\) or \({D},\)"),
        ((4, D), np.zeros((3, D), bool), {}, r"got bool of shape \(3, 6\)"),
        ((4, D), np.zeros(D), {}, r"got float64 of shape \(6,\)"),
        ((4, D + 1), np.zeros(D + 1, bool), {}, "7 features, but VAE is expecting 6"),
        ((4, D), MASK, {"n_iterations": 0}, "n_iterations must be an integer from 1"),
        ((4, D), MASK, {"n_iterations": 5, "n_burn_in": 5}, "n_burn_in must be an integer from 0 to 4"),
        ((4, D), MASK, {"n_chains": 0}, "n_chains must be"),
        ((4, D), MASK, {"fill": "guess"}, "fill must be one of sample, mean"),
    ],
)
def test_bad_arguments_are_named(rows: tuple[int, int], mask: Array, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fitted().impute(np.zeros(rows), mask, **changes)


def test_a_gap_outside_the_mask_is_named() -> None:
    rows = np.zeros((4, D))
    rows[2, 0] = rows[2, 1] = np.nan
    with pytest.raises(DataError, match="row 2, column 0"):
        fitted().impute(rows, MASK)
