"""The bound of rows: against float64 loops, and the same whatever rows stand beside one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import naive
import numpy as np
import pytest
import scipy.sparse

from fastvae import VAE, backends
from fastvae.data import Dataset, as_dataset
from fastvae.evaluation import Bound, decode, encode, evaluate_bound, result
from fastvae.evaluation.elbo import POOL_DRAWS
from fastvae.evaluation.inference import batch_rows
from fastvae.evaluation.result import row_hashes
from fastvae.kernels import Array, Plan
from fastvae.model_plans import inference_plan
from fastvae.network import Network
from fastvae.rng import Stream, normal

SEED = 2**35 + 3
NETWORKS = {
    "bernoulli": Network(data_dim=13, latent_dim=3, encoder_hidden=(9,), decoder_hidden=(8, 7)),
    "gaussian": Network(data_dim=5, latent_dim=2, encoder_hidden=(6,), decoder_hidden=(6,), likelihood="gaussian"),
    "affine": Network(data_dim=1, latent_dim=1, encoder_hidden=(), decoder_hidden=()),
}


def make_rows(network: Network, n_rows: int = 37) -> Array:
    return np.random.default_rng(1).integers(0, 256, (n_rows, network.data_dim), dtype=np.uint8)


def naive_bound(network: Network, params: Array, dataset: Dataset, n_draws: int) -> tuple[Array, Array]:
    """Mean log p(x|z) over the draws, and KL, of every row."""
    pool = normal(seed=SEED, step=0, stream=Stream.EVALUATION, shape=(POOL_DRAWS, network.latent_dim), dtype=float)
    log_px, kl = [], []
    for m in range(dataset.n_rows):
        x = [[value * dataset.scale for value in map(float, dataset.rows[m])]]
        first = zlib.crc32(np.float32(x).tobytes())
        _, mu, logvar = naive.encoder_forward(network, params, x)
        eps = [[pool[(first + draw) % POOL_DRAWS].tolist()] for draw in range(n_draws)]
        z, row_kl = naive.latent_forward(mu, logvar, eps)
        _, out = naive.decoder_forward(network, params, [row for draw in z for row in draw])
        log_px.append(np.mean(naive.likelihood(network, x, out, 1.0)[0]))
        kl += row_kl
    return np.array(log_px), np.array(kl)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n_draws", [1, 3])
def test_bound_is_that_of_the_loops(
    make_plan: Callable[..., Plan], draw_params: Callable[..., Array], name: str, n_draws: int
) -> None:
    network = NETWORKS[name]
    params, dataset = draw_params(network), as_dataset(make_rows(network))
    ref_log_px, ref_kl = naive_bound(network, params, dataset, n_draws)

    comp = evaluate_bound(make_plan(network, rows=8), params, dataset, n_draws=n_draws, seed=SEED)

    np.testing.assert_allclose(comp.log_px, ref_log_px, rtol=2e-5)
    np.testing.assert_allclose(comp.kl, ref_kl, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(comp.elbo, comp.log_px - comp.kl)
    assert comp.elbo.dtype == np.float64


def assert_equal_bounds(comp: Array, ref: Array, plan: Plan) -> None:
    """Bit for bit; NumPy's BLAS makes no such promise, so the reference is held to its precision."""
    if type(plan).__module__.endswith("reference"):
        np.testing.assert_allclose(comp, ref, rtol=1e-5)
    else:
        np.testing.assert_array_equal(comp, ref)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("binarize", ["none", "dynamic", "fixed"])
def test_a_rows_value_does_not_depend_on_place_or_batch(
    make_plan: Callable[..., Plan], draw_params: Callable[..., Array], name: str, binarize: str
) -> None:
    network = NETWORKS[name]
    params, rows = draw_params(network), make_rows(network)
    plan = make_plan(network, rows=16)

    def bound(data: Array, plan: Plan = plan) -> Array:
        dataset = as_dataset(data, scale=1 / 255)
        return evaluate_bound(plan, params, dataset, n_draws=2, seed=SEED, binarize=binarize).elbo

    ref = bound(rows)

    order = np.random.default_rng(2).permutation(len(rows))
    assert_equal_bounds(bound(rows[order]), ref[order], plan)
    for m in (0, 15, 16, 36):
        assert_equal_bounds(bound(rows[m : m + 1]), ref[m : m + 1], plan)
    for other in (1, 7, 64):
        assert_equal_bounds(bound(rows, make_plan(network, rows=other, n_threads=1)), ref, plan)


