"""The bench counts arithmetic right, its peers train the same model, and its command reports what a reader needs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastvae import backends
from fastvae.bench import measure, run, time_to_elbo
from fastvae.bench.cases import CASES, Case
from fastvae.bench.contestants import LIMITS, Contestant, everybody
from fastvae.bench.data import Minibatches, grey_levels, sparse_levels
from fastvae.bench.processes import Process, SkippedError
from fastvae.bench.sweeps import sweep
from fastvae.cli.commands import run as fastvae
from fastvae.data import as_dataset
from fastvae.network import Network
from fastvae.optimizer import Optimizer

TINY = Case("mnist", "A step for tests", Network(12, 2, (5,), (5,)), 10, 3, source="grey levels", n_rows=100)


def test_flops_of_the_paper_step() -> None:
    # forward, weight gradient, input gradient; the encoder's first layer has no input gradient
    products = 2 * 784 * 500 + 3 * (500 * 40 + 20 * 500 + 500 * 784)
    assert CASES["mnist"].flops == 2 * 100 * products


def test_bytes_of_the_paper_step() -> None:
    data = as_dataset(grey_levels(100, 784), scale=1 / 255)
    n_params = 784 * 500 + 500 + 500 * 40 + 40 + 20 * 500 + 500 + 500 * 784 + 784
    outputs = 500 + 40 + 500 + 784
    # parameters and squares read and written, the minibatch read, every output written and read
    assert CASES["mnist"].n_bytes(data) == 4 * 4 * n_params + 100 * 784 + 2 * 4 * 100 * outputs


@pytest.mark.parametrize("name", ["mnist", "freyface", "deep", "wide-sparse"])
def test_flops_of_the_phases_are_those_of_the_step(name: str) -> None:
    case = CASES[name]
    total = 0
    for side in ("encoder", "decoder"):
        for i in range(len(getattr(case.network.layout, side))):
            for what in ("forward", "weights", "backward"):
                if (side, what, i) != ("encoder", "backward", 0):
                    total += case.phase_flops(f"{side}_{what}.{i}") or 0
    assert total == case.flops
    assert [case.phase_flops(name) for name in ("gather", "latent_forward", "likelihood", "wait")] == [None] * 4


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
def test_case_survives_json(case: Case) -> None:
    assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


def test_made_up_rows_are_as_sparse_as_mnist() -> None:
    rows = grey_levels(500, 784)
    assert rows.dtype == np.uint8
    assert np.mean(rows > 0) == pytest.approx(0.19, abs=0.005)
    assert rows.max() == 255


def test_made_up_sparse_rows() -> None:
    rows = sparse_levels(300, 2000, density=0.01)
    assert rows.shape == (300, 2000)
    assert rows.nnz / (300 * 2000) == pytest.approx(0.01, rel=0.05)
    assert rows.data.min() >= 1
    assert as_dataset(rows, scale=1 / 255).is_sparse  # whose checks want sorted columns without duplicates
    assert rows.indices.max() > 1980
    assert np.diff(rows.indptr).min() > 0


def test_minibatches_are_epochs_in_a_row() -> None:
    minibatches = Minibatches(25, 10)
    taken = [minibatches.take(n) for n in (1, 3, 2)]
    assert [rows.shape for rows in taken] == [(1, 10), (3, 10), (2, 10)]
    order = np.concatenate(taken)
    for epoch in order.reshape(3, 20):
        assert len(set(epoch)) == 20
    minibatches.restart()
    np.testing.assert_array_equal(minibatches.take(6), order)


def test_phases_of_an_engine_that_has_them() -> None:
    # per turn of two steps; the decoder's first product has 2 * 10 rows * 2 * 5 FLOPs
    turns = [{"latent_forward": 0.1, "decoder_forward.0": s, "wait": 0.2} for s in (0.4, 2e-6, 1e-6)]
    process: Any = SimpleNamespace(readings=[{"seconds": 1.0, "phases": turn} for turn in turns])
    latent, product, wait = measure._phases(TINY, process, 2, 0.4) or []
    assert (latent["phase"], latent["ms_per_step"], latent["gflop"]) == ("latent_forward", 50, None)
    assert product["gflop"] == 200e-9
    assert product["gflops"] == pytest.approx(0.2)
    assert product["share_of_gemm_limit"] == pytest.approx(0.5)
    assert wait["share_of_gemm_limit"] is None


def test_ratios_are_within_precision_and_threads() -> None:
    def row(is_ours: bool, precision: str, threads: int, ms: float) -> dict[str, object]:
        return {"is_ours": is_ours, "precision": precision, "threads": threads, "ms_per_step": {"p50": ms}}

    rows = [
        row(True, "fp32", 1, 2.0),
        row(True, "fp32", 2, 1.0),
        row(False, "fp32", 1, 3.0),
        row(False, "bf16", 1, 1.5),
    ]
    measure._add_ratios(rows)
    assert [r["time_over_ours"] for r in rows] == [1, 1, 1.5, None]
    assert [r["time_over_fastest_peer"] for r in rows] == [2 / 3, None, 1, 1]


PARITY = """
import json, sys
import numpy as np
from importlib import import_module
from fastvae.bench import engines
from fastvae.bench.cases import Case
from fastvae.bench.data import Minibatches
from fastvae.network import initialise

