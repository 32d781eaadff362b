"""The first layer from nonzeros: the same bits as the dense products, whatever the minibatch's density."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse

from fastvae import backends
from fastvae.network import Network, initialise
from fastvae.optimizer import Optimizer
from fastvae.training import step as law
from fastvae.training.aevb import Buffers

OPTIMIZERS = [Optimizer("adagrad", 0.01), Optimizer("adagrad", 0.01, hold_steps=2), Optimizer("adam"), Optimizer("sgd")]
SHAPES = [
    (Network(784, 20), 100, 1, "sgvb-b"),
    (Network(65, 3, (33,), (17,)), 51, 2, "sgvb-b"),
    (Network(65, 3, (33,), (17,)), 51, 2, "sgvb-a"),
    (Network(5, 1, (), ()), 1, 1, "sgvb-b"),
    (Network(130, 2, (129, 8), (9,), "softplus", "gaussian"), 7, 3, "sgvb-b"),
]


def make_rows(n_rows: int, data_dim: int, density: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    rows = generator.integers(1, 256, (n_rows, data_dim), dtype=np.uint8)
    rows[generator.random(rows.shape) >= density] = 0
    rows[:, data_dim // 2] = 0  # a column that no row touches
    rows[0] = 0
    return rows


def arguments(network: Network, optimizer: Optimizer, decay: float) -> dict[str, Any]:
    params = initialise(network, seed=1)
    state = np.zeros((optimizer.n_slots, params.size), np.float32)
    return {"params": params, "state": state, "optimizer": optimizer, "seed": 3, "decay": decay}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("decay", [0.0, 1e-3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["adagrad", "adagrad-hold", "adam", "sgd"])
@pytest.mark.parametrize(
    ("network", "rows", "draws", "estimator"), SHAPES, ids=["paper", "odd", "odd-sgvb-a", "one", "deep"]
)
def test_the_loop_has_the_bits_of_the_operations(
    compiled: str,
    monkeypatch: pytest.MonkeyPatch,
    network: Network,
    rows: int,
    draws: int,
    estimator: str,
    optimizer: Optimizer,
    decay: float,
    density: float,
    precision: str,
) -> None:
    """The operations' weight gradients are always dense, the loop takes lists of nonzeros where they are few."""
    engine = backends.load(compiled)
    if precision not in engine.PRECISIONS:
        pytest.skip(f"backend {compiled} has no precision {precision} here")

    def engine_normal(*, seed: int, step: int, stream: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        out = np.empty(shape, dtype)
        engine.normal(seed=seed, step=step, stream=stream, out=out)
        return out

    monkeypatch.setattr(law, "normal", engine_normal)
    data = make_rows(3 * rows, network.data_dim, density)
    order = np.random.default_rng(1).permutation(3 * rows).reshape(3, rows)
    plan = engine.plan(network, rows=rows, draws=draws, precision=precision, n_threads=2)
    shared: dict[str, Any] = {
        "data": data,
        "scale": 1 / 255,
        "binarize": "none",
        "kl_weight": 0.7,
        "estimator": estimator,
    }

    ref, buffers = arguments(network, optimizer, decay), Buffers.allocate(network, rows, draws)
    stats = [law.compose_step(plan, buffers, index=index, step=t, **ref, **shared) for t, index in enumerate(order)]
    comp, comp_stats = arguments(network, optimizer, decay), np.empty((3, 2))
    done = np.zeros(1, np.int64)
    plan.train_steps(order=order, step=0, kl_warmup=0, stats=comp_stats, done=done, **comp, **shared)

    np.testing.assert_array_equal(comp["params"], ref["params"])
    np.testing.assert_array_equal(comp["state"], ref["state"])
    np.testing.assert_allclose(comp_stats, stats, rtol=1e-14)


def test_csr_and_dense_rows_train_to_the_same_bits(compiled: str) -> None:
    network, optimizer = Network(60, 3, (40,), (40,)), Optimizer("adam")
    dense = make_rows(90, 60, 0.2)
    plan = backends.load(compiled).plan(network, rows=30, draws=1, precision="fp32", n_threads=2)
    results = []
    for data in (dense, scipy.sparse.csr_array(dense)):
        run = arguments(network, optimizer, 0.0)
        plan.train_steps(
            data=data,
            order=np.arange(90).reshape(3, 30),
            scale=1 / 255,
            binarize="none",
            step=0,
            estimator="sgvb-b",
            kl_weight=1.0,
            kl_warmup=0,
            stats=np.empty((3, 2)),
            done=np.zeros(1, np.int64),
            **run,
        )
        results.append(run["params"])
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
def test_the_encoder_has_the_bits_of_the_dense_product(compiled: str, density: float, precision: str) -> None:
    """A plan for very many rows keeps no lists."""
    engine = backends.load(compiled)
    if precision not in engine.PRECISIONS:
        pytest.skip(f"backend {compiled} has no precision {precision} here")
    network, rows = Network(785, 3, (67,), (2,)), 51
    params, x = initialise(network, seed=1), make_rows(rows, 785, density) / np.float32(255)
    outputs = []
    for most_rows in (rows, 2**22 // 785 + 1):
        plan = engine.plan(network, rows=most_rows, draws=1, precision=precision, n_threads=2)
        hidden, mu, logvar = np.empty((rows, 67), np.float32), *np.empty((2, rows, 3), np.float32)
        plan.encoder_forward(params=params, x=x, hidden=(hidden,), mu=mu, logvar=logvar)
        outputs.append(hidden)
    np.testing.assert_array_equal(*outputs)