def test_a_rows_value_does_not_depend_on_how_sparse_its_neighbours_are(
    make_plan: Callable[..., Plan], draw_params: Callable[..., Array]
) -> None:
    network = Network(data_dim=300, latent_dim=4, encoder_hidden=(33,), decoder_hidden=(17,))
    params, plan = draw_params(network), make_plan(network, rows=64)
    rows = make_rows(network, 64)
    rows[::2] *= np.random.default_rng(3).random((32, 300)) < 0.1

    def bound(data: Array) -> Array:
        return evaluate_bound(plan, params, as_dataset(data, scale=1 / 255), seed=SEED).elbo

    ref = bound(rows)

    assert_equal_bounds(bound(rows[::2].copy()), ref[::2], plan)
    assert_equal_bounds(bound(rows[1::2].copy()), ref[1::2], plan)
    assert_equal_bounds(bound(rows[:1]), ref[:1], plan)


def test_sparse_and_dense_rows_have_the_same_bound(
    make_plan: Callable[..., Plan], draw_params: Callable[..., Array]
) -> None:
    network = NETWORKS["bernoulli"]
    params, rows = draw_params(network), make_rows(network) // 200 * 200
    plan = make_plan(network, rows=16)

    def bound(dataset: Dataset) -> Array:
        return evaluate_bound(plan, params, dataset, seed=SEED).elbo

    ref = bound(as_dataset(rows, scale=1 / 255))
    comp = bound(as_dataset(scipy.sparse.csr_array(rows), scale=1 / 255))

    # A sparse first layer sums in another order.
    np.testing.assert_allclose(comp, ref, rtol=1e-5)


@pytest.mark.parametrize("levels", [True, False])
def test_a_rows_draws_do_not_depend_on_how_it_is_stored(levels: bool) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    values = rows / 255 if levels else np.random.default_rng(0).normal(size=(20, 30)) * (rows > 200)
    held = [values, np.float32(values), scipy.sparse.csr_array(values), np.where(values == 0, -0.0, values)]
    if levels:
        held += [rows, np.float32(rows) / np.float32(255), scipy.sparse.csr_array(rows)]

    ref, *comps = (row_hashes(as_dataset(x), slice(0, 20)) for x in held)

    assert len(set(ref.tolist())) == 20
    for comp in comps:
        np.testing.assert_array_equal(comp, ref)


def test_hashes_are_kept_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    monkeypatch.setattr(result, "BLOCK_VALUES", 240)
    dataset = as_dataset(rows)
    ref = row_hashes(dataset, slice(0, 20))

    kept = result.with_hashes_kept(dataset)
    rows[:] = 255 - rows

    np.testing.assert_array_equal(row_hashes(kept, slice(0, 20)), ref)
    np.testing.assert_array_equal(row_hashes(kept, slice(5, 9)), ref[5:9])
    assert not np.isin(row_hashes(dataset, slice(0, 20)), ref).any()


def test_more_draws_and_other_seeds_agree_within_their_error(
    make_plan: Callable[..., Plan], draw_params: Callable[..., Array]
) -> None:
    network = NETWORKS["bernoulli"]
    params, dataset = 2 * draw_params(network), as_dataset(make_rows(network, 200))
    plan = make_plan(network, rows=64)

    ref = evaluate_bound(plan, params, dataset, n_draws=500, seed=0)
    few = [evaluate_bound(plan, params, dataset, n_draws=1, seed=seed).elbo.mean() for seed in range(1, 21)]

    # One draw's spread over 200 rows and 20 seeds; draws shared by all rows would miss this by far.
    singles = [evaluate_bound(plan, params, dataset, n_draws=1, seed=seed).elbo - ref.elbo for seed in range(5)]
    error = np.std(singles) / np.sqrt(200)
    assert abs(np.mean(few) - ref.elbo.mean()) < 4 * error / np.sqrt(20)
    assert np.std(few) < 2 * error


