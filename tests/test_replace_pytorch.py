"""The pages on other programs' weights say what is true: their code runs, and the figures are those measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from run_page import blocks


def run_page(pytestconfig: pytest.Config, name: str) -> dict[str, Any]:
    """Run the Python of a page from top to bottom, and return its names."""
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(pytestconfig.rootpath / "docs" / "guide" / name):
        if block.kind == "python":
            exec(compile(block.code, name, "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_five_lines_train_the_module_as_the_loop_does(
    pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    page = run_page(pytestconfig, "replace-pytorch.md")
    torch.set_num_threads(threads)
    by_loop, by_fastvae, seen = (float(x) for x in re.findall(r"(-[\d.]+) nats", capsys.readouterr().out))

    assert page["vae"].n_steps_ == 20 * (1500 // 128)
    for name, tensor in page["vae"].state_dict("pytorch-examples").items():
        np.testing.assert_array_equal(page["module"].state_dict()[name], tensor)
    # 100 draws for each of 297 rows: the standard error of the draws is below 0.02 nats.
    assert by_fastvae == pytest.approx(seen, abs=0.1)
    assert by_fastvae == pytest.approx(by_loop, abs=0.5)
    assert by_fastvae > page["bound_of"](page["DigitVAE"](), page["x_test"], n_draws=1) + 10


def test_interchange_page(pytestconfig: pytest.Config) -> None:
    for module in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(module)
    page = run_page(pytestconfig, "interchange.md")
    assert page["tuned"].score(page["x"][1500:]) > page["vae"].score(page["x"][1500:])
    np.testing.assert_allclose(page["means"], page["mean"].detach(), atol=1e-5)


def test_the_measurement_trains_everybody_to_the_same_bound() -> None:
    pytest.importorskip("torch")
    from fastvae.bench.data import grey_levels
    from fastvae.bench.replace_pytorch import CONTESTANTS, measure

    x = grey_levels(1280, 784).astype(np.float32) / 255
    rows = measure(x, x[:100], n_epochs=1, rounds=1)

    assert [row["name"] for row in rows] == list(CONTESTANTS)
    bounds = [row["elbo_test"] for row in rows]
    assert max(bounds) - min(bounds) < 0.05 * abs(min(bounds))
    for clock in ("seconds", "processor_seconds"):
        fastvae = rows[-1][clock]
        assert fastvae["times_fastvae"] == 1
        assert rows[0][clock]["times_fastvae"] == pytest.approx(rows[0][clock]["p50"] / fastvae["p50"])


def test_a_result_that_could_not_be_written_is_refused_before_the_measurement(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from fastvae.bench.replace_pytorch import main

    result = CliRunner().invoke(main, ["--out", str(tmp_path / "none" / "result.json")])
    assert result.exit_code == 2
    assert "does not exist; make it or choose another" in result.output


def test_the_figures_of_the_page_are_those_of_the_result(pytestconfig: pytest.Config) -> None:
    path = pytestconfig.rootpath / "bench" / "results" / "replace-pytorch.json"
    text = (pytestconfig.rootpath / "docs" / "guide" / "replace-pytorch.md").read_text()
    results = json.loads(path.read_text())["results"]
    assert [row["name"] for row in results] == ["PyTorch, as its example", "PyTorch, tuned", "fastvae"]
    for row in results:
        clock = row["seconds"]
        assert f"| {row['name']} | {clock['p50']:.1f} s | {clock['times_fastvae']:.1f} |" in text