def quiet(network, *, seed):  # z = mu but for 3e-7, so that everybody's own noise does not matter
    flat = initialise(network, seed=seed)
    views = network.layout.views(flat)
    for name in views:
        if name.endswith(".b"):  # rows that are all zero would else lie on relu's kink, where the noise decides
            views[name][:] = 0.1
    views["encoder.logvar.W"][:], views["encoder.logvar.b"][:] = 0, -30
    return flat

peer = import_module(sys.argv[1])
peer.initialise = engines.initialise = quiet
distances = []
for case, options in json.loads(sys.argv[2]):
    case = Case.from_dict(case)
    data = case.load()
    order = Minibatches(data.n_rows, case.batch_size).take(4)
    ours = engines.make(case, data, n_threads=1, backend="reference", precision="fp32")
    theirs = peer.make(case, data, n_threads=1, **options)
    start = quiet(case.network, seed=0)
    assert (theirs.params() == start).all()
    for runner in (ours, theirs):
        runner.run(order[1:])
        runner.reset()
        runner.run(order)
    distances.append(float(np.linalg.norm(theirs.params() - ours.params()) / np.linalg.norm(ours.params() - start)))
print(json.dumps(distances))
"""

# with a smaller epsilon, the signs of the smallest gradients decide
SGD, ADAM = Optimizer("sgd"), Optimizer("adam", epsilon=1e-3)
GAUSSIAN = Network(12, 2, (6, 5), (5, 6), activation="relu", likelihood="gaussian")
WIDE = Network(400, 3, (7,), (6,), activation="softplus")


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_peers_train_the_same_model(tmp_path: Path, library: str) -> None:
    """From the same start, through the same minibatches, to the same parameters, also after starting anew."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    # PyTorch's Adagrad adds epsilon outside the root, so the others are compared.
    runs: list[tuple[Case, dict[str, bool], float]] = [
        (replace(TINY, optimizer=SGD), {}, 1e-4),  # float32 sums in another order
        (replace(TINY, optimizer=SGD), {"bf16": True}, 5e-2),  # operands of 8 bits
        (replace(TINY, network=GAUSSIAN, optimizer=ADAM), {}, 1e-4),
        (replace(TINY, network=WIDE, optimizer=SGD, source="sparse"), {}, 1e-4),
    ]
    if library == "jax":
        runs.append((TINY, {}, 1e-4))
    arguments = (f"fastvae.bench.peers_{library}", json.dumps([(case.to_dict(), options) for case, options, _ in runs]))
    done = subprocess.run(
        [sys.executable, "-P", "-c", PARITY, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for distance, (case, options, tolerance) in zip(json.loads(done.stdout), runs, strict=True):
        assert distance < tolerance, (case.network, options)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of a few units in place of the paper's, and two of the limits, in NumPy."""
    monkeypatch.setitem(CASES, "mnist", TINY)
    monkeypatch.setitem(CASES, "encode", replace(TINY, name="encode", kind="encode", batch_size=100))
    monkeypatch.setitem(CASES, "elbo", replace(TINY, name="elbo", kind="elbo", batch_size=100))
    monkeypatch.setattr(measure, "LIMITS", tuple(one for one in LIMITS if one.imports == ("numpy",))[:1])


@pytest.mark.usefixtures("tiny")
def test_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours and whichever peers are installed, from the command line to the page."""
    pytest.importorskip("matplotlib")
    result, page = tmp_path / "result.json", tmp_path / "page.html"
    engines = (f"fastvae {backends.resolve()} fp32", "fastvae reference", "torch eager fp32", "jax fp32")
    options = [part for engine in engines for part in ("--engine", engine)]
    options += ["--threads", "1", "--rounds", "2", "--json", str(result)]
    assert fastvae(["bench", "--case", "mnist", *options]) == 0
    printed = capsys.readouterr().out
    assert "Case mnist" in printed
    assert "time / ours" in printed

    (case,) = json.loads(result.read_text())["cases"]
    assert case["gflop_per_step"] == TINY.flops / 1e9
    assert {limit["limit"] for limit in case["limits"]} == {"numpy sgemm"}
    assert all(0 < limit["median"] <= limit["max"] for limit in case["limits"])
    rows = {row["engine"]: row for row in case["results"]}
    skipped = {skip["engine"]: skip["reason"] for skip in case["skipped"]}
    assert rows[f"fastvae {backends.resolve()}"]["time_over_ours"] == 1
    for name in ("torch eager", "jax"):
        if find_spec(name.split()[0]) is None:
            assert "pip install 'fastvae[bench]'" in skipped[name]
        else:
            assert name in rows
    for row in rows.values():
        times = row["ms_per_step"]
        assert 0 < times["p20"] <= times["p50"] <= times["p80"]
        assert row["samples_per_second"] == pytest.approx(10 / times["p50"] * 1e3)
        assert row["first_step_seconds"] > row["import_seconds"] > 0
        assert row["share_of_gemm_limit"] == pytest.approx(row["gflops"] / case["limits"][0]["median"])

    assert fastvae(["bench", "report", str(result), str(result), "--html", str(page)]) == 0
    html = page.read_text()
    assert html.count("<h2>Case mnist</h2>") == 2
    assert html.count("<svg") == html.count("</svg>") == 4
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?\s*(?:https?:)?//(?!www\.w3\.org)", html)


@pytest.mark.usefixtures("tiny")
def test_inference_cases() -> None:
    chosen = [everybody()[f"fastvae {backends.resolve()} fp32"]]
    for name in ("encode", "elbo"):
        result = measure.measure(CASES[name], chosen, threads=[1], rounds=1, with_limits=False)
        (row,) = result["results"]
        assert row["samples_per_second"] == pytest.approx(100 / row["ms_per_step"]["p50"] * 1e3)


@pytest.mark.usefixtures("tiny")
def test_sweep_and_time_to_elbo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    chosen = [everybody()[f"fastvae {backends.resolve()} fp32"]]
    widths = sweep("H", chosen, max_threads=1, rounds=1, base=TINY, values=[4, 8], steps=3)
    assert [point["value"] for point in widths["points"]] == [4, 8]
    race_case = replace(
        time_to_elbo.CASE, network=TINY.network, batch_size=10, source="grey levels", n_rows=100, steps=20
    )
    race = time_to_elbo.time_to_elbo(-8.0, chosen, threads=1, max_epochs=40, case=race_case, test_source="grey levels")
    (row,) = race["results"]
    curve = row["curve"]
    assert curve[-1]["elbo"] >= -8.0 > curve[-2]["elbo"]
    assert curve[-2]["steps"] <= row["steps"] <= curve[-1]["steps"]
    assert curve[-2]["seconds"] <= row["seconds"] <= curve[-1]["seconds"]

    document = {"format": run.FORMAT, "date": "today", "machine": measure.machine(), "cases": [], "sweeps": [widths]}
    saved, page = tmp_path / "saved.json", tmp_path / "page.html"
    saved.write_text(json.dumps({**document, "times_to_elbo": [race]}))
    assert fastvae(["bench", "report", str(saved), "--html", str(page)]) == 0
    assert page.read_text().count("<svg") == 2


def test_who_cannot_run_is_skipped_with_the_reason() -> None:
    missing = Contestant("missing", "fp32", ("no_such_library",), "fastvae.bench.engines")
    backend = Contestant(
        "fastvae reference", "fp8", (), "fastvae.bench.engines", {"backend": "reference", "precision": "fp8"}
    )
    absent = Contestant("absent", "fp32", (), "fastvae.bench.engines", missing="known beforehand")
    result = measure.measure(TINY, [missing, backend, absent], threads=[1], rounds=1, with_limits=False)
    assert result["results"] == []
    reasons = [skip["reason"] for skip in result["skipped"]]
    assert "no_such_library" in reasons[0]
    assert "pip install 'fastvae[bench]'" in reasons[0]
    assert reasons[1] == "backend 'reference' has precisions fp32, fp64, not 'fp8'"
    assert reasons[2] == "known beforehand"


def test_process_that_dies_is_skipped() -> None:
    process = Process(everybody()["fastvae reference fp32"], TINY, 1)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(SkippedError, match="its process ended with code -9"):
        process.run(1)
    process.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--case", "mnits"], "unknown case 'mnits': choose from all, mnist, mnist-1000"),
        (["--sweep", "J"], "unknown sweep 'J': choose from all, threads, M, H, D"),
        (["--engine", "tensorflow"], "no engine's name starts with 'tensorflow'"),
        (["report", "missing.json"], "No such file or directory: missing.json"),
        (["report", "README.md"], "README.md is not JSON"),
    ],
)
def test_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    assert fastvae(["bench", *arguments]) != 0
    assert message in capsys.readouterr().err


def test_page_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert fastvae(["bench", "--html", "page.html"]) == 1
    assert "pip install 'fastvae[plot]'" in capsys.readouterr().err
