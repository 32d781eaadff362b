"""The comparison runs, counts its arithmetic right and reports what a reader needs."""

from __future__ import annotations

import numpy as np
import pytest

from fastvae import backends
from fastvae.bench.__main__ import compare
from fastvae.bench.cases import CASES, Case, grey_levels
from fastvae.data import Dataset, as_dataset
from fastvae.network import Network
from fastvae.optimizer import Optimizer


def test_flops_of_the_paper_step() -> None:
    # forward, weight gradient, input gradient; the encoder's first layer has no input gradient
    products = 2 * 784 * 500 + 3 * (500 * 40 + 20 * 500 + 500 * 784)
    assert CASES["mnist"].flops == 2 * 100 * products


def test_made_up_rows_are_as_sparse_as_mnist() -> None:
    rows = grey_levels(500, 784)
    assert rows.dtype == np.uint8
    assert np.mean(rows > 0) == pytest.approx(0.19, abs=0.005)
    assert rows.max() == 255


def test_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("small", Network(12, 2, (5,), (5,)), 10, Optimizer("adagrad", learning_rate=0.01))

    def data(case: Case) -> tuple[Dataset, str]:
        return as_dataset(grey_levels(100, 12), scale=1 / 255), "synthetic"

    monkeypatch.setattr(Case, "data", data)
    result = compare(case, n_threads=1, steps=3, rounds=2)
    rows = {row["engine"]: row for row in result["results"]}
    assert rows[f"fastvae {backends.resolve()}"]["time_over_ours"] == 1
    for row in rows.values():
        times = row["ms_per_step"]
        assert 0 < times["p20"] <= times["p50"] <= times["p80"]
        assert row["samples_per_second"] == pytest.approx(10 / times["p50"] * 1e3)