def test_the_seed_decides_the_draws(make_plan: Callable[..., Plan], draw_params: Callable[..., Array]) -> None:
    network = NETWORKS["bernoulli"]
    params, dataset, plan = draw_params(network), as_dataset(make_rows(network)), make_plan(network, rows=16)

    first, again, other = (evaluate_bound(plan, params, dataset, seed=seed) for seed in (1, 1, 2))

    np.testing.assert_array_equal(first.elbo, again.elbo)
    assert (first.log_px != other.log_px).all()
    np.testing.assert_array_equal(first.kl, other.kl)


def test_active_units_are_those_whose_mean_varies(
    make_plan: Callable[..., Plan], draw_params: Callable[..., Array]
) -> None:
    network = NETWORKS["bernoulli"]
    params, dataset = draw_params(network), as_dataset(make_rows(network))
    network.layout.views(params)["encoder.mu.W"][:, 1] = 0

    bound = evaluate_bound(make_plan(network, rows=16), params, dataset, seed=SEED)

    mu, _ = encode(make_plan(network, rows=16), params, dataset)
    assert bound.active_units == int((mu.var(0) > 0.01).sum()) < network.latent_dim


def test_summary_names_estimator_draws_and_treatment(
    make_plan: Callable[..., Plan], draw_params: Callable[..., Array]
) -> None:
    network = NETWORKS["bernoulli"]
    plan, params, dataset = make_plan(network, rows=16), draw_params(network), as_dataset(make_rows(network))

    summary = evaluate_bound(plan, params, dataset, n_draws=3, seed=SEED, binarize="dynamic").summary()

    assert summary["elbo"] == pytest.approx(summary["log_px_z"] - summary["kl"])
    expected: dict[str, Any] = {"estimator": "SGVB-B", "n_draws": 3, "treatment": "binarised", "n_rows": 37}
    assert summary.items() >= expected.items()
    assert sum(summary["kl_per_dimension"]) == pytest.approx(summary["kl"])
    assert json.loads(json.dumps(summary)) == summary
    single = Bound(
        elbo=np.ones(1),
        log_px=np.ones(1),
        kl=np.zeros(1),
        kl_per_dimension=np.zeros(2),
        active_units=0,
        n_draws=1,
        seed=0,
        treatment="as they are",
        rows_key=0,
    ).summary()
    assert single["elbo_standard_error"] is None


def test_encode_and_decode_are_those_of_the_loops(
    make_plan: Callable[..., Plan], draw_params: Callable[..., Array]
) -> None:
    network = NETWORKS["gaussian"]
    params, dataset = draw_params(network), as_dataset(make_rows(network))
    plan = make_plan(network, rows=8)
    _, ref_mu, ref_logvar = naive.encoder_forward(network, params, (dataset.rows * dataset.scale).tolist())
    _, out = naive.decoder_forward(network, params, ref_mu)

    mu, logvar = encode(plan, params, dataset)
    mean = decode(plan, params, mu)

    np.testing.assert_allclose(mu, ref_mu, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logvar, ref_logvar, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean, naive.likelihood_mean(network, out), rtol=1e-5, atol=1e-6)


def test_draws_must_be_positive(make_plan: Callable[..., Plan], draw_params: Callable[..., Array]) -> None:
    network = NETWORKS["affine"]
    with pytest.raises(ValueError, match="n_draws must be at least 1, got 0"):
        evaluate_bound(
            make_plan(network, rows=4), draw_params(network), as_dataset(make_rows(network)), n_draws=0, seed=0
        )


def test_batches_stay_small_for_wide_data() -> None:
    assert batch_rows(Network(data_dim=2048, latent_dim=2)) == 128
    assert batch_rows(Network(data_dim=2**24, latent_dim=2)) == 16
    assert batch_rows(Network(data_dim=4, latent_dim=2)) == 1024


def test_batches_are_as_large_as_an_engine_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VAE(2, hidden_dims=(5,), n_epochs=1, backend="reference").fit(make_rows(NETWORKS["bernoulli"], 100))
    assert inference_plan(model).rows == 1024
    monkeypatch.setattr(backends.load("reference"), "INFERENCE_VALUES", 2**11, raising=False)
    model = VAE(2, hidden_dims=(5,), n_epochs=1, backend="reference").fit(make_rows(NETWORKS["bernoulli"], 100))
    assert inference_plan(model).rows == 8
